"""Four-letter words: what monitoring and clients ask of a server in plain text, before any session.

The lines are Apache's, so that parsers of its answers work; figures that an in-memory server does not have
(latencies, log sizes) are 0.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkd.zk.server.serve import EmbeddedServer

# What clients take for the version they talk to: the one that conformance is tested against.
VERSION = "3.8.0-zkd, built on 2024-12-29 17:54 UTC"


def answer(word: bytes, server: EmbeddedServer) -> str | None:
    """The answer to a word, or None when it is none."""
    speak = WORDS.get(word)
    return None if speak is None else speak(server)


def srvr(server: EmbeddedServer) -> str:
    return f"Zookeeper version: {VERSION}\n{_figures(server)}"


def stat(server: EmbeddedServer) -> str:
    return f"Zookeeper version: {VERSION}\nClients:\n{_clients(server)}\n{_figures(server)}"


def cons(server: EmbeddedServer) -> str:
    return f"{_clients(server)}\n"


def conf(server: EmbeddedServer) -> str:
    sessions = server.core.sessions
    return (
        f"clientPort={server.port}\nsecureClientPort=-1\ndataDir=\ndataDirSize=0\ndataLogDir=\ndataLogSize=0\n"
        f"tickTime={round(server.tick_s * 1000)}\nmaxClientCnxns=0\nminSessionTimeout={sessions.min_timeout_ms}\n"
        f"maxSessionTimeout={sessions.max_timeout_ms}\nclientPortListenBacklog=-1\nserverId=0\n"
    )


def mntr(server: EmbeddedServer) -> str:
    core = server.core
    ephemerals = sum(map(len, core.tree.ephemerals.values()))
    values = {
        "version": VERSION,
        "server_state": "standalone",
        "ephemerals_count": ephemerals,
        "num_alive_connections": len(core.peers),
        "avg_latency": 0.0,
        "outstanding_requests": 0,
        "znode_count": len(core.tree),
        "global_sessions": len(core.sessions.by_id),
        "packets_sent": sum(peer.sent for peer in core.peers),
        "packets_received": sum(peer.received for peer in core.peers),
        "watch_count": len(core.watches.data) + len(core.watches.children),
        "min_latency": 0,
        "max_latency": 0,
        "approximate_data_size": sum(
            len(path) + len(node.data or b"") for path, node in core.tree.nodes.items() if path
        ),
        "local_sessions": 0,
    }
    return "".join(f"zk_{key}\t{value}\n" for key, value in values.items())


def envi(server: EmbeddedServer) -> str:
    return (
        f"Environment:\nzookeeper.version={VERSION}\nhost.name={platform.node()}\n"
        f"python.version={platform.python_version()}\nos.name={platform.system()}\nos.arch={platform.machine()}\n"
        f"os.version={platform.release()}\nuser.dir={os.getcwd()}\npython.executable={sys.executable}\n"
    )


def dump(server: EmbeddedServer) -> str:
    core = server.core
    ephemerals = core.tree.ephemerals
    owned = "".join(
        f"{session_id:#x}:\n" + "".join(f"\t{path}\n" for path in paths) for session_id, paths in ephemerals.items()
    )
    sessions = "".join(f"\t{session_id:#x}\n" for session_id in core.sessions.by_id)
    return (
        f"SessionTracker dump:\nSession Sets (1)/({len(core.sessions.by_id)}):\n{sessions}"
        f"ephemeral nodes dump:\nSessions with Ephemerals ({len(ephemerals)}):\n{owned}"
    )


def wchs(server: EmbeddedServer) -> str:
    data, children = server.core.watches.data, server.core.watches.children
    return (
        f"{len(data.by_watcher.keys() | children.by_watcher.keys())} connections watching "
        f"{len(data.by_path.keys() | children.by_path.keys())} paths\nTotal watches:{len(data) + len(children)}\n"
    )


def _figures(server: EmbeddedServer) -> str:
    core = server.core
    return (
        f"Latency min/avg/max: 0/0.0/0\nReceived: {sum(peer.received for peer in core.peers)}\n"
        f"Sent: {sum(peer.sent for peer in core.peers)}\nConnections: {len(core.peers)}\nOutstanding: 0\n"
        f"Zxid: {core.zxid:#x}\nMode: standalone\nNode count: {len(core.tree)}\n"
    )


def _clients(server: EmbeddedServer) -> str:
    lines = []
    for peer in server.core.peers:
        sid = f",sid={peer.session.session_id:#x},to={peer.session.timeout_ms}" if peer.session else ""
        lines.append(f" /{server.address(peer)}[1](queued=0,recved={peer.received},sent={peer.sent}{sid})\n")
    return "".join(lines)


WORDS: dict[bytes, Callable[[EmbeddedServer], str]] = {
    b"ruok": lambda _: "imok",
    b"isro": lambda _: "rw",
    b"srvr": srvr,
    b"stat": stat,
    b"cons": cons,
    b"conf": conf,
    b"mntr": mntr,
    b"envi": envi,
    b"dump": dump,
    b"wchs": wchs,
}
