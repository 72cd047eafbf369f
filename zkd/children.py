"""The children of a task over all parts of a dataset, in the tree: dropped by the leader, read by who combines.

A child that has neither a znode nor a result is dropped, so it does not matter how far a former leader came. Every
transaction checks the parent's version: of a task that was cancelled or edited meanwhile no further child appears.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET

from zkd import codec
from zkd.core.commands import Spread
from zkd.core.spreads import child, child_id, child_ids, inline_max
from zkd.errors import BadRecord, MultiFailed, NoAuth, NodeExists, NoNode, ZooKeeperError
from zkd.leading import Deposed
from zkd.paths import Paths, TaskId
from zkd.records import RESULT_INLINE_BYTES_MAX, BlobRef, Task
from zkd.zk import Check, Create, Session

LOOKED_AT_ONCE = 250  # names to a packet
DROPPED_AT_ONCE = 250  # operations,
DROPPED_BYTES = 400_000  # and bytes to a transaction
READ_BYTES = 2_000_000  # of results in one reply, which has no limit at the server


class Abandoned(Exception):  # a signal between this module and its callers
    """The parent is not what it was: gone, or with another text."""


async def drop(session: Session, paths: Paths, spread: Spread, *, within: int, guard: Check) -> int:
    """Drop every child of this task that is neither there nor has ended; how many. Raises `Abandoned`, `Deposed`."""
    task = await _parent(session, paths, spread)
    missing = await _missing(session, paths, spread)
    text = codec.encode(child(spread.id, task, 0))
    check = Check(paths.task(spread.id), spread.version)
    step = max(1, min(DROPPED_AT_ONCE, DROPPED_BYTES // (len(text) + 200)))
    for start in range(0, len(missing), step):
        creates = [
            Create(paths.task(child_id(spread.stem, part)), codec.encode(child(spread.id, task, part)))
            for part in missing[start : start + step]
        ]
        while creates:
            try:
                await session.multi([guard, check, *creates], within=within)
                break
            except MultiFailed as refusal:
                if refusal.index == 0:
                    raise Deposed from None
                if refusal.index == 1:
                    raise Abandoned from None
                if not isinstance(refusal.cause, NodeExists):
                    raise refusal.cause from None
                del creates[refusal.index - 2]  # somebody has dropped it meanwhile, by that very name
    return len(missing)


async def _parent(session: Session, paths: Paths, spread: Spread) -> Task:
    try:
        found = await session.get(paths.task(spread.id))
        task = codec.decode_task(found.data)
    except (NoNode, NoAuth, BadRecord):
        raise Abandoned from None
    if (found.stat.czxid, found.stat.version) != (spread.czxid, spread.version):
        raise Abandoned
    return task


async def _missing(session: Session, paths: Paths, spread: Spread) -> list[int]:
    """The parts whose child is neither there nor has ended: tasks first, for a child goes from there to the results."""
    missing = list(spread.parts)
    for path in (paths.task, paths.result):
        looked = [(part, path(child_id(spread.stem, part))) for part in missing]
        missing = []
        for start in range(0, len(looked), LOOKED_AT_ONCE):
            some = looked[start : start + LOOKED_AT_ONCE]
            found = await session.children_many([name for _, name in some])
            missing += [part for (part, _), got in zip(some, found, strict=True) if isinstance(got, NoNode)]
    return missing


async def values(
    session: Session, paths: Paths, stem: str, parts: Sequence[int]
) -> dict[TaskId, bytes | BlobRef | None]:
    """What each part gave, in their order, by its child: JSON, or where it lies; None of one without a value."""
    most = inline_max(len(parts), RESULT_INLINE_BYTES_MAX)
    ids = child_ids(stem, parts)
    given: dict[TaskId, bytes | BlobRef | None] = {}
    for some in _packets(ids, max(1, READ_BYTES // (most + 1024))):
        found = await session.get_many([paths.result(each) for each in some])
        for each, got in zip(some, found, strict=True):
            given[each] = None if isinstance(got, ZooKeeperError) else _value(got.data)
    return given


def _value(text: bytes) -> bytes | BlobRef | None:
    try:
        result = codec.decode_result(text)
    except BadRecord:
        return None
    if result.status != "done":
        return None
    if result.ref is not None:
        return result.ref
    return b"null" if result.value is UNSET else bytes(result.value)


def _packets(ids: list[TaskId], most: int) -> Iterator[list[TaskId]]:
    for start in range(0, len(ids), most):
        yield ids[start : start + most]
