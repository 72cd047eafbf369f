"""Blocking work, in threads, for the event loop. Its owner does not let go of it before it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


async def in_thread(where: Executor | None, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do this in a thread. Who is cancelled meanwhile waits for its end, so that each file has one user.

    So `work` has to be short: some MiB, or as long as a disk takes to sync.
    """
    future = asyncio.get_running_loop().run_in_executor(where, partial(work, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait({future})
        raise


async def one_ahead(where: Executor | None, items: Iterator[T], work: Callable[[T], R]) -> AsyncGenerator[tuple[T, R]]:
    """Each item and what `work` makes of it in a thread; of the next one already while the caller has this one."""
    loop = asyncio.get_running_loop()
    item = next(items, None)
    future = None if item is None else loop.run_in_executor(where, work, item)
    try:
        while item is not None and future is not None:
            result = await asyncio.shield(future)
            this, item = item, next(items, None)
            future = None if item is None else loop.run_in_executor(where, work, item)
            yield this, result
    finally:
        if future is not None:
            await asyncio.wait({future})
            future.exception()  # if there is one, nobody wants to know it any more
