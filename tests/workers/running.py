"""What the tests of this room share: a pool with unruly kernels, and a log that keeps what it is told."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from zkd.workers import Call, Limits, Outcome, Pool

MODULES = Path(__file__).parent / "modules"


class Log:
    """Keeps the events, as the daemon's log would."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    debug = warning = error = info

    def lines(self, event: str) -> list[str]:
        return [fields["line"] for name, fields in self.events if name == event]


@asynccontextmanager
async def open_pool(
    path: Path, size: int = 2, *, modules: tuple[str, ...] = ("unruly",), log: Any = None, **limits: Any
) -> AsyncIterator[Pool]:
    limits.setdefault("grace_s", 0.2)
    async with Pool(size, blob_dir=path, modules=modules, limits=Limits(**limits), log=log or Log()) as pool:
        yield pool


def call(kernel: str, *args: Any, **fields: Any) -> Call:
    return Call(kernel=kernel, args=json.dumps(args).encode(), task_id=fields.pop("task_id", kernel), **fields)


async def run(pool: Pool, kernel: str, *args: Any, timeout_s: float | None = 20.0, **fields: Any) -> Outcome:
    return await pool.run(call(kernel, *args, **fields), timeout_s=timeout_s)


async def until(condition: Callable[[], Any], within_s: float = 10.0) -> None:
    """Wait for a condition that no event tells of, such as the end of another process."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Whether this process runs; one that has ended and was not reaped does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
