"""Asks one source after the other for the same thing, and a second one beside the first when that is slow.

How slow is too slow follows from how long such things have taken lately. The first good answer counts; whoever is
still at it then is stopped. Every answer is checked by who asks, so it does not matter whose it is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from statistics import median
from typing import Generic, TypeVar

from zkd.errors import DataContradicts, DataDamaged, DataUnavailable

S = TypeVar("S")
T = TypeVar("T")

KNOWN = 32  # how many of the last ones count
FIRST_DELAY_S = 1.0  # when none is known
DELAY_S_MIN = 0.05
DELAY_S_MAX = 10.0
LATE = 3.0  # times what it should take
# What a small thing takes, as bytes: 1 ms at 256 MB/s.
FIXED_BYTES = 256 * 1024


class Pace:
    """How long things of some size take, by the last of them."""

    def __init__(self) -> None:
        self._s_per_byte: deque[float] = deque(maxlen=KNOWN)

    def took(self, size: int, seconds: float) -> None:
        self._s_per_byte.append(seconds / (size + FIXED_BYTES))

    def delay_s(self, size: int) -> float:
        """When something of this size is late."""
        if not self._s_per_byte:
            return FIRST_DELAY_S
        return min(DELAY_S_MAX, max(DELAY_S_MIN, LATE * median(self._s_per_byte) * (size + FIXED_BYTES)))


class _Answer(Generic[S, T]):
    def __init__(self, source: S, value: T | None, fault: Exception | None) -> None:
        self.source, self.value, self.fault = source, value, fault


async def first_good(sources: Iterable[S], ask: Callable[[S], Awaitable[T]], pace: Pace, size: int, what: str) -> T:
    """The first answer that is not `DataUnavailable` or `DataDamaged`; `DataUnavailable` with all faults if none is.
    `DataContradicts` of any of them is the answer of all.

    Each of the others is bounded in time by itself, and so is the whole.
    """
    faults: list[str] = []
    value = await _first_good(iter(sources), ask, pace, size, faults)
    if isinstance(value, DataContradicts):
        raise value
    if value is None:
        raise DataUnavailable(f"{what}: " + ("; ".join(faults) or "no node that is here serves it"))
    return value[0]


async def _first_good(
    sources: Iterable[S], ask: Callable[[S], Awaitable[T]], pace: Pace, size: int, faults: list[str]
) -> tuple[T] | DataContradicts | None:
    now = asyncio.get_running_loop().time
    answers: asyncio.Queue[_Answer[S, T]] = asyncio.Queue()

    async def one(source: S) -> None:
        began = now()
        try:
            value = await ask(source)
        except (DataUnavailable, DataDamaged) as error:
            answers.put_nowait(_Answer(source, None, error))
        else:
            pace.took(size, now() - began)
            answers.put_nowait(_Answer(source, value, None))

    async with asyncio.TaskGroup() as tasks:
        running: list[asyncio.Task[None]] = []
        in_flight = 0
        waiting = iter(sources)
        is_more = True
        while True:
            source = next(waiting, None) if is_more else None
            if source is not None:
                running.append(tasks.create_task(one(source)))
                in_flight += 1
            else:
                is_more = False
            if not in_flight:
                return None
            try:
                async with asyncio.timeout(pace.delay_s(size) if is_more else None):
                    answer = await answers.get()
            except TimeoutError:
                continue  # late: ask another one, too
            in_flight -= 1
            if answer.fault is None or isinstance(answer.fault, DataContradicts):
                for task in running:
                    task.cancel()
            if isinstance(answer.fault, DataContradicts):
                return answer.fault
            if answer.fault is None:
                return (answer.value,)  # type: ignore[return-value]  # no fault, so it is a value
            faults.append(f"{answer.source}: {answer.fault}")
