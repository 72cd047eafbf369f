"""Virtual time: an event loop without a selector, in which everything that happens is chosen by a seed.

Several *machines* share it, each as if it had an asyncio loop of its own: handles of one machine run in the
order in which they became ready, I/O after them, then timers, as asyncio promises and the product relies on;
which machine has its turn next, and how long that takes, is drawn. A machine is known by a context variable,
so that whatever the product schedules belongs to the machine whose code scheduled it. It can be paused (time
goes on, bytes and timers pile up), suspended (its monotonic clock stands still, too) and crashed (nothing of it
ever runs again).

What is no machine (network, ZooKeeper, faults) is a plain callback at a time: `Loop.at`.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from itertools import count
from random import Random
from typing import Any

MACHINE: ContextVar[Machine] = ContextVar("machine")

TURN_S = (2e-5, 1e-4)  # what a turn of a machine's loop takes: at least, and at most that much more
HICCUP_S = 0.02  # now and then one takes up to so long: a garbage collection, a busy neighbour
INFINITY = float("inf")


class Power(Enum):
    ON = "on"
    PAUSED = "paused"
    CRASHED = "crashed"


class Handle:
    """What `call_soon` and `call_at` return: a callback that may still be cancelled."""

    __slots__ = ("args", "at", "callback", "context", "is_cancelled")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context, at: float) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = context
        self.at = at
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.at


class Machine:
    """One computer: its ready queue, its timers and its monotonic clock."""

    def __init__(self, loop: Loop, name: str, rng: Random, *, hiccups: float = 0.0) -> None:
        self.loop = loop
        self.name = name
        self.rng = rng
        self.hiccups = hiccups
        self.power = Power.ON
        self.context = Context()
        self.context.run(MACHINE.set, self)
        self.wall_offset_s = 0.0
        self.slept_s = 0.0  # how far the monotonic clock is behind for having been suspended
        self.paused_at = 0.0
        self.resumed_at = 0.0
        self.handles = 0  # run so far
        self.crash_at_handle = 0
        self.ready: deque[Handle] = deque()
        self.timers: list[tuple[float, float, Handle]] = []
        self._arrived: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._next_at = INFINITY
        self._is_suspended = False

    def __repr__(self) -> str:
        return self.name

    # --- what it does -----------------------------------------------------------------------------------

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task of this machine."""
        return self.context.run(self.loop.create_task, coroutine)

    def deliver(self, callback: Callable[..., object], *args: Any) -> None:
        """Something arrived from outside; the machine sees it in its next turn, after what was ready before."""
        if self.power is not Power.CRASHED:
            self._arrived.append((callback, args))
            self.schedule(self.loop.now + self.cost_s())

    def soon(self, handle: Handle) -> None:
        if self.power is not Power.CRASHED:
            if not self.ready:
                self.schedule(self.loop.now + self.cost_s())
            self.ready.append(handle)

    def later(self, handle: Handle) -> None:
        if self.power is not Power.CRASHED:
            heapq.heappush(self.timers, (handle.at, self.rng.random(), handle))
            # No sooner than a turn takes: a loop in which time stands still would turn for ever.
            self.schedule(max(handle.at + self.slept_s, self.loop.now + TURN_S[0]))

    def cost_s(self) -> float:
        low, more = TURN_S
        cost = low + more * self.rng.random()
        if self.hiccups and self.rng.random() < self.hiccups:
            cost += HICCUP_S * self.rng.random()
        return cost

    def schedule(self, at: float) -> None:
        if at < self._next_at and self.power is Power.ON:
            self._next_at = at
            self.loop.at(at, self._turn, at)

    def _turn(self, at: float) -> None:
        """One turn of an asyncio loop: what was ready, what arrived, what is due; not what comes up meanwhile."""
        if at != self._next_at or self.power is not Power.ON:
            return
        loop, ready, timers = self.loop, self.ready, self.timers
        self._next_at = INFINITY
        while self._arrived:
            callback, args = self._arrived.popleft()
            ready.append(Handle(callback, args, self.context, 0.0))
        now = loop.now - self.slept_s
        while timers and (timers[0][0] <= now or timers[0][2].is_cancelled):
            handle = heapq.heappop(timers)[2]
            if not handle.is_cancelled:
                ready.append(handle)
        loop.machine = self
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.is_cancelled:
                continue
            self.handles += 1
            if self.handles == self.crash_at_handle:
                self.crash()
            try:
                handle.context.run(handle.callback, *handle.args)  # type: ignore[arg-type]
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # as asyncio does; the world takes note
                loop.call_exception_handler({"message": "exception in a callback", "exception": error})
            if self.power is not Power.ON:
                break
        loop.machine = None
        if ready or self._arrived:
            self.schedule(loop.now + self.cost_s())
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        if timers:
            self.schedule(max(timers[0][0] + self.slept_s, loop.now + TURN_S[0]))

    # --- what happens to it -----------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        return self.power is not Power.CRASHED

    def pause(self, *, suspend: bool = False) -> None:
        if self.power is Power.ON:
            self.power = Power.PAUSED
            self.paused_at = self.loop.now
            self._is_suspended = suspend

    def resume(self) -> None:
        if self.power is Power.PAUSED:
            self.power = Power.ON
            self.resumed_at = self.loop.now
            if self._is_suspended:
                self.slept_s += self.loop.now - self.paused_at
            self._next_at = INFINITY
            self.schedule(self.loop.now)
            self.loop.on_resume(self)

    def crash(self) -> None:
        """Nothing of it runs any more. Its coroutines are kept until the end of the world: closing them would
        run their `finally` blocks, which a dead machine does not."""
        if self.power is not Power.CRASHED:
            self.power = Power.CRASHED
            self.loop.on_crash(self)


