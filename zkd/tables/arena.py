"""Memory for what comes in many pieces and is needed together for a while.

Memory that is had for the first time costs several times what filling it does, unless it is had in blocks of some MiB,
which the kernel gives as huge pages. A block is used again when nothing that lies in it is used any more.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np

from zkd.arrays.dtypes import Array

BLOCK_BYTES = 32 * 2**20
ALIGNMENT = 64


class Arena:
    """Room for `size` bytes in all, if that is known, or for any number. Threads may share one."""

    def __init__(self, size: int = BLOCK_BYTES) -> None:
        self._block_bytes = min(BLOCK_BYTES, size)
        self._block = memoryview(b"")
        self._at = 0
        self._free: list[Array] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> memoryview:
        """Room for so many bytes, whatever they are now. `MemoryError` if there is none."""
        if size > self._block_bytes // 4:
            return np.empty(size, np.uint8).data
        with self._lock:
            if self._at + size > len(self._block):
                self._block, self._at = self._next_block(), 0
            start = self._at
            self._at += -(-size // ALIGNMENT) * ALIGNMENT
            return self._block[start : start + size]

    def _next_block(self) -> memoryview:
        block = self._free.pop() if self._free else np.empty(self._block_bytes, np.uint8)
        lent = block[:]  # what lies there refers to this one
        weakref.finalize(lent, self._free.append, block).atexit = False
        return lent.data
