"""Kernels: the functions that tasks name. Pure, synchronous, numbers in and numbers out.

    declaration    @kernel, a mark on a function    array, statistics, summaries, linalg, descent, probe   built-ins
                                                    prediction                     those on models
    registry       names -> kernels                        numpy_functions                numpy.<name>, by rule
    binding        JSON arguments -> checked arguments     calling                        what a worker calls
    current        current_task(), report()         rows                           rows to be kept where they are

Names are loaded when they are used: declaring a kernel imports no numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zkd.kernels.calling import Given, call, call_items
    from zkd.kernels.current import CurrentTask, NotInTask, current_task, report, running
    from zkd.kernels.declaration import kernel
    from zkd.kernels.registry import Kernel, LoadFault, Registry, load, of, signatures
    from zkd.kernels.rows import Rows

_HOMES = {
    "Given": "calling",
    "call": "calling",
    "call_items": "calling",
    "CurrentTask": "current",
    "NotInTask": "current",
    "current_task": "current",
    "report": "current",
    "running": "current",
    "kernel": "declaration",
    "Kernel": "registry",
    "LoadFault": "registry",
    "Registry": "registry",
    "Rows": "rows",
    "load": "registry",
    "of": "registry",
    "signatures": "registry",
}

__all__ = [
    "CurrentTask",
    "Given",
    "Kernel",
    "LoadFault",
    "NotInTask",
    "Registry",
    "Rows",
    "call",
    "call_items",
    "current_task",
    "kernel",
    "load",
    "of",
    "report",
    "running",
    "signatures",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
