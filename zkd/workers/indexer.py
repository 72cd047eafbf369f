"""Makes indexes of keys in a process of its own, which has numpy and ends when it is done.

    python -m zkd.workers.indexer <pid of the daemon>      jobs as JSON lines on stdin: [column's file, index's file]

Only the daemon says which files: no task can.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from zkd.errors import NoWorkers
from zkd.workers.confine import confine, die_with_parent, name_process

SECONDS_MAX = 600.0  # of 10^9 keys


async def make_indexes(jobs: Sequence[tuple[Path, Path]]) -> None:
    """Make them all; raises `NoWorkers` with what the process said if it did not."""
    lines = "".join(json.dumps([str(column), str(target)]) + "\n" for column, target in jobs)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "zkd.workers.indexer",
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            _, said = await process.communicate(lines.encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip().rpartition("\n")[2][:500]
        raise NoWorkers(f"no index of keys was made: {words or f'exit code {process.returncode}'}")


def main(parent: int) -> None:
    die_with_parent(parent)
    name_process("zkd-indexer")
    confine()
    from zkd.tables.key_index import build

    for line in sys.stdin:
        column, target = json.loads(line)
        build(Path(column), Path(target))


if __name__ == "__main__":
    main(int(sys.argv[1]))
