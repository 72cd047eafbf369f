"""An embedded, in-memory ZooKeeper server for development and tests: `EmbeddedServer`.

It speaks ZooKeeper's wire protocol as Apache ZooKeeper 3.8 does, which a conformance test holds it to, and
any client can talk to it. It is not durable and not replicated, and does not mean to be.

    wire      bytes <-> values
    acl       who may do what                      watches    who wants to hear of what
    tree      znodes, and the rules of changing them   sessions   who is alive
    reads, writes   one function a request         peer       one client's connection
    core      requests in, replies and events out (no sockets, no clock)
    words     four-letter words                    faults     what to do wrong on request
    serve     the asyncio shell: EmbeddedServer
"""

from zkd.zk.server.serve import EmbeddedServer, serve_in_thread
from zkd.zk.server.wire import Op

__all__ = ["EmbeddedServer", "Op", "serve_in_thread"]
