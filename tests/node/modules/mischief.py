"""Kernels for tests of whole nodes: some leave traces in files, some do what kernels should not."""

import ctypes
import os
import signal
import time

import numpy

from zkd.kernels import current_task, kernel


def _append(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


@kernel
def note(path: str, text: str) -> str:
    """Leave one line."""
    _append(path, text)
    return text


@kernel
def nap(seconds: float, path: str = "") -> float:
    """Leave this process's id, then sleep."""
    if path:
        _append(path, str(os.getpid()))
    time.sleep(seconds)
    return seconds


@kernel
def who() -> list:
    task = current_task()
    return [task.id, task.attempt, task.fence]


@kernel
def unlucky(path: str, failures: int, how: str = "error") -> int:
    """Fail so many times, then give how often it was tried."""
    _append(path, str(current_task().attempt))
    with open(path) as file:
        tries = len(file.readlines())
    if tries <= failures:
        if how == "error":
            raise ValueError(f"try {tries} of {failures}")
        if how == "crash":
            os._exit(9)
        time.sleep(60)
    return tries


@kernel
def exit_process() -> None:
    os._exit(3)


@kernel
def segfault() -> None:
    ctypes.string_at(0)


@kernel
def loop() -> None:
    while True:
        pass


@kernel
def stick_in_c() -> None:
    ctypes.PyDLL(None).sleep(600)


@kernel
def ignore_sigterm(path: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _append(path, str(os.getpid()))
    while True:
        time.sleep(60)


@kernel
def eat_memory() -> int:
    kept = []
    while True:
        kept.append(numpy.ones(2**22))


@kernel
def rows(count: int) -> numpy.ndarray:
    return numpy.arange(count, dtype=float)


@kernel
def total(array: numpy.ndarray) -> float:
    return float(array.sum())


@kernel
def words(count: int) -> list:
    return ["word"] * count


@kernel
def unlucky_nap(path: str, first: float, then: float) -> float:
    """Sleep for one time in a task's first run, and for another in each that follows."""
    task = current_task()
    with open(path, "a+") as file:
        file.seek(0)
        was_here = any(line.split()[0] == task.id for line in file.read().splitlines())
    _append(path, f"{task.id} {os.getpid()}")
    time.sleep(then if was_here else first)
    return then if was_here else first
