"""Worker processes: the one room that starts, feeds, times out, kills and recycles them.

    daemon ── socketpair per worker ──> worker, worker, ... (forked, one task in flight each)
       └───── control socket ─────────> fork server (numpy and the kernels loaded once)

The daemon's side (`pool`, `worker`, `server`, `output`) never imports numpy, starts no thread and never
forks; the other side (`forkserver`, `child`, `confine`) never imports asyncio. A kernel may do whatever it
likes to its process: exactly one task pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zkd.records import KernelSignature
    from zkd.workers.call import (
        BlobFile,
        Call,
        Cancelled,
        ColumnFiles,
        Died,
        Failed,
        Finished,
        Lacking,
        Limits,
        ModuleFault,
        Outcome,
        PartFiles,
        Rejected,
        TimedOut,
    )
    from zkd.workers.pool import Pool

__all__ = [
    "BlobFile",
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
    "Pool",
    "Rejected",
    "TimedOut",
]


def __getattr__(name: str) -> Any:
    # Lazy, because the fork server is part of this package and must not pay for the pool's asyncio:
    # every page it holds is held by all workers.
    if name == "Pool":
        from zkd.workers.pool import Pool

        return Pool
    if name in __all__:
        from zkd.workers import call

        return getattr(call, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
