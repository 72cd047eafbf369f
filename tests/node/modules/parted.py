"""Kernels for tests of tasks on datasets: they say where they ran, wait, fail on some rows, or give much."""

import mmap
import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from zkd.kernels import current_task, kernel


@kernel
def where(x: npt.NDArray[Any], seconds: float = 0.0) -> list:
    """The file that the column is a map of, whether it can be written, and the attempt."""
    time.sleep(seconds)
    base: Any = x
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert len(x) == 0 or isinstance(base.base, mmap.mmap), "no copy was expected"
    return [str(getattr(base, "filename", "")), x.flags.writeable, current_task().attempt]


@kernel
def slow_sum(x: npt.NDArray[np.float64], seconds: float, path: str = "") -> float:
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, f"{os.getpid()}\n".encode())
        os.close(fd)
    time.sleep(seconds)
    return float(x.sum())


@kernel
def picky(rows: npt.NDArray[np.int64], bad: int) -> int:
    """Fail on the part with this row."""
    if bad in rows:
        raise ValueError(f"row {bad} is bad")
    return len(rows)


@kernel
def much(rows: npt.NDArray[np.int64], size: int = 200_000) -> npt.NDArray[np.int64]:
    """More than a znode takes."""
    return np.full(size, rows.sum())


@kernel
def add_all(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.sum(parts, axis=0)


@kernel
def table(columns: dict[str, npt.NDArray[Any]], factor: int) -> dict[str, float]:
    return {name: float(column.sum()) * factor for name, column in columns.items()}


@kernel
def crash(x: npt.NDArray[Any], path: str) -> int:
    """End the process in the first run of each part."""
    trace = f"{path}.{current_task().id.rpartition('.')[2]}"
    if not os.path.exists(trace):
        open(trace, "x").close()
        os.abort()
    return len(x)
