"""`python -m zkd.zk.server --port P`: an embedded server in a process of its own, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal

from zkd.zk.server import EmbeddedServer


async def serve(host: str, port: int, tick_s: float) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for end in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(end, over.set)
    async with EmbeddedServer(host, port, tick_s) as server:
        print(f"in-memory ZooKeeper on {server.connect_string}, for development: nothing is kept", flush=True)
        await over.wait()  # without a bound: that is what a server does


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m zkd.zk.server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2181, help="0 takes a free one and prints it")
    parser.add_argument("--tick-s", type=float, default=0.5, help="session timeouts are at least two of these")
    options = parser.parse_args()
    asyncio.run(serve(options.host, options.port, options.tick_s))


if __name__ == "__main__":
    main()
