"""Files in one directory, each named by the blake3 of its bytes: whole, synced, and compared with that name when read.

    <directory>/<blake3>    what was sent here; bytes that have become others are removed when they are met
    <directory>/*.tmp       still arriving; of a former life when a daemon starts (`clear_arrivals`)

Names are 64 hex digits, never other text from the wire. What was compared once is believed as long as nobody wrote to
the file, by its inode, size and times; `read` and `verify` believe nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from zkd.errors import DataDamaged, DataUnavailable
from zkd.store.segment_files import sync_directory
from zkd.store.threads import in_thread

ROOM_SHARE = 2  # a file may take half of what is free on the disk
READ_BYTES = 1 << 20

_ID = re.compile(r"[0-9a-f]{64}\Z")

Mark = tuple[int, int, int, int]


class DigestFiles:
    """The directory is made with the first file. One object a directory: it counts its arrivals."""

    def __init__(self, directory: Path, *, bytes_max: int) -> None:
        self.directory = directory
        self._bytes_max = bytes_max
        self._arrivals = 0
        self._verified: dict[str, Mark] = {}

    def path(self, file_id: str) -> Path | None:
        """Where the file is, if it is here and nobody wrote to it since it was compared with its name."""
        if not is_id(file_id):
            return None
        path = self.directory / file_id
        mark = _mark(path)
        return path if mark is not None and self._verified.get(file_id) == mark else None

    def clear_arrivals(self) -> None:
        """Remove what had not arrived when a former life ended."""
        for half_written in self.directory.glob("*.tmp"):
            half_written.unlink(missing_ok=True)

    def lies(self, file_id: str) -> bool:
        """Whether there is such a file, good or not."""
        return is_id(file_id) and (self.directory / file_id).exists()

    def size(self, file_id: str) -> int | None:
        """None if it is not here, or not known to be good."""
        path = self.path(file_id)
        mark = None if path is None else _mark(path)
        return None if mark is None else mark[1]

    def ids(self) -> set[str]:
        """The files that lie here, good or not."""
        try:
            return {entry.name for entry in os.scandir(self.directory) if is_id(entry.name)}
        except OSError:
            return set()

    def ages(self) -> dict[str, float]:
        """The seconds since each file that lies here was last sent or fetched."""
        now, found = time.time(), dict[str, float]()  # compared with times of files of this very machine
        for file_id in self.ids():
            with suppress(OSError):
                found[file_id] = max(0.0, now - (self.directory / file_id).stat().st_mtime)
        return found

    def room_bytes(self) -> int:
        """How large a file may come."""
        return min(self._bytes_max, shutil.disk_usage(self.directory.parent).free // ROOM_SHARE)

    async def receive(self, file_id: str, size: int, chunks: AsyncIterator[bytes]) -> bool:
        """Keep what arrives, if it is these bytes; False if they were here before, and are good.

        Durable when this returns, and young. Raises `DataDamaged` for other bytes, and `OSError`.
        """
        assert is_id(file_id), file_id
        path = self.directory / file_id
        with suppress(DataUnavailable, DataDamaged):
            await self.verify(file_id)
            await in_thread(None, self._touch, file_id)
            return False
        await in_thread(None, self._make_directory)
        self._arrivals += 1
        half_written = path.with_suffix(f".{self._arrivals}.tmp")
        digest, came = blake3(), 0
        try:
            with half_written.open("xb") as file:
                async for chunk in chunks:
                    came += len(chunk)
                    if came > size:
                        break
                    await in_thread(None, _take, file, digest, chunk)
                if came != size or digest.hexdigest() != file_id:
                    raise DataDamaged(f"file {file_id[:12]}: expected its {size} bytes, got {came} others")
                await in_thread(None, _sync, file)
            await in_thread(None, self._move, half_written, file_id)
        finally:
            half_written.unlink(missing_ok=True)
        return True

    async def read(self, file_id: str) -> bytes:
        """All of it, as it was written. Raises `DataUnavailable` if it is not here, `DataDamaged` if it is another."""
        path = self._expect(file_id)
        try:
            data, found = await in_thread(None, _read, path)
        except OSError as error:
            raise _unreadable(file_id, error) from None
        if found != file_id:
            raise self._bad(file_id)
        return data

    async def blocks(self, file_id: str) -> AsyncGenerator[bytes]:
        """The bytes, some at a time; the last of them only when all of them were compared. Raises as `read`."""
        path = self._expect(file_id)
        digest = blake3()
        try:
            with await in_thread(None, path.open, "rb") as file:
                block = await in_thread(None, _next, file, digest)
                while block:
                    following = await in_thread(None, _next, file, digest)
                    if not following and digest.hexdigest() != file_id:
                        raise self._bad(file_id)
                    yield block
                    block = following
        except OSError as error:
            raise _unreadable(file_id, error) from None

    async def verify(self, file_id: str) -> int:
        """The size of a file that was read anew and is what its name says. Raises as `read`."""
        path = self._expect(file_id)
        try:
            mark, found = await in_thread(None, _digest, path)
        except OSError as error:
            raise _unreadable(file_id, error) from None
        if found != file_id:
            raise self._bad(file_id)
        self._verified[file_id] = mark
        return mark[1]

    def remove(self, file_id: str) -> None:
        if is_id(file_id):
            self._verified.pop(file_id, None)
            (self.directory / file_id).unlink(missing_ok=True)

    def _expect(self, file_id: str) -> Path:
        if not is_id(file_id):
            raise DataUnavailable(f"expected the 64 hex digits of a file, got {file_id[:80]!r}")
        return self.directory / file_id

    def _bad(self, file_id: str) -> DataDamaged:
        self.remove(file_id)
        return DataDamaged(f"file {file_id[:12]} has another digest, and was removed")

    def _make_directory(self) -> None:
        if not self.directory.exists():
            self.directory.mkdir(exist_ok=True, mode=0o700)
            sync_directory(self.directory.parent)

    def _touch(self, file_id: str) -> None:
        path = self.directory / file_id
        os.utime(path)
        if (mark := _mark(path)) is not None:
            self._verified[file_id] = mark

    def _move(self, half_written: Path, file_id: str) -> None:
        path = self.directory / file_id
        half_written.rename(path)
        sync_directory(self.directory)
        if (mark := _mark(path)) is not None:
            self._verified[file_id] = mark


def is_id(text: str) -> bool:
    return _ID.match(text) is not None


def _mark(path: Path) -> Mark | None:
    """Changes when somebody writes to the file, or puts another one there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _take(file: BinaryIO, digest: blake3, chunk: bytes) -> None:
    digest.update(chunk)
    file.write(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _next(file: BinaryIO, digest: blake3) -> bytes:
    block = file.read(READ_BYTES)
    digest.update(block)
    return block


def _read(path: Path) -> tuple[bytes, str]:
    data = path.read_bytes()
    return data, blake3(data).hexdigest()


def _digest(path: Path) -> tuple[Mark, str]:
    digest = blake3()
    with path.open("rb") as file:
        stat = os.fstat(file.fileno())
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns), digest.hexdigest()


def _unreadable(file_id: str, error: OSError) -> DataUnavailable:
    if isinstance(error, FileNotFoundError):
        return DataUnavailable(f"file {file_id[:12]} is not on this node")
    return DataUnavailable(f"file {file_id[:12]} cannot be read: {error.strerror}")
