"""The kernel `predict`: a task that this node's model server answers, as it answers requests over HTTP.

    {"kernel": "predict", "args": ["iris@live", [[5.1, 3.5, 1.4, 0.2]]], "kwargs": {"want": ["probabilities"]}}

No worker runs it. Its value is what the body of an answer would be. A task may wait where a request over HTTP is
refused, as long as its own time allows, so it is asked again when there is no room.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from zkd import codec
from zkd.core.registry import ModelRef, split_ref
from zkd.errors import BadRecord, NotPredicted, ResultLost
from zkd.holder.inputs import blob_refs
from zkd.records import RESULT_INLINE_BYTES_MAX, BlobRef, Task
from zkd.serving.front import Answer
from zkd.serving.requests import DEADLINE_MS_MAX, DeadlineMs, Key, Missing, Request, Want, wanted
from zkd.store.segment_files import write_all
from zkd.store.threads import in_thread
from zkd.workers.call import BlobFile, Failed, Finished, Outcome, Rejected, TimedOut

KERNEL: Final = "predict"
FIELDS: Final = ("model", "rows", "want", "missing", "deadline_ms", "key")
PASSING: Final = {"full", "busy", "late", "fetching", "unavailable"}
FILES_MAX: Final = 1000
AGAIN_S: Final = 0.1
AGAIN_S_MAX: Final = 2.0


class _Arguments(Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    rows: Raw
    want: list[Want] | UnsetType | None = UNSET
    missing: Missing = "refuse"
    deadline_ms: DeadlineMs | None = None
    key: Key | int | None = None


async def predict(
    ask: Callable[[ModelRef, Request, float], Awaitable[Answer]],
    directory: Path,
    fetch: Callable[[BlobRef], Awaitable[str]],
    task: Task,
    task_id: str,
    timeout_s: float,
) -> Outcome:
    """What came of this task, within its time. A value that is too large for a znode lies in a file in `directory`;
    `fetch` gives the path of one that rows lie in."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        asked = _arguments(task)
        ref = split_ref(asked.model)
        key = None if asked.key is None else str(asked.key)
        want = wanted(asked.want or UNSET)
        refs = _refs(asked.rows)
        files = {ref.blob: await fetch(ref) for ref in refs}
    except BadRecord as error:
        return Rejected(error.where, str(error))
    except ResultLost as error:
        return Failed("ResultLost", str(error), "", loop.time() - began)
    own_s = timeout_s if asked.deadline_ms is None else min(timeout_s, asked.deadline_ms / 1e3)
    again_s = AGAIN_S
    while True:
        left_s = began + own_s - loop.time()
        deadline_s = min(left_s, DEADLINE_MS_MAX / 1e3)
        size = sum(ref.size for ref in refs)
        rows = memoryview(asked.rows)
        request = Request("json", rows, want, asked.missing, deadline_s, key, files, size, is_task=True)
        try:
            answer = await ask(ref, request, loop.time())
            return await _finished(answer.body, directory, task_id, loop.time() - began)
        except NotPredicted as error:
            left_s = began + own_s - loop.time()
            if error.kind in ("bad_request", "too_large", "not_found"):
                return Rejected("$.args", str(error))
            if error.kind in PASSING and left_s > again_s:
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, AGAIN_S_MAX)
            elif error.kind == "deadline" and asked.deadline_ms is None:
                if left_s <= 0:
                    return TimedOut(timeout_s)
            else:
                return Failed(error.kind, str(error), "", loop.time() - began)


def _arguments(task: Task) -> _Arguments:
    """Positional and named ones. Raises `BadRecord`."""
    for field, is_given in (("items", task.items is not UNSET), ("dataset", task.dataset is not None)):
        if is_given:
            raise BadRecord(f"$.{field}", f"expected none with the kernel {KERNEL}: rows are its second argument")
    args, named = codec.decode(bytes(task.args), list[Raw]), codec.decode(bytes(task.kwargs), dict[str, Raw])
    if len(args) > len(FIELDS):
        raise BadRecord("$.args", f"expected at most {len(FIELDS)} ({', '.join(FIELDS)}), got {len(args)}")
    twice = [name for name, _ in zip(FIELDS, args, strict=False) if name in named]
    if twice:
        raise BadRecord(f"$.kwargs.{twice[0]}", "expected it once: it is among the positional arguments")
    both = dict(zip(FIELDS, args, strict=False)) | named
    try:
        return codec.decode(msgspec.json.encode(both), _Arguments)
    except BadRecord as error:
        raise BadRecord(error.where.replace("$", "$.kwargs", 1), error.expected) from None


def _refs(rows: Raw) -> list[BlobRef]:
    """The arrays in files among the rows. Raises `BadRecord`."""
    if b'"blob"' not in bytes(rows):
        return []
    refs = list(blob_refs(codec.decode(bytes(rows), Any)))
    if len(refs) > FILES_MAX:
        raise BadRecord("$.rows", f"expected at most {FILES_MAX} arrays in files, got {len(refs)}")
    return refs


async def _finished(body: bytes | memoryview, directory: Path, task_id: str, run_s: float) -> Finished:
    if len(body) <= RESULT_INLINE_BYTES_MAX:
        return Finished(bytes(body), None, run_s)
    return Finished(None, await in_thread(None, _file, body, directory, task_id), run_s)


def _file(body: bytes | memoryview, directory: Path, task_id: str) -> BlobFile:
    path = directory / f"{task_id}.{os.urandom(4).hex()}.tmp"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, memoryview(body))
        os.fsync(fd)
    finally:
        os.close(fd)
    return BlobFile(path, hashlib.sha256(body).hexdigest(), len(body), "json")
