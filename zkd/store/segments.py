"""The segments that lie on this node. Nobody gets a byte from here that was not compared with its checksum first.

    <data_dir>/segments/<id>/            whole, durable, immutable; a directory that has this name is complete
    <data_dir>/segments.incoming/<id>/   arriving: the beginning of one, and how far it got survives a restart
    <data_dir>/segments.made/<id>/       made by a worker of this node, not synced; here once somebody asks for it
    <data_dir>/segments.bad/<id>/        found damaged, for people to look at; goes when its room is needed
    <data_dir>/segments.trash/<id>/      taken out, and removed for good only after a time of grace

What is damaged is moved out of the way in the moment in which that is seen, and is not here from then on. Files are
read, written and hashed in threads of the store's own; its state changes in the event loop only. Ids are checked
before they become names.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import ParamSpec

from zkd.errors import DataDamaged, DataUnavailable, ZkdError
from zkd.manifests import BLOCK_BYTES, Segment
from zkd.store import segment_checks
from zkd.store.segment_files import HEAD_BYTES, blocks, is_id, packed_head, parse, short, size_of, sync_directory
from zkd.store.segment_intake import Intake
from zkd.store.threads import in_thread, one_ahead

P = ParamSpec("P")
Pace = Callable[[int], Awaitable[None]]

IO_THREADS = 4
CHECK_THREADS = 2  # whole segments take seconds; reading and receiving others goes on meanwhile
CHECK_STEP_BYTES = 8 * BLOCK_BYTES
FEED_BYTES = 1 << 20  # a hop to a thread and back costs as much as hashing some 100 KB
# A file's change time has the kernel's ticks: of one that changed so shortly ago, a later change might not show.
RACY_NS = 1_000_000_000
WAIT_S = 40.0  # for another sender of the same segment; a silent one is given up before
KNOWN_MAX = 64  # intakes whose digests are remembered between two goes
BAD_KEPT_S = 7 * 86_400.0
INCOMING_KEPT_S = 86_400.0
MADE_KEPT_S = 3600.0  # who has had rows made asks for them when their task is done
GOING = ".going"  # of a segment in the trash whose removal has begun
FREE_SHARE = 0.01  # of the disk stays free: for the session's file, logs, and whoever else writes there


class OutOfStep(ZkdError):
    """Bytes were sent that do not continue what is here; `received` says where to go on."""

    def __init__(self, received: int) -> None:
        super().__init__(f"expected the bytes from {received} on")
        self.received = received


class SegmentStore:
    """`changed` is called in the event loop with each id that came or went; `damaged` with one that was found bad, and
    what is wrong with it."""

    def __init__(
        self,
        data_dir: Path,
        changed: Callable[[str], None] = lambda _: None,
        damaged: Callable[[str, str], None] = lambda _, __: None,
    ) -> None:
        self.changed = changed
        self.damaged = damaged
        self.quarantined = 0  # since the start
        self._here = data_dir / "segments"
        self._incoming = data_dir / "segments.incoming"
        self._bad = data_dir / "segments.bad"
        self._trash = data_dir / "segments.trash"
        self.made = data_dir / "segments.made"
        for directory in (self._here, self._incoming, self._bad, self._trash, self.made):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # These names, and those that a former life put there in its last moment, outlive a power cut from here on.
        for directory in (data_dir, self._here):
            sync_directory(directory)
        # What has another name was not put there by us, and is neither read nor removed.
        found = [entry.name for entry in os.scandir(self._here) if is_id(entry.name)]
        self._ids = {name: object() for name in found}  # each time that one comes it is another
        self._checked: dict[str, str] = {}  # id -> signature of the files as they were found good
        self._intakes: dict[str, Intake] = {}
        self._locks: dict[tuple[str, str], _Lock] = {}
        self._io = ThreadPoolExecutor(IO_THREADS, "zkd-segments")
        self._checks = ThreadPoolExecutor(CHECK_THREADS, "zkd-checks")

    # --- What is here -----------------------------------------------------------------------------------

    def has(self, segment_id: str) -> bool:
        return segment_id in self._ids

    def life(self, segment_id: str) -> object | None:
        """Something else each time that the segment comes, to tell whether it was replaced; None: it is not here."""
        return self._ids.get(segment_id)

    def ids(self) -> frozenset[str]:
        return frozenset(self._ids)

    def path(self, segment_id: str) -> Path:
        """The directory of a segment that is here."""
        self._expect(segment_id)
        return self._here / segment_id

    async def describe(self, segment_id: str) -> tuple[bytes, Segment]:
        """segment.json of a segment that is here, and what it says. Its files are not looked at.

        Raises `DataUnavailable` if it is not here, `DataDamaged` if it was not what it should be and is not any more.
        """
        path = self.path(segment_id)
        async with self._guarded(segment_id):
            text = await in_thread(self._io, segment_checks.read_json, path, segment_id)
            return text, parse(text, segment_id)

    async def verified(self, segment_id: str) -> Segment:
        """The segment, all of whose files were compared with segment.json since they were last touched.

        Raises as `describe`.
        """
        path = self.path(segment_id)
        async with self._lock("check", segment_id), self._guarded(segment_id):
            _, segment = await self.describe(segment_id)
            files = len(segment.files)
            mark, touched = await in_thread(self._io, segment_checks.signature, path, segment_id, files)
            if self._checked.get(segment_id) == mark:
                return segment
            began = time.time_ns()
            await self._check(segment_checks.checking(path, segment_id, segment))
            mark_then, _ = await in_thread(self._io, segment_checks.signature, path, segment_id, files)
            if mark == mark_then and touched + RACY_NS < began and segment_id in self._ids:
                self._checked[segment_id] = mark
            return segment

    async def verify(self, segment_id: str, pace: Pace | None = None) -> bool:
        """Whether every byte of a segment is good, read from the disk anew. One that is not is here no more.

        `pace` is awaited with the bytes of each step, before the next. Raises `DataUnavailable` if it is not here.
        """
        path = self.path(segment_id)
        try:
            async with self._guarded(segment_id):
                _, segment = await self.describe(segment_id)
                await self._check(segment_checks.checking(path, segment_id, segment, from_disk=True), pace)
        except DataDamaged:
            return False
        return True

    async def _check(self, steps: Generator[int], pace: Pace | None = None) -> None:
        try:
            while size := await in_thread(self._checks, _advance, steps):
                if pace is not None:
                    await pace(size)
        finally:
            steps.close()

    async def read(self, segment_id: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[bytes]:
        """The packed form from byte `start` to before `stop`, in pieces of up to a block, each checked.

        Raises as `describe`, also between two pieces.
        """
        path = self.path(segment_id)
        async with self._guarded(segment_id):
            text, segment = await self.describe(segment_id)
            head = packed_head(text)
            total = len(head) + size_of(segment)
            stop = total if stop is None else min(stop, total)
            reader = await in_thread(self._io, segment_checks.SegmentReader, path, segment_id, segment)
            try:
                if start < min(stop, len(head)):
                    yield head[start:stop]
                wanted = blocks(segment, len(head), start, stop)
                async with aclosing(one_ahead(self._io, wanted, reader.read)) as read:
                    async for place, data in read:
                        if start <= place.start and place.start + place.size <= stop:
                            yield data
                        else:
                            yield data[max(0, start - place.start) : stop - place.start]
            finally:
                reader.close()

    # --- What arrives -----------------------------------------------------------------------------------

    async def received(self, segment_id: str) -> int:
        """How many bytes of the packed form have arrived of a segment that is not here yet, and are right."""
        _expect_id(segment_id)
        async with self._lock("receive", segment_id):
            intake = await self._intake(segment_id)
            received = intake.received
        if received == intake.total:  # who took the last byte died before it was made durable: it is here now
            await self.receive(segment_id, received, received, _nothing())
        return received

    async def receive(self, segment_id: str, start: int, total: int, chunks: AsyncIterator[bytes]) -> bool:
        """Take the packed bytes from `start` on of `total`; whether the segment is here and durable afterwards.

        Right bytes are kept if the chunks end too early, or with an exception. Raises `OutOfStep` unless `start` is
        what `received` says, `DataDamaged` if the bytes are wrong, `OSError` if they cannot be kept.
        """
        _expect_id(segment_id)
        async with self._lock("receive", segment_id):
            if segment_id in self._ids:
                return True
            intake = await self._intake(segment_id)
            if intake.received == intake.total:  # an earlier life ended before it could make them durable
                start, chunks, total = intake.received, _nothing(), intake.received
            if start != intake.received:
                raise OutOfStep(intake.received)
            self._expect_total(intake, segment_id, total)
            await in_thread(self._io, self._make_room, total - start)
            try:
                await self._feed(intake, segment_id, total, chunks)
            finally:
                if intake.received != intake.total:
                    await in_thread(self._io, intake.pause)
            if intake.received != intake.total:
                return False
            async with self._lock("move", segment_id):
                await in_thread(self._io, self._complete, intake, segment_id)
                self._intakes.pop(segment_id, None)
                self._ids[segment_id] = object()
        self.changed(segment_id)
        return True

    async def adopt(self, segment_id: str) -> bool:
        """Take in what a worker of this node made; whether it is here, verified and durable, afterwards.

        It is treated as what arrived in a former life: compared with its checksums, synced, and then here. Raises
        `OSError` if it cannot be kept.
        """
        _expect_id(segment_id)
        async with self._lock("receive", segment_id):
            if segment_id in self._ids:
                return True
            if await in_thread(self._io, self._take_made, segment_id):
                self._intakes.pop(segment_id, None)
        await self.received(segment_id)  # also if another one has just moved it there
        return self.has(segment_id)

    def _take_made(self, segment_id: str) -> bool:
        made, incoming = self.made / segment_id, self._incoming / segment_id
        if not made.exists():
            return False
        shutil.rmtree(incoming, ignore_errors=True)  # the beginning of the same
        made.rename(incoming)
        return True

    async def _feed(self, intake: Intake, segment_id: str, total: int, chunks: AsyncIterator[bytes]) -> None:
        pieces: list[bytes] = []
        size = 0
        try:
            async for chunk in chunks:
                pieces.append(chunk)
                size += len(chunk)
                if size >= FEED_BYTES:
                    data, pieces, size = pieces, [], 0
                    await self._keep(intake, _feed, intake, data)
                    self._expect_total(intake, segment_id, total)
        finally:
            if pieces:
                await self._keep(intake, _feed, intake, pieces)
                self._expect_total(intake, segment_id, total)

    async def _keep(self, intake: Intake, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await in_thread(self._io, work, *args, **kwargs)
        except OSError:
            # Others may need less room. And after a failed sync nobody knows what was written: begin anew.
            await in_thread(self._io, intake.discard)
            raise

    def _expect_total(self, intake: Intake, segment_id: str, total: int) -> None:
        if intake.total not in (None, total) or total <= HEAD_BYTES:
            raise DataDamaged(f"{short(segment_id)}: expected {intake.total or 'more'} bytes in all, not {total}")

    async def _intake(self, segment_id: str) -> Intake:
        intake = self._intakes.pop(segment_id, None)
        if intake is None:
            intake = await in_thread(self._io, Intake, self._incoming / segment_id, segment_id)
        self._intakes[segment_id] = intake  # the last one again
        for other in list(self._intakes)[: max(0, len(self._intakes) - KNOWN_MAX)]:
            if ("receive", other) not in self._locks:  # nobody uses it
                del self._intakes[other]
        return intake

    def _complete(self, intake: Intake, segment_id: str) -> None:
        try:
            intake.finish()
        except OSError:
            intake.discard()  # after a failed sync nobody knows what was written
            raise
        self._settle(segment_id)

    def _settle(self, segment_id: str) -> None:
        """What arrived is durable: let it be here, and make that durable."""
        place = self._here / segment_id
        if place.exists():  # it went bad, and could not be moved away; or it was put back while this came
            self._move(place, self._bad / segment_id)
        (self._incoming / segment_id).rename(place)
        sync_directory(self._here)
        sync_directory(self._incoming)

    async def size_on_disk(self, segment_id: str) -> int:
        """Bytes of a segment's files, whatever they are; 0 if it is not here."""
        path = self._here / segment_id
        return await in_thread(self._io, lambda: sum(each.lstat().st_size for each in path.glob("*")))

    def disk_bytes(self) -> int:
        """Of the whole disk."""
        disk = os.statvfs(self._here)
        return disk.f_blocks * disk.f_frsize

    def room_bytes(self) -> int:
        """How much may still be written, beside what could be made room for."""
        disk = os.statvfs(self._here)
        return max(0, int(disk.f_bavail * disk.f_frsize - FREE_SHARE * disk.f_blocks * disk.f_frsize))

    def _make_room(self, size: int) -> None:
        if size <= self.room_bytes():
            return
        for path in sorted(self._bad.iterdir(), key=_touched):
            shutil.rmtree(path, ignore_errors=True)
            if size <= self.room_bytes():
                return
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size} bytes to come, room for {self.room_bytes()}")

    # --- What goes --------------------------------------------------------------------------------------

    async def trash(self, segment_id: str) -> None:
        """Take a segment out. Its files are there until `purge`, for who has them open, and for `restore`."""
        async with self._lock("move", segment_id):
            path = self.path(segment_id)
            self._forget(segment_id)
            try:
                await in_thread(self._io, self._move, path, self._trash / segment_id)
            except OSError:
                if path.exists():
                    self._ids[segment_id] = object()
                    self.changed(segment_id)
                raise

    async def restore(self, segment_id: str) -> bool:
        """Put a segment back that was taken out; whether it was still there. It has to be verified anew."""
        _expect_id(segment_id)
        async with self._lock("move", segment_id):
            if segment_id in self._ids:
                return True
            try:
                await in_thread(self._io, self._move, self._trash / segment_id, self._here / segment_id)
            except FileNotFoundError:
                return False
            self._ids[segment_id] = object()
        self.changed(segment_id)
        return True

    async def trashed(self) -> dict[str, float]:
        """The segments that were taken out, and how many seconds ago, by this machine's clock."""
        return await in_thread(self._io, lambda: _ages(self._trash))

    async def remove(self, segment_id: str) -> None:
        """Remove for good one that was taken out. From the first moment on it cannot be restored, not even in part."""
        _expect_id(segment_id)
        async with self._lock("move", segment_id):
            await in_thread(self._io, self._unlink, self._trash / segment_id)

    @staticmethod
    def _unlink(path: Path) -> None:
        going = path.with_suffix(GOING)  # no id: what is left of it after a crash is none of ours
        if going.exists():
            shutil.rmtree(going)
        with suppress(FileNotFoundError):
            path.rename(going)
            shutil.rmtree(going)

    def _unlink_rests(self) -> None:
        for path in self._trash.glob(f"*{GOING}"):
            shutil.rmtree(path)

    async def purge(self, older_than_s: float) -> list[str]:
        """Remove for good what was taken out before so many seconds; gives the ids. Old rests go, too."""
        purged = [name for name, age_s in (await self.trashed()).items() if age_s >= older_than_s]
        for segment_id in purged:
            await self.remove(segment_id)
        await self.tidy()
        return purged

    async def tidy(self) -> None:
        """Remove what nobody will want: beginnings whose rest never came, what was found bad long ago, and what is left
        of a removal in which a former life ended."""
        await in_thread(self._io, _remove, self._bad, BAD_KEPT_S, frozenset[str]())
        await in_thread(self._io, self._unlink_rests)
        await in_thread(self._io, _remove, self.made, MADE_KEPT_S, frozenset[str]())
        arriving = frozenset(segment_id for kind, segment_id in self._locks if kind == "receive")
        gone = await in_thread(self._io, _remove, self._incoming, INCOMING_KEPT_S, arriving)
        for segment_id in gone:
            self._intakes.pop(segment_id, None)

    def _forget(self, segment_id: str) -> None:
        self._ids.pop(segment_id, None)
        self._checked.pop(segment_id, None)
        self.changed(segment_id)

    @staticmethod
    def _move(path: Path, to: Path) -> None:
        if to.exists():
            shutil.rmtree(to)
        os.utime(path)  # when it was taken out
        path.rename(to)
        sync_directory(to.parent)
        sync_directory(path.parent)

    # --- Below ------------------------------------------------------------------------------------------

    def _expect(self, segment_id: str) -> None:
        if segment_id not in self._ids:
            raise DataUnavailable(f"{short(segment_id)} is not on this node")

    @asynccontextmanager
    async def _guarded(self, segment_id: str) -> AsyncIterator[None]:
        """Whatever finds out in this block that the segment is damaged: it is here no more."""
        which = self._ids.get(segment_id)
        try:
            yield
        except DataDamaged as error:
            if self._ids.get(segment_id) is which is not None:  # else it went before, and may have come anew
                await self._quarantine(segment_id, str(error))
            raise

    async def _quarantine(self, segment_id: str, why: str) -> None:
        self.quarantined += 1
        self._forget(segment_id)
        self.damaged(segment_id, why)
        async with self._lock("move", segment_id):
            if segment_id in self._ids:  # another one came meanwhile, and put this out of its way
                return
            # A disk that is read-only, say: after a restart it is found again, and again not believed.
            with suppress(OSError):
                await in_thread(self._io, self._move, self._here / segment_id, self._bad / segment_id)

    @asynccontextmanager
    async def _lock(self, kind: str, segment_id: str) -> AsyncIterator[None]:
        """One of a kind at a time: check and receive, and within these move. `TimeoutError` if another takes too long
        to receive it."""
        key = kind, segment_id
        lock = self._locks.setdefault(key, _Lock())
        lock.wanted += 1
        try:
            async with asyncio.timeout(WAIT_S if kind == "receive" else None):  # a check ends by itself
                await lock.lock.acquire()
            try:
                yield
            finally:
                lock.lock.release()
        finally:
            lock.wanted -= 1
            if not lock.wanted:
                del self._locks[key]


