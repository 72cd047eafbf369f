"""The values that go into the pool and come out of it.

A run has one `Outcome`, whatever happens to its process: an outcome is a value, not an exception, because
a kernel's failure is an everyday fact and not a failure of ours. JSON stays text here; only the worker
looks inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from zkd.records import RESULT_INLINE_BYTES_MAX, KernelSignature

BlobFormat = Literal["npy", "json"]

__all__ = [
    "BlobFile",
    "BlobFormat",
    "Call",
    "Cancelled",
    "ColumnFiles",
    "Died",
    "Failed",
    "Finished",
    "KernelSignature",
    "Lacking",
    "Limits",
    "ModuleFault",
    "Outcome",
    "PartFiles",
    "Rejected",
    "TimedOut",
]


class ColumnFiles(Struct, frozen=True, array_like=True):
    """One column of a part of a dataset: npy files, which one behind the other are its rows."""

    name: str
    dtype: str
    shape: list[int]  # of one row
    files: list[str]


class PartFiles(Struct, frozen=True, array_like=True):
    """The part of a dataset that a run works on: arrays that come before `args`, or one object of them all."""

    columns: list[ColumnFiles]
    is_table: bool
    numbers: ColumnFiles | None = None  # which row of the dataset each is


class Call(Struct, frozen=True, kw_only=True):
    """One run of a kernel, as raw JSON text."""

    kernel: str
    args: bytes = b"[]"  # a JSON array: the positional arguments
    kwargs: bytes = b"{}"  # a JSON object: the named arguments
    items: bytes | None = None  # a JSON array: one call an item, the item is the first argument
    files: dict[str, str] = {}  # sha256 of a blob among the arguments -> the local file that holds it
    part: PartFiles | None = None
    task_id: str = ""
    attempt: int = 1
    fence: str = ""
    memory: int | None = None  # bytes that this run may allocate; None: what the pool's `Limits` say
    inline_max: int = RESULT_INLINE_BYTES_MAX  # a longer JSON value becomes a blob file


class BlobFile(Struct, frozen=True):
    """A result in a file of its own in the pool's `blob_dir`, synced to disk. Whoever gets this owns the file."""

    path: Path
    sha256: str
    size: int
    format: BlobFormat


class Finished(Struct, frozen=True):
    """The kernel returned. Exactly one of `value` (JSON text) and `blob` is there."""

    value: bytes | None
    blob: BlobFile | None
    run_s: float


class Rejected(Struct, frozen=True):
    """The call was wrong before the kernel began: no such kernel, or arguments that are not what they should be."""

    path: str  # the place, such as ``$.args[1]``
    message: str


class Lacking(Struct, frozen=True):
    """The part of the dataset cannot be read: its files are not there, or not what they should be. Nothing was run."""

    message: str


class Failed(Struct, frozen=True):
    """The kernel raised; `kind` is the exception's type. The worker lives on."""

    kind: str
    message: str
    traceback: str
    run_s: float


class TimedOut(Struct, frozen=True):
    """The run was stopped because it had run for `after_s` seconds."""

    after_s: float


class Died(Struct, frozen=True):
    """The worker process ended in the middle of the run; `how` is a sentence for people."""

    how: str
    run_s: float


class Cancelled(Struct, frozen=True):
    """The run was stopped by `Pool.cancel` or by the pool's end; 0 seconds if it had not begun."""

    run_s: float


Outcome: TypeAlias = Finished | Rejected | Lacking | Failed | TimedOut | Died | Cancelled


class ModuleFault(Struct, frozen=True):
    """A module of kernels that could not be loaded. The pool goes on without it."""

    module: str
    message: str


class Limits(Struct, frozen=True, kw_only=True):
    """What workers may use, and when they are replaced by fresh ones."""

    memory: int | None = None  # bytes that a run may allocate, where its call does not say
    blas_threads: int = 1  # more than one a worker only pays on nodes with few workers and many cores
    grace_s: float = 1.0  # between SIGTERM and SIGKILL
    recycle_tasks: int = 100_000
    recycle_age_s: float = 3600.0
    writable: tuple[Path, ...] | None = None  # shut in: kernels change no file elsewhere; None: not shut in
    recycle_growth: int = 256 * 1024 * 1024  # bytes of private memory that stay after a run


def blob_name(pool: str, worker: int, run: int) -> str:
    """The name without suffix of a run's blob file: known to both sides beforehand, and nobody else's."""
    return f"{pool}-{worker}-{run}"
