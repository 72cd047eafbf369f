"""The tasks of a run: what each asks for, and how each has to end. Pure; submitters and judges share it.

Every task carries its key, which is unlike any other's, so that what came out can be told apart even where
nobody learned the id: a sequential znode whose creation was never answered, say.
"""

from __future__ import annotations

import hashlib
import io
import random
from functools import lru_cache
from typing import Any

import numpy

# Per thousand. Poison is rare, as it is in life, and costs a worker each time.
MIX = {
    "steps": 900,  # a pure function of its arguments
    "nap": 57,  # the same, but it takes a while: something to interrupt
    "big": 3,  # its value is too large for a znode and goes to a file
    "flaky": 12,  # its first attempt kills the process, the next is well
    "exit_process": 4,  # os._exit, always
    "segfault": 3,
    "endless": 3,  # runs into its time limit
    "hungry": 3,  # eats memory until there is none
    "unknown": 8,  # a kernel that nobody has
    "garbage": 7,  # bytes that are no task
}
POISON = {
    "exit_process": {"crash"},
    "segfault": {"crash"},
    "endless": {"timeout", "crash"},
    "hungry": {"MemoryError", "crash"},
}
POISON_RETRIES = 1
RETRIES = 4  # of the innocent: a worker that is killed from outside is a crash, too, and charged
ENDLESS_S = 0.4
HUNGRY_BYTES = 96 * 2**20
TTL_S = 4 * 3600.0  # longer than any run: the judge reads the results at its end

GARBAGE = (
    b"",
    b"{",
    b"\xff\xfe",
    b'{"kernel": 7}',
    b'{"kernel": "steps", "priority": "high"}',
    b"[[[[[[",
    b'{"a": NaN}',
)


def value_of(key: str, n: int) -> dict[str, Any]:
    """What `steps` and its like give: anybody can compute it again."""
    x = n
    for _ in range(200):
        x = (x * 6364136223846793005 + 1442695040888963407) % 2**64
    return {"key": key, "value": x % 2**53}


def big_of(n: int) -> numpy.ndarray:
    """What `big` gives: 320 kB."""
    return numpy.arange(n % 1000, n % 1000 + 40_000, dtype=float)


@lru_cache(maxsize=1000)
def big_sha256(n: int) -> str:
    """The sha256 of the .npy file that holds it."""
    file = io.BytesIO()
    numpy.save(file, big_of(n))
    return hashlib.sha256(file.getvalue()).hexdigest()


def pick(rng: random.Random) -> str:
    return rng.choices(list(MIX), list(MIX.values()))[0]


def task_of(kind: str, key: str, n: int) -> dict[str, Any]:
    """The task as JSON has it. Garbage has none; see `bytes_of`."""
    task: dict[str, Any] = {"kernel": kind, "args": [key, n], "ttl_s": TTL_S}
    if kind == "endless":
        task["timeout_s"] = ENDLESS_S
    if kind == "hungry":
        task["memory"] = HUNGRY_BYTES
    if kind == "unknown":
        task["kernel"] = "absent"
    if (retries := retries_of(kind)) > 0:
        task["retries"] = retries
    return task


def retries_of(kind: str) -> int:
    if kind in ("exit_process", "segfault"):
        return POISON_RETRIES
    return RETRIES if kind in ("steps", "nap", "big", "flaky") else 0


def garbage_of(n: int) -> bytes:
    return GARBAGE[n % len(GARBAGE)]


def statuses_of(kind: str) -> str:
    """How a task of this kind ends if nobody cancels it."""
    if kind in POISON:
        return "failed"
    return "rejected" if kind in ("unknown", "garbage") else "done"
