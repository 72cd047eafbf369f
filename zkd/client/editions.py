"""The versions of datasets in the tree: read with doubt, made visible in one transaction.

    datasets                       numbers that are not given again
    datasets/<name>                empty until its first version is there, then its head
    datasets/<name>/writers/<id>   ours while we send: segments that no manifest lists yet are not collected

A version is published by one transaction that checks the chunks it names, takes our writer's znode away (so a session
that expired meanwhile publishes nothing: what it sent may have been collected), creates the manifest and moves the
head as it was when we began. Whatever else happened in between, nothing of it is half visible.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from zkd import codec
from zkd.client.dropbox import ANY_VERSION, OUTAGE_MAX_S
from zkd.client.outstanding import NO_ANSWER
from zkd.core.datasets import (
    Parts,
    assemble,
    chunk_digest,
    next_number,
    read_chunk,
    read_head,
    read_manifest,
    read_numbers,
    version_number,
    without,
)
from zkd.core.extents import expect_extent
from zkd.errors import (
    BadRecord,
    BadRows,
    BadVersion,
    DataDamaged,
    DatasetExists,
    DatasetNotFound,
    DataUnavailable,
    MultiFailed,
    NodeExists,
    NoNode,
    NotEmpty,
    OutcomeUnknown,
    ZooKeeperError,
)
from zkd.manifests import CHUNK_PARTS, Head, Manifest
from zkd.zk import Check, Create, Delete, SetData, ensure_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zkd.client.dropbox import DropBox
    from zkd.zk import Op

NAME_RULE = "1 to 128 letters, digits and _ . -, the first a letter or digit"
# A server takes less than 1 MiB in a request, of which some is ours: a chunk lists 10 segments for each of 256 parts.
CHUNK_BYTES_MAX = 900 * 1024
ABANDON_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")


def expect_name(name: str) -> str:
    """`name`, or `BadRows`: it becomes part of paths."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise BadRows("name", f"expected {NAME_RULE}, got {str(name)[:150]!r}")
    return name


@dataclass(frozen=True)
class Draft:
    """A version that is being made."""

    name: str
    version: int  # that it will have
    writer: str  # the path of our znode
    head_version: int  # of the znode of the head, as it was when we began
    current: int | None  # the version that readers get now


