"""The kernels of the chaos runs. Each writes down that it began and that it came to its end.

The ledger is one file a node, opened for appending, one write a line: what a killed process had written stays.
"""

import ctypes
import os
import time

import numpy

from tests.chaos.work import big_of, value_of
from zkd.kernels import current_task, kernel

LEDGER = os.environ["CHAOS_LEDGER"]


def _write(mark: str) -> None:
    task = current_task()
    line = f"{mark} {task.id} {task.attempt} {task.fence} {os.getpid()} {time.monotonic():.6f}\n"
    fd = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _ended(value: dict) -> dict:
    _write("end")
    return value


@kernel
def steps(key: str, n: int) -> dict:
    _write("start")
    return _ended(value_of(key, n))


@kernel
def nap(key: str, n: int) -> dict:
    _write("start")
    time.sleep(0.02 + n % 8 * 0.04)
    return _ended(value_of(key, n))


@kernel
def big(key: str, n: int) -> numpy.ndarray:
    _write("start")
    array = big_of(n)
    _write("end")
    return array


@kernel
def flaky(key: str, n: int) -> dict:
    """The first attempt, whatever ends it, is not the last."""
    _write("start")
    if current_task().attempt == 1:
        os._exit(9)
    return _ended(value_of(key, n))


@kernel
def exit_process(key: str, n: int) -> None:
    _write("start")
    os._exit(n % 4)


@kernel
def segfault(key: str, n: int) -> None:
    _write("start")
    ctypes.string_at(0)


@kernel
def endless(key: str, n: int) -> None:
    _write("start")
    while True:
        pass


@kernel
def hungry(key: str, n: int) -> None:
    _write("start")
    kept = []
    while True:
        kept.append(numpy.ones(2**20))
