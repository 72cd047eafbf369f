"""Values too large for a znode, as files: results made here, and arguments fetched from other nodes.

    <data_dir>/blobs/<task id>.<sha256>.<npy|json>    results of tasks that ran here
    <data_dir>/cache/<sha256>.<npy|json>              copies of other nodes' blobs

A file is complete when it has its name: it is written under another one, checked, synced and renamed. Names
are made of checked ids and hex digits, never of text from the wire. A result's file lives as long as the
result's znode; a copy may be dropped at any time when it is not in use.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from zkd.errors import ResultLost
from zkd.paths import TaskId
from zkd.store.segment_files import sync_directory

BlobFormat = Literal["npy", "json"]

_RESULT = re.compile(r"(?P<id>.+)\.(?P<sha>[0-9a-f]{64})\.(?P<format>npy|json)\Z")
_SHA = re.compile(r"[0-9a-f]{64}\Z")
CACHE_BYTES_MAX = 4 * 1024**3
# A file without a znode may be one whose znode is about to be created.
ORPHAN_GRACE_S = 120.0


class BlobStore:
    def __init__(self, data_dir: Path) -> None:
        self.results = data_dir / "blobs"
        self.cache = data_dir / "cache"
        self._by_sha: dict[str, list[Path]] = {}  # two tasks may have given the same bytes
        for directory in (self.results, self.cache):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for half_written in self.cache.glob("*.tmp"):
            half_written.unlink(missing_ok=True)
        for path in list(self.results.iterdir()):
            name = _RESULT.match(path.name)
            if name:
                self._by_sha.setdefault(name["sha"], []).append(path)
            else:  # a worker of a former life wrote it, and nobody published it
                path.unlink(missing_ok=True)

    def keep(self, path: Path, task_id: TaskId, sha256: str, blob_format: BlobFormat) -> Path:
        """Take over a synced file that a worker wrote, as the result of this task."""
        kept = self.results / f"{task_id}.{sha256}.{blob_format}"
        path.rename(kept)
        sync_directory(self.results)
        same = self._by_sha.setdefault(sha256, [])
        if kept not in same:
            same.append(kept)
        return kept

    def find(self, sha256: str) -> Path | None:
        """The file with these bytes, if it lies here."""
        if not is_digest(sha256):
            return None
        for path in self._by_sha.get(sha256, ()):
            if path.exists():
                return path
        for blob_format in ("npy", "json"):
            cached = self.cache / f"{sha256}.{blob_format}"
            if cached.exists():
                with suppress(OSError):
                    os.utime(cached)  # the cache drops what was not used for longest
                return cached
        return None

    def room_bytes(self) -> int:
        """How large a copy may be: the cache's size, or half of what is free on the disk."""
        return min(CACHE_BYTES_MAX, shutil.disk_usage(self.cache).free // 2)

    async def receive(self, sha256: str, size: int, blob_format: BlobFormat, chunks: AsyncIterator[bytes]) -> Path:
        """Write what arrives to the cache; `ResultLost` unless it is exactly the bytes it should be."""
        self._make_room(size)
        path = self.cache / f"{sha256}.{blob_format}"
        half_written = self.cache / f"{sha256}.{os.urandom(4).hex()}.tmp"
        digest = hashlib.sha256()
        written = 0
        try:
            with half_written.open("xb") as file:
                async for chunk in chunks:
                    written += len(chunk)
                    if written > size:
                        raise ResultLost(f"blob {sha256}: expected {size} bytes, got more")
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                # Seconds for a large one on a slow disk: longer than the loop may be away from ZooKeeper.
                await asyncio.to_thread(os.fsync, file.fileno())
            if written != size or digest.hexdigest() != sha256:
                raise ResultLost(f"blob {sha256}: expected {size} bytes of this sha256, got {written} other bytes")
            half_written.rename(path)
        finally:
            half_written.unlink(missing_ok=True)
        return path

    def task_ids(self) -> dict[TaskId, list[Path]]:
        """The tasks whose results lie here as files old enough to be judged."""
        found: dict[TaskId, list[Path]] = {}
        newest = time.time() - ORPHAN_GRACE_S  # compared with the times of files of this very machine
        for path in self.results.iterdir():
            name = _RESULT.match(path.name)
            if name and path.stat().st_mtime < newest:
                found.setdefault(name["id"], []).append(path)
        return found

    def drop(self, path: Path) -> None:
        """Remove a result's file; its znode is gone."""
        path.unlink(missing_ok=True)
        name = _RESULT.match(path.name)
        same = self._by_sha.get(name["sha"], []) if name else []
        if path in same:
            same.remove(path)
            if name and not same:
                del self._by_sha[name["sha"]]

    def _make_room(self, size: int) -> None:
        copies = [path for path in self.cache.iterdir() if path.suffix != ".tmp"]  # those are still arriving
        files = sorted((stat.st_atime, stat.st_size, path) for path in copies if (stat := path.stat()))
        total = size + sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in files:
            if total <= CACHE_BYTES_MAX:
                return
            path.unlink(missing_ok=True)  # a worker that has it mapped keeps it until it is done
            total -= bytes_


def is_digest(text: str) -> bool:
    return _SHA.match(text) is not None