class Editions:
    def __init__(self, box: DropBox) -> None:
        self._box = box
        self._paths = box.paths

    # --- Reading ----------------------------------------------------------------------------------------

    async def current(self) -> dict[str, int]:
        """The datasets that have a version, and which one readers get."""
        names = sorted(await self._box.children(self._paths.datasets))
        found: dict[str, int] = {}
        for start in range(0, len(names), CHUNK_PARTS):
            some = names[start : start + CHUNK_PARTS]
            paths = [self._paths.dataset(name) for name in some]
            for name, znode in zip(some, await self._box.get_many(paths), strict=True):
                with suppress(BadRecord):
                    if not isinstance(znode, ZooKeeperError) and znode.data:
                        found[name] = read_head(znode.data).current
        return found

    async def versions(self, name: str) -> list[int]:
        """The versions that are there, the oldest first. Raises `DatasetNotFound`."""
        leaves = await self._box.children(self._paths.versions(expect_name(name)))
        found = sorted(number for leaf in leaves if (number := version_number(leaf)))
        if not found:
            raise DatasetNotFound(f"there is no dataset {name} below {self._paths.root}")
        return found

    async def manifest(self, name: str, version: int | None = None) -> Manifest:
        """Of this version, or of the one that readers get. Raises `DatasetNotFound`, `DataDamaged` if it lies."""
        path = self._paths.dataset(expect_name(name))
        try:
            if version is None:
                text = (await self._box.read(path)).data
                if not text:
                    raise NoNode(path)
                version = read_head(text).current
            path = self._paths.version(name, version)
            return read_manifest(name, version, (await self._box.read(path)).data)
        except NoNode:
            what = f"dataset {name}" if version is None else f"version {version} of dataset {name}"
            raise DatasetNotFound(f"there is no {what} below {self._paths.root}") from None
        except BadRecord as error:
            raise DataDamaged(f"{path}: {error}") from None

    async def parts(self, manifest: Manifest) -> Parts:
        """The segments of each part of a version. Raises `DatasetNotFound` if it went, `DataDamaged` if it lies."""
        chunks: dict[str, Parts] = {}
        for digest in manifest.chunks:
            path = self._paths.chunk(manifest.name, digest)
            try:
                if digest not in chunks:
                    chunks[digest] = read_chunk(digest, (await self._box.read(path)).data)
            except NoNode:
                await self.manifest(manifest.name, manifest.version)  # was it removed meanwhile?
                raise DataDamaged(f"{path} is not there, and a manifest names it") from None
            except BadRecord as error:
                raise DataDamaged(f"{path}: {error}") from None
        try:
            parts = assemble(manifest, chunks)
            for number, refs in enumerate(parts):
                for ref in refs:
                    expect_extent(ref, manifest.columns, f"$.parts[{number}]")
            return parts
        except BadRecord as error:
            raise DataDamaged(f"{self._paths.version(manifest.name, manifest.version)}: {error}") from None

    # --- Making -----------------------------------------------------------------------------------------

    async def begin(self, name: str) -> Draft:
        """Say that we are going to send segments of the next version of this dataset."""
        paths = self._paths
        writer = f"{paths.writers(expect_name(name))}/{self._box.new_id()}"

        async def announce() -> None:
            for path in (paths.dataset(name), paths.versions(name), paths.chunks(name), paths.writers(name)):
                await ensure_path(self._box.session, path)
            with suppress(NodeExists):  # ours: nobody else makes our ids, and the answer to the first try was lost
                await self._box.session.create(writer, ephemeral=True)

        while True:
            try:
                await self._box.again(announce)
                break
            except NoNode:  # somebody removes the rest of an older dataset of this name: bounded by its znodes
                continue
        try:
            head = await self._box.read(paths.dataset(name))
            numbers = read_numbers((await self._box.read(paths.datasets)).data)
            leaves = await self._box.children(paths.versions(name))
            current = read_head(head.data).current if head.data else None
        except BadRecord as error:
            await self.give_up(writer)
            raise DataDamaged(f"{paths.dataset(name)}: {error}") from None
        known = [number for leaf in leaves if (number := version_number(leaf))]
        number = next_number(numbers, name, [current or 0, *known])
        return Draft(name, number, writer, head.stat.version, current)

    @asynccontextmanager
    async def drafting(self, name: str) -> AsyncIterator[Draft]:
        """`begin`, and nothing to be seen of it if the block fails."""
        draft = await self.begin(name)
        try:
            yield draft
        except BaseException:
            # Also when we are cancelled: what stands in the tree is for others to see.
            await asyncio.shield(self._abandon_soon(draft))
            raise

    async def publish(self, draft: Draft, manifest: Manifest, parts: Parts) -> None:
        """Make this version the one that readers get. All of its segments are durable before.

        Raises `DatasetExists` if somebody else was first, `DataUnavailable` if our session expired meanwhile.
        """
        name, paths = draft.name, self._paths
        lists = [codec.encode(parts[start : start + CHUNK_PARTS]) for start in range(0, len(parts), CHUNK_PARTS)]
        assert [chunk_digest(text) for text in lists] == manifest.chunks, "the manifest names its chunks"
        chunks = dict(zip(manifest.chunks, lists, strict=True))
        assemble(
            read_manifest(name, draft.version, codec.encode(manifest)),
            {each: read_chunk(each, chunks[each]) for each in chunks},
        )
        create = Create(paths.version(name, draft.version), codec.encode(manifest))
        ops: list[Op] = [
            Delete(draft.writer, ANY_VERSION),
            create,
            SetData(paths.dataset(name), codec.encode(Head(draft.version)), draft.head_version),
            *(Check(paths.chunk(name, digest), 0) for digest in chunks),
        ]
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                for digest, text in chunks.items():
                    await self._put_chunk(paths.chunk(name, digest), text)
                await self._box.session.multi(ops)
                return
            except MultiFailed as error:
                if await self._is_ours(create):
                    return  # the answer to an earlier try was lost
                if error.path == draft.writer:
                    raise DataUnavailable(
                        f"{name}: the session expired while the parts were sent; nothing was changed, try again"
                    ) from None
                if isinstance(error.cause, NodeExists | BadVersion):
                    raise DatasetExists(
                        f"{name}: somebody else made version {draft.version} meanwhile; nothing was changed"
                    ) from None
                if not isinstance(error.cause, NoNode) or time.monotonic() >= give_up:
                    raise error.cause from None
                # A version that shared a chunk was removed in this moment: the chunk is made again.
                await self._mend(name)
            except NoNode:
                if time.monotonic() >= give_up or not await self._mend(name):
                    raise DataUnavailable(f"{name}: it was removed while the parts were sent; try again") from None
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)
                if isinstance(error, OutcomeUnknown) and await self._is_ours(create):
                    return

    async def _mend(self, name: str) -> bool:
        """Make the directories anew that somebody took who removed the rest of an older dataset, and did not see us
        begin. False if all of the dataset is gone."""
        for path in (self._paths.versions(name), self._paths.chunks(name)):
            with suppress(NodeExists):
                try:
                    await self._box.again(partial(self._box.session.create, path))
                except NoNode:
                    return False
        return True

    async def _is_ours(self, create: Create) -> bool:
        try:
            return (await self._box.read(create.path)).data == create.data
        except NoNode:
            return False

    async def _put_chunk(self, path: str, text: bytes) -> None:
        if len(text) > CHUNK_BYTES_MAX:
            raise DataUnavailable(
                f"{path}: a list of {len(text)} bytes is too large for ZooKeeper: large appends made so many "
                "segments; put the dataset anew, as one version, with more parts"
            )
        try:
            await self._box.again(lambda: self._box.session.create(path, text))
        except NodeExists:
            with suppress(NoNode):  # the transaction will say so
                if (await self._box.read(path)).data != text:
                    raise DataDamaged(f"{path} has other bytes than its name says") from None

    async def give_up(self, writer: str) -> None:
        """Take back what `begin` said; best effort: with our session it goes anyway."""
        with suppress(ZooKeeperError):
            await self._box.session.delete(writer, ANY_VERSION)

    async def abandon(self, draft: Draft) -> None:
        """Leave nothing of a version that is not going to be, and of its dataset if it has no other. Best effort."""
        await self.give_up(draft.writer)
        if draft.current is None:
            with suppress(ZooKeeperError):
                await self._clear(draft.name)

    async def _abandon_soon(self, draft: Draft) -> None:
        try:
            async with asyncio.timeout(ABANDON_S):
                await self.abandon(draft)
        except TimeoutError:
            return  # our session's end does the rest

    # --- Removing ---------------------------------------------------------------------------------------

    async def remove(self, name: str, version: int | None, keep: int = 0) -> None:
        """Remove a version, or all of them but the newest `keep`; the dataset, too, if none is left. Raises
        `DatasetNotFound`.

        The segments of what is gone are collected by the nodes, after a time of grace.
        """
        expect_name(name)
        give_up = time.monotonic() + OUTAGE_MAX_S
        was_sent = False
        while True:
            try:
                head = await self._box.read(self._paths.dataset(name))
                versions = await self.versions(name)
            except (NoNode, DatasetNotFound):
                if was_sent or await self._is_empty(name):
                    return await self._clear(name)
                raise DatasetNotFound(f"there is no dataset {name} below {self._paths.root}") from None
            if version is not None and version not in versions:
                if was_sent:
                    return None
                raise DatasetNotFound(f"there is no version {version} of dataset {name} below {self._paths.root}")
            going = self._going(versions, version, keep, head.data)
            if not going:
                return None
            try:
                await self._box.session.multi(await self._removal(name, head.data, head.stat.version, versions, going))
            except MultiFailed as error:
                if not isinstance(error.cause, BadVersion | NoNode) or time.monotonic() >= give_up:
                    raise error.cause from None
                continue  # somebody published or removed a version meanwhile: look again
            except NO_ANSWER as error:
                was_sent = was_sent or isinstance(error, OutcomeUnknown)
                await self._box.catch_up(give_up, error)
                continue
            return await self._clear(name) if going == versions else None

    @staticmethod
    def _going(versions: list[int], version: int | None, keep: int, head: bytes) -> list[int]:
        if version is not None:
            return [version]
        going = versions[: max(0, len(versions) - keep)]
        if keep:
            with suppress(BadRecord):
                going = [each for each in going if each != read_head(head).current]  # readers get it
        return going

    async def _removal(
        self, name: str, head: bytes, head_version: int, versions: list[int], going: list[int]
    ) -> list[Op]:
        """One transaction; the head's znode changes with every version that is published, so it fences those.

        The number of the newest is remembered: a task that says NAME@VERSION never gets other rows.
        """
        paths = self._paths
        staying = [version for version in versions if version not in going]
        ops: list[Op] = [Delete(paths.version(name, version), ANY_VERSION) for version in going]
        text = head
        with suppress(BadRecord):
            if not staying:
                text = b""
            elif read_head(head).current in going:
                text = codec.encode(Head(staying[-1]))
        ops.append(SetData(paths.dataset(name), text, head_version))
        if not staying or going[-1] > staying[-1]:
            numbers = await self._box.read(paths.datasets)
            told = without(read_numbers(numbers.data), name, going[-1])
            ops.append(SetData(paths.datasets, codec.encode(told), numbers.stat.version))
        if staying:
            ops += [Delete(path, ANY_VERSION) for path in await self._only_of(name, going, staying)]
        return ops

    async def _only_of(self, name: str, going: list[int], staying: list[int]) -> list[str]:
        """The chunks that no other version names. If a manifest cannot be read, all are kept."""
        try:
            named = [{*(await self.manifest(name, version)).chunks} for version in (*going, *staying)]
        except (DatasetNotFound, DataDamaged):
            return []
        only = set().union(*named[: len(going)]) - set().union(*named[len(going) :])
        there = set(await self._box.children(self._paths.chunks(name)))
        return [self._paths.chunk(name, digest) for digest in sorted(only & there)]

    async def _is_empty(self, name: str) -> bool:
        """Whether this is what a program left that began and never made a version."""
        with suppress(NoNode):
            return not (await self._box.read(self._paths.dataset(name))).data
        return False

    async def _clear(self, name: str) -> None:
        """Remove the rest of a dataset without versions, unless somebody is writing to it."""
        paths, session = self._paths, self._box.session
        with suppress(NoNode):
            head = await self._box.read(paths.dataset(name))
            if head.data:
                return
            with suppress(NotEmpty):  # somebody writes: then all of it is his
                with suppress(NoNode):
                    await session.delete(paths.writers(name), ANY_VERSION)
                for digest in await self._box.children(paths.chunks(name)):
                    with suppress(NoNode):
                        await session.delete(paths.chunk(name, digest), ANY_VERSION)
                for path in (paths.chunks(name), paths.versions(name)):
                    with suppress(NoNode):
                        await session.delete(path, ANY_VERSION)
                with suppress(BadVersion):
                    await session.delete(paths.dataset(name), head.stat.version)
