"""Kernels that compute nothing: to see that a cluster works, how fast it is, and how it treats trouble."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec

from zkd.kernels.current import report
from zkd.kernels.declaration import kernel

SLEEP_STEPS_S = 0.1  # how often a sleeping task says how far it is


@kernel
def identity(value: Any) -> Any:
    """Return `value` as it came."""
    return value


@kernel
def echo(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return all arguments: ``{"args": [...], "kwargs": {...}}``, as a kernel sees them."""
    return {"args": list(args), "kwargs": kwargs}


@kernel
def sleep(seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)]) -> float:
    """Wait for so many seconds, reporting progress, and return them."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if seconds > SLEEP_STEPS_S:
            report(max(0.0, 1.0 - left / seconds))
        time.sleep(min(left, SLEEP_STEPS_S))
    return seconds
