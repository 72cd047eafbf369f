"""Checkpoints and models of training jobs, as files: a directory of `zkd.store.digest_files` for each job.

    <data_dir>/checkpoints/<job>/<blake3>    whole, synced, and compared with its name each time it is read

Names of jobs are checked, never other text from the wire. Bytes that are not what their name says are removed when they
are met: there are copies elsewhere, or the rounds are gone through again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from zkd.errors import DataUnavailable
from zkd.paths import JobId, is_name
from zkd.store.digest_files import DigestFiles
from zkd.store.threads import in_thread

FILE_BYTES_MAX = 4 * 2**30  # a coordinator holds it in memory


class CheckpointStore:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "checkpoints"
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._jobs: dict[JobId, DigestFiles] = {}  # one object a job: each counts its own arrivals
        for directory in self._path.iterdir():
            if (files := self.of(directory.name)) is not None:
                files.clear_arrivals()

    def of(self, job: JobId) -> DigestFiles | None:
        """The files of a job; None for what is no name of one."""
        if not is_name(job):
            return None
        if job not in self._jobs:
            self._jobs[job] = DigestFiles(self._path / job, bytes_max=FILE_BYTES_MAX)
        return self._jobs[job]

    def has(self, job: JobId, file_id: str) -> bool:
        return (files := self.of(job)) is not None and files.lies(file_id)

    async def write(self, job: JobId, data: bytes) -> str:
        """Keep these bytes; durable when this returns their id. Raises `OSError`."""

        async def whole() -> AsyncIterator[bytes]:
            yield data

        file_id = (await in_thread(None, blake3, data)).hexdigest()
        await self.receive(job, file_id, len(data), whole())
        return file_id

    async def receive(self, job: JobId, file_id: str, size: int, chunks: AsyncIterator[bytes]) -> bool:
        """As `DigestFiles.receive`."""
        files = self.of(job)
        assert files is not None, job
        return await files.receive(file_id, size, chunks)

    async def read(self, job: JobId, file_id: str) -> bytes:
        """As `DigestFiles.read`."""
        files = self.of(job)
        if files is None:
            raise DataUnavailable(f"no file {file_id[:64]!r} of a job {job[:128]!r}")
        return await files.read(file_id)

    def ages(self) -> dict[JobId, dict[str, float]]:
        """The files of each job, and the seconds since each came here."""
        found = {}
        for directory in self._path.iterdir():
            files = self.of(directory.name)
            found[directory.name] = {} if files is None else files.ages()
        return found

    def remove(self, job: JobId, file_id: str) -> None:
        files = self.of(job)
        if files is not None:
            files.remove(file_id)
            self.remove_empty(job)

    def remove_empty(self, job: JobId) -> None:
        if is_name(job):
            with suppress(OSError):  # it has others
                (self._path / job).rmdir()
