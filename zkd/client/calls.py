"""Kernel calls as a program makes them: `run`, `submit`, `map`, `imap` and `map_parts`, with one set of task options.

A keyword argument belongs to the kernel, so options have a place of their own: `client.options(retries=2)` is
the same client with other options. Encoding happens here; what becomes of the bytes is `zkd.client.dropbox`'s.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import msgspec
from msgspec import Raw

from zkd.client.desired import say
from zkd.client.handles import Handle
from zkd.client.outcomes import as_arrays
from zkd.client.schedules import schedule_text
from zkd.codec import decode_task, encode
from zkd.errors import BadRecord, TaskError, TaskRejected, TooLarge
from zkd.records import EMPTY_LIST, EMPTY_OBJECT, TASK_BYTES_MAX, Task

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from zkd.client.dataset import Dataset
    from zkd.client.dropbox import DropBox
    from zkd.client.outcomes import Blobs
    from zkd.client.schedules import When
    from zkd.client.uploads import Uploads
    from zkd.paths import NodeId, TaskId
    from zkd.records import Fault, Result

# An array task should be large enough to drown the cost of its znode and small enough that a server, and
# whoever waits behind it, hardly notices it.
CHUNK_ITEMS_MAX = 5000
CHUNK_BYTES_MAX = 128 * 1024
# An item, or the arguments that go with each, beyond this travel by reference: both have to fit into one znode.
AHEAD_BYTES = TASK_BYTES_MAX // 4
# The same of a task on all parts, which has its arguments in the znode of each part.
PART_AHEAD_BYTES = 64 * 1024
CHUNKS_A_SLOT = 4  # so that slots which end early find more to do
IN_FLIGHT_MIN = 16

# Nobody but the caller of `run` and `map` wants their results, and he is here. One that he left behind in a hurry
# goes after this long; he can be without a connection for as long, too.
RUN_TTL_S = 300.0

# Where a worker says which item it was: the path of a refused one, or the note on a kernel's exception.
_ITEM = re.compile(r"(?:^\$\.items\[|raised by item )(\d+)", re.MULTILINE)

T = TypeVar("T")


class TaskOptions(TypedDict, total=False):
    """What can be asked for a task besides its kernel and arguments; `zkd.records.Task` says what each means."""

    priority: int
    submitter: str | None
    timeout_s: float | None
    retries: int
    after: list[TaskId]  # runs when these are done, and fails if one of them ends otherwise
    delay_s: float
    not_after_s: float | None
    labels: dict[str, str]
    node: str | None
    prefer: list[str]
    slots: int
    memory: int | None
    speculative: bool
    dataset: str | None
    partition: int | None
    parts: list[int]
    columns: list[str]
    combine: str | None
    ttl_s: float | None
    traceparent: str | None
    ephemeral: bool  # the task is cancelled when this client's session ends


class Calls:
    """The calls of one client with one set of options."""

    def __init__(
        self,
        box: DropBox,
        blobs: Blobs,
        uploads: Uploads,
        slots: Callable[[], Awaitable[int]],
        options: TaskOptions | None = None,
    ) -> None:
        self._box = box
        self._blobs = blobs
        self._uploads = uploads
        self._slots = slots  # of the whole cluster, now
        self._options = options or TaskOptions()
        fields = {name: value for name, value in self._options.items() if name != "ephemeral"}
        self._ephemeral = bool(self._options.get("ephemeral", False))
        try:
            # Once here, so that a bad option is an error of this line and not a rejection of every task.
            msgspec.convert({"kernel": "any", **fields}, Task)
        except msgspec.ValidationError as error:
            raise BadRecord("options", str(error)) from None
        self._fields: dict[str, Any] = fields
        self._run_fields: dict[str, Any] = {"ttl_s": RUN_TTL_S, **fields}

    def options(self, **options: Any) -> Calls:
        """These calls with these options changed."""
        return Calls(self._box, self._blobs, self._uploads, self._slots, TaskOptions(**{**self._options, **options}))  # type: ignore[typeddict-item]

    async def run(self, kernel: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run a kernel on some node and return its value: numbers, text, lists, dicts, numpy arrays.

        Waits as long as the task takes, also while ZooKeeper is away; bound it with
        `options(timeout_s=…, not_after_s=…)` or by `asyncio.timeout`. If the caller is cancelled, so is the task.
        The result is deleted soon after it was read; if this client closes before that, after five minutes.
        Raises what `Handle.result` raises.
        """
        task = self._box.new_id()
        text = await self._encode(kernel, args, kwargs, self._run_fields)
        result = await self._ended(task, text)
        try:
            return await self._blobs.value_of(task, result)
        finally:  # only now: the file of a large value lives no longer than the result that names it
            self._box.forget([task])

    async def _ended(self, task: TaskId, text: bytes) -> Result:
        """Drop the task and wait for its end. If the caller is cancelled, so is the task."""
        try:
            return await self._box.run(task, text, ephemeral=self._ephemeral)
        except asyncio.CancelledError:
            self._box.abandon(task)
            raise

    async def submit(self, kernel: str, /, *args: Any, **kwargs: Any) -> Handle:
        """Drop a task and return its handle as soon as it is accepted. It goes on without this program."""
        task = self._box.new_id()
        text = await self._encode(kernel, args, kwargs, self._fields)
        pending = await self._box.drop(task, text, ephemeral=self._ephemeral)
        return Handle(self._box, self._blobs, task, pending)

    async def map(
        self, kernel: str, items: Iterable[Any], /, *args: Any, chunk: int | None = None, **kwargs: Any
    ) -> list[Any]:
        """[kernel(item, *args, **kwargs) for item in items], in order, many items to a task.

        `chunk` is the number of items in a task; by default what keeps all slots of the cluster busy. The
        first error ends it and cancels what is left; the exception's `item` is the index of its item.
        """
        # The rows of a vector are plain numbers; as numpy scalars each would be encoded on its own.
        is_vector = getattr(items, "ndim", 0) == 1 and hasattr(items, "tolist")
        listed: list[Any] = items.tolist() if is_vector else list(items)  # type: ignore[attr-defined]
        if chunk is None:
            chunk = -(-len(listed) // (CHUNKS_A_SLOT * max(1, await self._slots())))
        step = max(1, min(chunk, CHUNK_ITEMS_MAX))
        batches = _each(listed[start : start + step] for start in range(0, len(listed), step))
        values: list[Any] = []
        async for some in self._stream(kernel, batches, args, kwargs):
            values.extend(some)
        return values

    async def imap(
        self,
        kernel: str,
        items: Iterable[Any] | AsyncIterable[Any],
        /,
        *args: Any,
        chunk: int = 1,
        **kwargs: Any,
    ) -> AsyncIterator[Any]:
        """The values of a stream of items, in order, as they come; reads ahead no further than keeps all busy.

        `chunk` items make a task. To stop early, close the iterator (`contextlib.aclosing`): what is in
        flight is cancelled.
        """
        each = items if isinstance(items, AsyncIterable) else _each(items)
        batches = _batched(each, max(1, min(chunk, CHUNK_ITEMS_MAX)))
        stream = self._stream(kernel, batches, args, kwargs)
        try:
            async for some in stream:
                for value in some:
                    yield value
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    async def _stream(
        self, kernel: str, batches: AsyncIterable[list[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[list[Any]]:
        """The values of each array task, in order, a bounded number of tasks in flight."""
        in_flight = max(IN_FLIGHT_MIN, 2 * CHUNKS_A_SLOT * await self._slots())
        running: deque[asyncio.Task[list[Any]]] = deque()
        start = 0
        try:
            if sum(map(_size, (*args, *kwargs.values()))) >= AHEAD_BYTES:
                args, kwargs = await self._uploads.refer(args), await self._uploads.refer(kwargs)
            async for batch in batches:
                if any(_size(item) >= AHEAD_BYTES for item in batch):
                    batch = await self._uploads.refer(batch)
                for count, text in self._encode_items(kernel, batch, args, kwargs):
                    if len(running) >= in_flight:
                        yield await running.popleft()
                    # Owned by this call: awaited in order above and below, or cancelled in `finally`.
                    running.append(asyncio.get_running_loop().create_task(self._run_items(start, count, text)))
                    start += count
            while running:
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
                for task in running:
                    _ = task.cancelled() or task.exception()  # the first error is the one that is told

    async def _run_items(self, start: int, count: int, text: bytes) -> list[Any]:
        task = self._box.new_id()
        result = await self._ended(task, text)
        try:
            values = await self._blobs.items_of(task, result)
        except TaskError as error:
            _name_item(error, result.error, start, count)
            raise
        finally:
            self._box.forget([task])
        return [as_arrays(value) if type(value) in (list, dict) else value for value in values]

    async def map_parts(
        self,
        kernel: str,
        dataset: str | Dataset,
        /,
        *args: Any,
        columns: Sequence[str] | None = None,
        parts: Iterable[int] | None = None,
        combine: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """[kernel(*arrays of the part, *args, **kwargs) for each part], each on a node that keeps the part.

        The arrays are those of `columns`, in this order, or without it one dict of them all; `rows` is the number of
        each row in the dataset, if no column has that name. `parts` are those to be worked on, by default all, also
        those without rows. Instead of the list of values, `combine` names a kernel that is given it, and whose value
        this is. A name without ``@VERSION`` means the version that readers get when the task is dropped.

        Waits, and is cancelled, as `run`; one failed part fails the whole. Raises what `Handle.result` raises.
        """
        if not isinstance(dataset, str):
            dataset = f"{dataset.name}@{dataset.version}"
        if isinstance(columns, str):  # which is a sequence of texts, too
            raise BadRecord("columns", f"expected a list of names, got the text {columns!r}")
        chosen = None if parts is None else [int(part) for part in parts]
        if chosen == []:
            raise BadRecord("parts", "expected at least one part")
        fields: dict[str, Any] = {
            **self._run_fields,
            "dataset": dataset,
            "columns": list(columns or ()),
            "parts": chosen or [],
            "combine": combine,
        }
        task = self._box.new_id()
        text = await self._encode(kernel, args, kwargs, fields)
        decode_task(text)  # what is wrong with it is an error of this line
        result = await self._ended(task, text)
        try:
            if combine is not None:
                return await self._blobs.value_of(task, result)
            return [as_arrays(value) for value in await self._blobs.items_of(task, result)]
        finally:
            self._box.forget([task])

    async def on_part(
        self, kernel: str, dataset: str, part: int, /, *, columns: Sequence[str] = (), **kwargs: Any
    ) -> tuple[Any, NodeId | None]:
        """The value of a kernel for one part of NAME@VERSION, and the node that ran it; otherwise as `map_parts`."""
        fields = {**self._run_fields, "dataset": dataset, "partition": part, "columns": list(columns)}
        task = self._box.new_id()
        text = await self._encode(kernel, (), kwargs, fields)
        result = await self._ended(task, text)
        try:
            return await self._blobs.value_of(task, result), result.node
        finally:
            self._box.forget([task])

    async def schedule(self, name: str, when: When, kernel: str, /, *args: Any, **kwargs: Any) -> None:
        """Have this task dropped at each slot of `when`, a `Cron` or an `Every`, from the next one on.

        A schedule of this name that is there already is replaced. Raises `BadRecord` for a line of cron or a time
        zone that is none, and `TooLarge` for arguments that do not fit into a znode: those that travel ahead are
        not kept for as long as a schedule may run.
        """
        if self._ephemeral:
            raise BadRecord("options", "expected no `ephemeral`: a schedule stays until it is deleted")
        text = self._bounded(encode(Task(kernel, *_arguments(args, kwargs), **self._fields)), "the arguments make")
        await say(self._box, self._box.paths.schedule(name), schedule_text(name, when, text))

    # --- encoding -----------------------------------------------------------------------------------

    async def _encode(
        self, kernel: str, args: tuple[Any, ...], kwargs: dict[str, Any], fields: dict[str, Any]
    ) -> bytes:
        """The task as JSON; arrays too large for a znode, or for one for each part, are sent ahead and referred to."""
        ahead = PART_AHEAD_BYTES if fields.get("dataset") else TASK_BYTES_MAX // 2
        if sum(map(_size, (*args, *kwargs.values()))) < ahead:
            text = encode(Task(kernel, *_arguments(args, kwargs), **fields))
            if len(text) <= TASK_BYTES_MAX:
                return text
        args, kwargs = await self._uploads.refer(list(args)), await self._uploads.refer(kwargs)
        text = encode(Task(kernel, *_arguments(args, kwargs), **fields))
        return self._bounded(text, "the arguments make")

    def _encode_items(
        self, kernel: str, items: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterable[tuple[int, bytes]]:
        """(number of items, task) for as many tasks as these items need to stay below CHUNK_BYTES_MAX."""
        from zkd.arrays.writing import to_json

        shared = _arguments(args, kwargs)
        left = deque([items] if items else [])
        while left:
            some = left.popleft()
            text = to_json(some, exact=True)
            if len(text) > CHUNK_BYTES_MAX and len(some) > 1:
                # Cut to size at once, going by the mean, and not by halves: each cut encodes all again.
                step = max(1, min(len(some) // 2, len(some) * CHUNK_BYTES_MAX // len(text)))
                left.extendleft(reversed([some[at : at + step] for at in range(0, len(some), step)]))
                continue
            yield (
                len(some),
                self._bounded(encode(Task(kernel, *shared, items=Raw(text), **self._run_fields)), "one item makes"),
            )

    def _bounded(self, text: bytes, what: str) -> bytes:
        if len(text) > TASK_BYTES_MAX:
            raise TooLarge(
                self._box.paths.tasks,
                f"{what} a task of {len(text)} bytes, at most {TASK_BYTES_MAX} fit into a znode: "
                f"numpy arrays travel by reference, lists do not",
            )
        return text


def _arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Raw, Raw]:
    """As a task has them; those that are not there are left out of its text."""
    from zkd.arrays.writing import to_json  # of the module: a name of the package is looked up anew each time

    return (
        Raw(to_json(args, exact=True)) if args else EMPTY_LIST,
        Raw(to_json(kwargs, exact=True)) if kwargs else EMPTY_OBJECT,
    )


def _size(value: Any) -> int:
    """Of an array, in bytes; 0 for what is none."""
    size: int = getattr(value, "nbytes", 0)
    return size


def _name_item(error: TaskError, fault: Fault | None, start: int, count: int) -> None:
    """Say which item an error is about; not if the whole task was refused, which no item is to blame for."""
    found = _ITEM.search(f"{fault.path}\n{fault.message}\n{fault.traceback}") if fault else None
    if isinstance(error, TaskRejected) and not found:
        return
    error.item = start + int(found[1]) if found else start
    which = f"item {error.item}" if found or count == 1 else f"one of the items {start} to {start + count - 1}"
    error.args = (f"{which}: {error}", *error.args[1:])


async def _each(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


async def _batched(items: AsyncIterable[T], size: int) -> AsyncIterator[list[T]]:
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