class Task(asyncio.Task):  # type: ignore[type-arg]
    """A task whose hash is its number: a TaskGroup keeps a set, whose order must not depend on addresses."""

    def __init__(self, *args: Any, number: int, machine: Machine | None, **kwargs: Any) -> None:
        self.number = number
        self.machine = machine
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self.number


class Future(asyncio.Future):  # type: ignore[type-arg]
    number = 0
    machine: Machine | None = None

    def __hash__(self) -> int:
        if not self.number:
            self.number = next(self.get_loop().numbers)  # type: ignore[attr-defined]
        return self.number


class Loop(asyncio.BaseEventLoop):
    def __init__(self, rng: Random) -> None:
        self.is_over = True
        super().__init__()
        self.is_over = False
        self.rng = rng
        self.now = 0.0
        self.numbers = count(1)
        self.machine: Machine | None = None  # whose turn it is
        self.on_exception: Callable[[dict[str, Any]], None] = lambda context: None
        self.on_crash: Callable[[Machine], None] = lambda machine: None
        self.on_resume: Callable[[Machine], None] = lambda machine: None
        self.connect: Callable[[Machine, str, int], Any]
        self.is_stopped = False
        self._heap: list[tuple[float, float, Callable[..., object], tuple[Any, ...]]] = []
        self._drawn = rng.random

    # --- the world's own time ---------------------------------------------------------------------------

    def at(self, at: float, callback: Callable[..., object], *args: Any) -> None:
        """Call this at that time. What falls on the same moment comes in a drawn order."""
        heapq.heappush(self._heap, (at, self._drawn(), callback, args))

    def after(self, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        self.at(self.now + seconds, callback, *args)

    def run(self, until: float = INFINITY) -> None:
        """Let things happen until somebody sets `is_stopped`, or until that time."""
        heap, pop = self._heap, heapq.heappop
        self.is_stopped = False
        events._set_running_loop(self)
        try:
            while heap and heap[0][0] <= until and not self.is_stopped:
                at, _, callback, args = pop(heap)
                if at > self.now:
                    self.now = at
                callback(*args)
        finally:
            events._set_running_loop(None)

    # --- what asyncio and the product ask of a loop -------------------------------------------------------

    def time(self) -> float:
        machine = self.machine
        return self.now if machine is None else self.now - machine.slept_s

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:
        machine = self.machine if context is None else context[MACHINE]
        handle = Handle(callback, args, context or copy_context(), 0.0)
        if not self.is_over:
            assert machine is not None
            machine.soon(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        machine = self.machine if context is None else context[MACHINE]
        handle = Handle(callback, args, context or copy_context(), when)
        if not self.is_over:
            assert machine is not None
            machine.later(handle)
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_future(self) -> Any:
        future = Future(loop=self)
        future.machine = self.machine
        return future

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        machine = self.machine or MACHINE.get(None)
        return Task(coro, loop=self, name=name, context=context, number=next(self.numbers), machine=machine)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """There are no threads here; what the product sends to one is short."""
        future = self.create_future()
        future.set_result(func(*args))
        return future

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        assert self.machine is not None
        return await self.connect(self.machine, host, port)(factory)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.on_exception(context)

    def is_running(self) -> bool:
        return not self.is_over

    def get_debug(self) -> bool:
        return False
