"""Large arrays go ahead of their task: as a file to some node, and by reference in the arguments.

A task znode holds half a megabyte. An array beyond that is sent to a node's data plane first, which checks it
against its sha256 and keeps a copy for a while; the node that runs the task maps that file, or fetches it from
the one that has it. Whoever may read ``control/token`` may send.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import tempfile
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from zkd.errors import ResultLost, Unavailable
from zkd.records import BlobRef

if TYPE_CHECKING:
    from zkd.client.outcomes import Blobs
    from zkd.paths import NodeId
    from zkd.records import Node

REFER_FROM_BYTES = 64 * 1024  # a smaller array is not worth a round trip of its own
DEPTH_MAX = 16
SEND_S, SLOW_BYTES_S = 10.0, 4e6  # a node that takes longer is frozen, or as good as that


class Uploads:
    """Sends arrays to nodes. `nodes` and `token` are read from the tree when they are needed."""

    def __init__(
        self, blobs: Blobs, nodes: Callable[[], Awaitable[dict[NodeId, Node]]], token: Callable[[], Awaitable[str]]
    ) -> None:
        self._blobs = blobs
        self._nodes = nodes
        self._token = token

    async def refer(self, value: Any) -> Any:
        """`value` with each large array in it, also within lists and dicts, sent ahead and referred to.

        Raises `Unavailable` when no node takes one.
        """
        sent: dict[int, Any] = {}
        for array in _large_arrays(value, DEPTH_MAX):
            if id(array) not in sent:
                sent[id(array)] = msgspec.to_builtins(await self._send(array))
        return _replaced(value, sent, DEPTH_MAX)

    async def send(self, data: bytes, copies: int) -> Any:
        """A reference to these bytes, an array of uint8, that lies on so many nodes if there are as many."""
        import numpy as np

        return msgspec.to_builtins(await self._send(np.frombuffer(data, np.uint8), copies))

    async def _send(self, array: Any, copies: int = 1) -> BlobRef:
        with tempfile.TemporaryDirectory(prefix="zkd-") as directory:
            path = os.path.join(directory, "array.npy")
            return await self._put(path, *_write(array, path), copies)

    async def _put(self, path: str, digest: str, size: int, copies: int) -> BlobRef:
        token = await self._token()
        nodes = [(name, node.address) for name, node in (await self._nodes()).items() if node.address]
        random.shuffle(nodes)
        faults: list[str] = []
        sent: dict[NodeId, str] = {}
        for name, address in nodes:
            if len(sent) == copies:
                break
            url = f"{address}/v1/blobs/{digest}"
            try:
                async with asyncio.timeout(SEND_S + size / SLOW_BYTES_S):
                    await self._blobs.send(f"{url}?format=npy", path, token)
            except (ResultLost, TimeoutError) as error:
                faults.append(f"{name}: {str(error) or 'it does not take it'}")
                continue
            sent[name] = url
        if sent:
            return BlobRef(digest, size, "npy", sent)
        why = "; ".join(faults) or "no node serves HTTP"
        raise Unavailable(None, f"an argument of {size} bytes could not be sent ahead: {why}")


def _write(array: Any, path: str) -> tuple[str, int]:
    """Write the array as npy; its sha256 and its size in bytes."""
    from zkd.arrays import save_npy

    save_npy(array, path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def _large_arrays(value: Any, depth: int) -> list[Any]:
    import numpy as np

    if isinstance(value, np.ndarray):
        return [value] if value.nbytes >= REFER_FROM_BYTES and not value.dtype.hasobject else []
    if depth and isinstance(value, list | tuple):
        return [array for item in value for array in _large_arrays(item, depth - 1)]
    if depth and isinstance(value, dict):
        return [array for item in value.values() for array in _large_arrays(item, depth - 1)]
    return []


def _replaced(value: Any, sent: dict[int, Any], depth: int) -> Any:
    if id(value) in sent:
        return sent[id(value)]
    if depth and isinstance(value, list | tuple):
        return [_replaced(item, sent, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return {name: _replaced(item, sent, depth - 1) for name, item in value.items()}
    return value
