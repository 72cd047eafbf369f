"""Kernels that benchmarks run on nodes: they say in a file when they ran, by a clock that all processes share."""

import os
import time

from zkd.kernels import current_task, kernel


def _append(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{text}\n".encode())
    finally:
        os.close(file)


@kernel
def traced(path: str, seconds: float) -> float:
    """Sleep, and leave a line at the beginning and one at the end: task, attempt, moment, which of the two."""
    task = current_task()
    _append(path, f"{task.id} {task.attempt} {time.monotonic():.6f} began")
    time.sleep(seconds)
    _append(path, f"{task.id} {task.attempt} {time.monotonic():.6f} ended")
    return seconds


@kernel
def unlucky(failures: int, how: str = "error") -> int:
    """Fail in the first so many attempts, by an exception or by the end of the process."""
    attempt = current_task().attempt
    if attempt <= failures:
        if how == "crash":
            os._exit(9)
        raise ValueError(f"attempt {attempt}, {failures} of them fail")
    return attempt


@kernel
def letters(count: int) -> str:
    """A value of this size."""
    return "x" * count
