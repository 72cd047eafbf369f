"""Checkpoints and models of training jobs, as files.

    <data_dir>/checkpoints/<job>/<blake3>    whole, synced, and compared with its name each time it is read
    <data_dir>/checkpoints/<job>/*.tmp       still arriving; of a former life when the daemon starts

Names are checked ids and hex digits, never other text from the wire. Bytes that are not what their name says are
removed when they are met: there are copies elsewhere, or the rounds are gone through again.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from zkd.errors import DataDamaged, DataUnavailable
from zkd.paths import JobId, is_name
from zkd.store.segment_files import sync_directory
from zkd.store.threads import in_thread

FILE_BYTES_MAX = 4 * 2**30  # a coordinator holds it in memory
ROOM_SHARE = 2  # a file may take half of what is free on the disk

_ID = re.compile(r"[0-9a-f]{64}\Z")


class CheckpointStore:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "checkpoints"
        self._arrivals = 0
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for half_written in self._path.glob("*/*.tmp"):
            half_written.unlink(missing_ok=True)

    def has(self, job: JobId, file_id: str) -> bool:
        return self._is_named(job, file_id) and self._file(job, file_id).exists()

    def size(self, job: JobId, file_id: str) -> int | None:
        """None if it is not here."""
        try:
            return self._file(job, file_id).stat().st_size if self._is_named(job, file_id) else None
        except OSError:
            return None

    def room_bytes(self) -> int:
        """How large a file may come."""
        return min(FILE_BYTES_MAX, shutil.disk_usage(self._path).free // ROOM_SHARE)

    async def write(self, job: JobId, data: bytes) -> str:
        """Keep these bytes; durable when this returns their id. Raises `OSError`."""

        async def whole() -> AsyncIterator[bytes]:
            yield data

        file_id = (await in_thread(None, blake3, data)).hexdigest()
        await self.receive(job, file_id, len(data), whole())
        return file_id

    async def receive(self, job: JobId, file_id: str, size: int, chunks: AsyncIterator[bytes]) -> bool:
        """Keep what arrives, if it is these bytes; False if they were here before, and were good.

        Durable when this returns. Raises `DataDamaged` for other bytes, and `OSError`.
        """
        assert self._is_named(job, file_id), (job, file_id)
        with suppress(DataUnavailable, DataDamaged):
            await self.read(job, file_id)
            return False
        path = self._file(job, file_id)
        await in_thread(None, self._make_directory, path.parent)
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
                    raise DataDamaged(f"file {file_id[:12]} of {job}: expected its {size} bytes, got {came} others")
                await in_thread(None, _sync, file)
            await in_thread(None, _move, half_written, path)
        finally:
            half_written.unlink(missing_ok=True)
        return True

    async def read(self, job: JobId, file_id: str) -> bytes:
        """All of it, as it was written. Raises `DataUnavailable` if it is not here, `DataDamaged` if it is another."""
        if not self._is_named(job, file_id):
            raise DataUnavailable(f"no file {file_id[:64]!r} of a job {job[:128]!r}")
        path = self._file(job, file_id)
        try:
            data, found = await in_thread(None, _read, path)
        except FileNotFoundError:
            raise DataUnavailable(f"file {file_id[:12]} of {job} is not on this node") from None
        except OSError as error:
            raise DataUnavailable(f"file {file_id[:12]} of {job} cannot be read: {error.strerror}") from None
        if found != file_id:
            path.unlink(missing_ok=True)
            raise DataDamaged(f"file {file_id[:12]} of {job} has another digest, and was removed")
        return data

    def ages(self) -> dict[JobId, dict[str, float]]:
        """The files of each job, and the seconds since each came here."""
        now, found = time.time(), dict[JobId, dict[str, float]]()  # compared with times of files of this very machine
        for directory in self._path.iterdir():
            files = found.setdefault(directory.name, {})
            with suppress(OSError):
                for path in directory.iterdir():
                    if _ID.match(path.name):
                        with suppress(OSError):
                            files[path.name] = max(0.0, now - path.stat().st_mtime)
        return found

    def remove(self, job: JobId, file_id: str) -> None:
        if self._is_named(job, file_id):
            self._file(job, file_id).unlink(missing_ok=True)
            with suppress(OSError):  # it has others
                self._file(job, file_id).parent.rmdir()

    def remove_empty(self, job: JobId) -> None:
        if is_name(job):
            with suppress(OSError):
                (self._path / job).rmdir()

    def _make_directory(self, path: Path) -> None:
        path.mkdir(exist_ok=True, mode=0o700)
        sync_directory(self._path)

    def _file(self, job: JobId, file_id: str) -> Path:
        return self._path / job / file_id

    @staticmethod
    def _is_named(job: JobId, file_id: str) -> bool:
        return is_name(job) and _ID.match(file_id) is not None


def _take(file: BinaryIO, digest: blake3, chunk: bytes) -> None:
    digest.update(chunk)
    file.write(chunk)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _move(half_written: Path, path: Path) -> None:
    half_written.rename(path)
    sync_directory(path.parent)


def _read(path: Path) -> tuple[bytes, str]:
    data = path.read_bytes()
    return data, blake3(data).hexdigest()