class _Lock:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.wanted = 0


async def _nothing() -> AsyncIterator[bytes]:
    empty: list[bytes] = []
    for data in empty:
        yield data


def _expect_id(segment_id: str) -> None:
    if not is_id(segment_id):
        raise DataUnavailable(f"expected 64 hex digits, got {segment_id[:80]!r}")


def _feed(intake: Intake, pieces: list[bytes]) -> None:
    for piece in pieces:
        intake.feed(memoryview(piece))


def _advance(steps: Iterator[int]) -> int:
    """Go on for CHECK_STEP_BYTES; the bytes done, 0 at the end."""
    done = 0
    for size in steps:
        done += size
        if done >= CHECK_STEP_BYTES:
            break
    return done


def _touched(path: Path) -> float:
    return path.lstat().st_mtime


def _ages(directory: Path) -> dict[str, float]:
    now = time.time()  # compared with the times of files of this very machine
    return {path.name: now - _touched(path) for path in directory.iterdir() if is_id(path.name)}


def _remove(directory: Path, older_than_s: float, but: Set[str]) -> list[str]:
    """Remove the segments in this directory that were not touched for so long, but not those; gives their ids."""
    gone = [name for name, age_s in _ages(directory).items() if age_s >= older_than_s and name not in but]
    for name in gone:
        shutil.rmtree(directory / name)
    return gone
