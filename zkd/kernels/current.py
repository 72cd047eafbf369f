"""What a kernel can learn about its own run, and how it says how far it is.

The worker enters the task here before it calls the kernel; the kernel asks. A context variable, so that
threads which a kernel starts with `contextvars.copy_context()` see their own task, and plain calls none.
Nothing here talks to anyone: `report` hands its words to the worker, which sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from zkd.errors import ZkdError

NOTE_MAX = 256  # characters; a note is a line in a status, not a log

Report: TypeAlias = Callable[[float | None, str | None], None]


@dataclass(frozen=True, slots=True)
class CurrentTask:
    """The run that a kernel is in. `fence` grows with every attempt: give it to what you write to.

    `numbers` gives the number of each row of the part that it works on, (n,); None if it works on no part.
    """

    id: str
    attempt: int
    fence: str
    report: Report | None = field(default=None, repr=False, compare=False)
    numbers: Callable[[], Any] | None = field(default=None, repr=False, compare=False)


class NotInTask(ZkdError, LookupError):
    """`current_task()` was called outside a worker, where there is no task."""


_current: ContextVar[CurrentTask | None] = ContextVar("zkd.current_task", default=None)


def current_task() -> CurrentTask:
    """The task that this kernel runs for. Raises `NotInTask` where a kernel is called as a plain function."""
    task = _current.get()
    if task is None:
        raise NotInTask("there is no task here: current_task() works inside a kernel that a worker runs")
    return task


def report(fraction: float | None = None, note: str | None = None) -> None:
    """Say how far this kernel is: a fraction from 0 to 1, a note of one line, or both.

    Shown in the node's status and streamed to who waits. Outside a worker it does nothing, so that a
    kernel stays a plain function. Raises `ValueError` for a fraction outside of 0 to 1.
    """
    if fraction is not None and not 0.0 <= fraction <= 1.0:  # NaN fails this, too
        raise ValueError(f"expected a fraction from 0 to 1, got {fraction!r}")
    task = _current.get()
    if task is not None and task.report is not None:
        shown = None if note is None else " ".join(str(note).split())[:NOTE_MAX]
        task.report(None if fraction is None else float(fraction), shown)


@contextmanager
def running(task: CurrentTask) -> Iterator[None]:
    """For the worker: everything inside runs for this task."""
    token = _current.set(task)
    try:
        yield
    finally:
        _current.reset(token)
