"""What a finished task gives to the program that waits for it: its value, or an exception with the remote story.

A result says who ran the task and how it ended; its value lies in the znode or, when it is large, in files of
the nodes that `ref` names. A file is taken from any of them, and is believed only after its length and its
sha256 have been checked. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from typing import TYPE_CHECKING, Any, Literal

from msgspec import UNSET

from zkd.codec import encode
from zkd.errors import (
    BadRecord,
    Overloaded,
    ResultLost,
    TaskCancelled,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskRejected,
)

if TYPE_CHECKING:
    import ssl

    import aiohttp

    from zkd.paths import TaskId
    from zkd.records import BlobRef, Result


_BY_STATUS: dict[str, type[TaskError]] = {
    "rejected": TaskRejected,
    "cancelled": TaskCancelled,
    "expired": TaskExpired,
}


def error_of(task: TaskId, result: Result) -> TaskError | None:
    """The exception that says why this task has no value; None if it has one."""
    if result.status == "done":
        return None
    fault = result.error
    kind = fault.kind if fault else result.status
    what = fault.message if fault else result.status
    is_placed = fault is None or not fault.path or what.startswith(fault.path)  # the message says where
    place = "" if is_placed or fault is None else f" at {fault.path}"
    where = f" on {result.node}" if result.node else ""
    if result.status == "failed":
        message = f"{result.kernel or 'task'} failed{where}, attempt {result.attempt}: {kind}: {what} [{task}]"
        return TaskFailed(
            message,
            task_id=task,
            node=result.node,
            attempt=result.attempt,
            kind=kind,
            remote_traceback=(fault.traceback or "") if fault else "",
        )
    ended = result.status if result.status == "expired" else f"was {result.status}"
    message = f"task {ended}{place}: {what} [{task}]"
    error = Overloaded if kind == "overloaded" else _BY_STATUS.get(result.status, TaskError)
    return error(message, task_id=task, node=result.node, attempt=result.attempt, kind=kind)


class Blobs:
    """Fetches the values that are too large for a znode. One HTTP session, opened when first needed."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def value_of(self, task: TaskId, result: Result) -> Any:
        """The value of a task that is done, as numbers; raises what `error_of` gives, or `ResultLost`."""
        return as_arrays(await self.items_of(task, result))

    async def items_of(self, task: TaskId, result: Result) -> Any:
        """`value_of` as the JSON says it: the values of an array task are a list even if all are numbers."""
        from zkd.arrays.reading import from_json

        error = error_of(task, result)
        if error is not None:
            raise error
        try:
            if result.ref is None:
                return None if result.value is UNSET else from_json(bytes(result.value))
            with tempfile.TemporaryDirectory(prefix="zkd-") as directory:
                # The array stays mapped after the file's name is gone.
                path = os.path.join(directory, f"{result.ref.blob}.{result.ref.format}")
                await self.fetch(result.ref, path)
                return _writable(from_json(encode(result.ref), {result.ref.blob: path}), path)
        except BadRecord as bad:
            raise ResultLost(f"the value of {task} is not what it says: {bad}") from bad

    async def fetch(self, ref: BlobRef, path: str) -> None:
        """Write the blob to `path`, verified, from whichever of its nodes has it. Raises `ResultLost`."""
        room = shutil.disk_usage(os.path.dirname(path)).free
        if ref.size > room:
            raise ResultLost(f"the result has {ref.size} bytes, {path} has room for {room}: set TMPDIR to a larger one")
        nodes = list(ref.nodes.items())
        random.shuffle(nodes)
        faults = []
        for node, url in nodes:
            fault = await self._fetch_from(url, ref, path)
            if fault is None:
                return
            faults.append(f"{node} ({url}): {fault}")
        raise ResultLost(
            f"blob {ref.blob[:12]} of {ref.size} bytes cannot be fetched: " + ("; ".join(faults) or "no node holds it")
        )

    async def send(self, url: str, path: str, token: str) -> None:
        """Send the file at `path` to a node, which verifies it. Raises `ResultLost` with what the node said."""
        import aiohttp

        headers = {"Authorization": f"Bearer {token}"}
        try:
            with open(path, "rb") as file:  # noqa: ASYNC230 - aiohttp reads it in a thread
                async with self._session().put(url, data=file, headers=headers, allow_redirects=False) as reply:
                    if reply.status != 201:
                        raise ResultLost(f"HTTP {reply.status}: {(await reply.text())[:200].strip()}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ResultLost(str(error) or type(error).__name__) from error

    def _session(self) -> aiohttp.ClientSession:
        from zkd.net.fetch import session

        if self._http is None:
            self._http = session(self._tls)
        return self._http

    async def _fetch_from(self, url: str, ref: BlobRef, path: str) -> str | None:
        """Why this node's copy is no good, or None when it lies at `path`."""
        from zkd.net.fetch import opened

        if not url.startswith(("http://", "https://")):
            return "expected an http URL"
        digest = hashlib.sha256()
        size = 0
        try:
            async with opened(self._session(), url) as chunks:
                with open(path, "wb") as file:  # noqa: ASYNC230 - a chunk goes to the page cache
                    async for chunk in chunks:
                        size += len(chunk)
                        if size > ref.size:
                            return f"more than the {ref.size} bytes it should have"
                        digest.update(chunk)
                        file.write(chunk)
        except ResultLost as error:
            return str(error)
        if size != ref.size:
            return f"{size} bytes instead of {ref.size}"
        if digest.hexdigest() != ref.blob:
            return "damaged: another sha256 than promised"
        return None


def as_arrays(value: Any) -> Any:
    """`value` with every list that holds nothing but numbers, however deep and even, as a numpy array.

    A small array travels as nested lists and a large one as bytes, so a program that took lists for lists
    would get another type when its data grows. Uneven lists, and lists of anything else, stay lists.
    """
    if type(value) is dict:
        return {name: as_arrays(item) for name, item in value.items()}
    if type(value) is not list:
        return value
    import numpy as np

    kinds = set(map(type, value))
    if kinds <= {int, float} or kinds == {bool}:
        try:
            array = np.array(value)
        except OverflowError:
            return value
        # Whole numbers that fit no integer type would silently lose their last digits as floats.
        is_exact = array.dtype.kind in "biu" or (array.dtype.kind == "f" and (float in kinds or not value))
        return array if is_exact else value
    items = [as_arrays(item) for item in value]
    if kinds == {list} and all(type(item) is np.ndarray for item in items):
        first = items[0]
        if all(item.shape == first.shape and item.dtype.kind in "biuf" for item in items):
            return np.array(items)
    return items


def one_array(value: Any) -> Any:
    """`value` as one numpy array, or None if it is not one, such as text, or uneven lists."""
    import numpy as np

    value = as_arrays(value)
    if isinstance(value, bool | int | float):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.hasobject:
        return None
    return np.asarray(value)


def _writable(value: Any, path: str) -> Any:
    """A mapped array that may be written to: changed pages are copied, the others stay in the file."""
    import numpy as np

    if not isinstance(value, np.memmap):
        return value
    order: Literal["C", "F"] = "C" if value.flags.c_contiguous else "F"
    return np.memmap(path, value.dtype, "c", value.offset, value.shape, order).view(np.ndarray)
