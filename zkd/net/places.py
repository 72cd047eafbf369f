"""Where packed segments may lie beside nodes: a directory that machines share, or a bucket. Both block: use threads.

    file:///shared/zkd       <directory>/<id>
    s3://bucket/prefix       <prefix>/<id>, by s3fs, with the keys and the endpoint of the usual AWS settings

A place puts a whole object or none, and gives ranges of one. What it gives is not believed by anybody. Other schemes
are refused before anything is imported for them: a URL comes from a manifest, which comes over a wire.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from zkd.errors import BadRecord, DataUnavailable
from zkd.store.segment_files import sync_directory, write_all

URL = re.compile(r"(?P<scheme>file|s3)://(?P<path>[A-Za-z0-9_.=/+-]{1,1000})\Z", re.ASCII)
UPLOAD_BYTES = 16 * 2**20  # of one piece of a large object; S3 takes 10,000 of them
# s3fs waits without end for a server that does not answer. These bound one try of a request.
S3_CONFIG = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 3, "mode": "standard"}}


class Place(Protocol):
    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> None: ...

    def get(self, name: str, start: int, stop: int) -> bytes: ...

    def size(self, name: str) -> int: ...


def check_url(url: str, where: str = "store") -> str:
    """The URL without a slash at its end. Raises `BadRecord` if it names no place."""
    match = URL.match(url)
    parts = match["path"].split("/") if match else []
    if match is None or ".." in parts or "." in parts or (match["scheme"] == "file" and parts[0]) or not any(parts):
        raise BadRecord(where, f"expected file:///directory or s3://bucket/prefix, got {url[:200]!r}")
    return url.rstrip("/")


def is_within(url: str, allowed: Iterable[str]) -> bool:
    """Whether it is one of these URLs, or below one."""
    return any(url == each.rstrip("/") or url.startswith(f"{each.rstrip('/')}/") for each in allowed)


def place_of(url: str) -> Place:
    """The place at this URL. Raises `BadRecord`, `DataUnavailable`."""
    scheme, _, path = check_url(url).partition("://")
    return Directory(Path(path)) if scheme == "file" else Bucket(path)


class Directory:
    """A directory; on a disk that several machines mount, for more than one node."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        half_written = self._path / f".{name}.{os.urandom(4).hex()}.tmp"
        fd = os.open(half_written, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                for piece in pieces:
                    write_all(fd, memoryview(piece))
                os.fsync(fd)
            finally:
                os.close(fd)
            half_written.rename(self._path / name)
        except BaseException:
            with suppress(OSError):
                half_written.unlink()
            raise
        sync_directory(self._path)

    def get(self, name: str, start: int, stop: int) -> bytes:
        fd = os.open(self._path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            data = os.pread(fd, stop - start, start)
            while len(data) < stop - start and (more := os.pread(fd, stop - start - len(data), start + len(data))):
                data += more
            return data
        finally:
            os.close(fd)

    def size(self, name: str) -> int:
        return os.lstat(self._path / name).st_size


class Bucket:
    """S3, and what speaks like it: $AWS_ENDPOINT_URL names another server than Amazon's."""

    def __init__(self, path: str) -> None:
        try:
            import botocore.exceptions
            import s3fs
        except ImportError as error:
            raise DataUnavailable(f"s3://{path} needs the packages of zkd[stores]: {error}") from None
        self._path = path
        self._faults = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
        self._fs: Any = s3fs.S3FileSystem(
            config_kwargs=dict(S3_CONFIG),
            use_listings_cache=False,
            default_fill_cache=False,
            skip_instance_cache=True,  # the next one may have other keys
        )

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        with _told_as(self._faults):
            # Nothing has this name before `commit`, also when the pieces end in an exception.
            file = self._fs.open(f"{self._path}/{name}", "wb", block_size=UPLOAD_BYTES, autocommit=False)
            try:
                for piece in pieces:
                    file.write(piece)
                file.close()
                file.commit()
            except BaseException:
                with suppress(OSError, *self._faults):
                    file.discard()
                file.closed = True  # or it would upload what it has when it is collected as garbage
                raise

    def get(self, name: str, start: int, stop: int) -> bytes:
        with _told_as(self._faults):
            data: bytes = self._fs.cat_file(f"{self._path}/{name}", start=start, end=stop)
            return data

    def size(self, name: str) -> int:
        with _told_as(self._faults):
            return int(self._fs.info(f"{self._path}/{name}")["size"])


class _told_as:  # noqa: N801 - a block
    """Errors of these kinds leave the block as `OSError`, as all others of a place are."""

    def __init__(self, faults: tuple[type[Exception], ...]) -> None:
        self._faults = faults

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self._faults):
            raise OSError(f"{type(error).__name__}: {error}") from error
