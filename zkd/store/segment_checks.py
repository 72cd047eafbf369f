"""Reads segments from a disk that is not believed: what comes out is what its digests say, or nothing.

Damage is a file that is missing, short, no file, or other than it should be, and one that the disk cannot read.
What is wrong with this process instead, such as too many open files, stays an `OSError`: it says nothing about the
data. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from zkd.errors import DataDamaged
from zkd.manifests import BLOCK_BYTES, Segment
from zkd.store.segment_files import SEGMENT_JSON, SEGMENT_JSON_BYTES_MAX, Block, file_name, header_of, parse, short

# Opening or reading gives these when the file is not as it was written. ENXIO and ELOOP: a pipe, a link.
_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO, errno.EUCLEAN, errno.EBADMSG}


def check(directory: Path, segment_id: str) -> Segment:
    """The segment in this directory, after every byte of it was compared with what it should be.

    Raises `DataDamaged`; `OSError` if that cannot be told. Files that do not belong to it are not looked at.
    """
    segment = read_segment(directory, segment_id)
    for _ in checking(directory, segment_id, segment):
        pass
    return segment


def checking(directory: Path, segment_id: str, segment: Segment, *, from_disk: bool = False) -> Generator[int]:
    """`check` step by step: the bytes of each block, after it was found good; raises as it.

    `from_disk`: what the kernel remembers of the files is forgotten first, since a disk rots behind its back.
    """
    with SegmentReader(directory, segment_id, segment, from_disk=from_disk) as reader:
        for number, file in enumerate(segment.files):
            digest = blake3()
            for index in range(len(file.blocks)):
                block = reader.block(number, index)
                digest.update(block)
                yield len(block)
            if digest.hexdigest() != file.blake3:
                raise DataDamaged(f"{short(segment_id)}: {file_name(number)} has another digest")


def read_segment(directory: Path, segment_id: str) -> Segment:
    """segment.json of this directory, checked; the files are not looked at. Raises as `check`."""
    return parse(read_json(directory, segment_id), segment_id)


def read_json(directory: Path, segment_id: str) -> bytes:
    """The bytes of segment.json, whatever they are. Raises as `check`."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _judged(error, segment_id, "its directory") from None
    try:
        with _Opened(SEGMENT_JSON, segment_id, fd) as file:
            if file.stat.st_size > SEGMENT_JSON_BYTES_MAX:
                raise DataDamaged(f"{short(segment_id)}: {SEGMENT_JSON} is too large")
            return file.read(0, file.stat.st_size)
    finally:
        os.close(fd)


def signature(directory: Path, segment_id: str, files: int) -> tuple[str, int]:
    """What changes when any file is touched, and when the last one was, in ns of this machine's clock."""
    marks: list[tuple[int, int, int, int]] = []
    for name in (SEGMENT_JSON, *map(file_name, range(files))):
        try:
            found = os.lstat(directory / name)
        except OSError as error:
            raise _judged(error, segment_id, name) from None
        marks.append((found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return xxh3_128_hexdigest(repr(marks).encode()), max(mark[3] for mark in marks)


class SegmentReader:
    """The blocks of a segment, each checked as it is read, also if the directory is renamed meanwhile.

    Keeps the file open that was read last. Raises as `check`.
    """

    def __init__(self, directory: Path, segment_id: str, segment: Segment, *, from_disk: bool = False) -> None:
        self._id = segment_id
        self._segment = segment
        self._from_disk = from_disk
        self._number = -1
        self._file: _Opened | None = None
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _judged(error, segment_id, "its directory") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._close_file()
        os.close(self._directory)

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, place: Block) -> bytes:
        return self.block(place.file, place.block)

    def block(self, number: int, index: int) -> bytes:
        """Block `index` of file `number`. Raises as `check`."""
        opened, size = self._opened(number), self._segment.files[number].size
        offset = index * BLOCK_BYTES
        data = opened.read(offset, min(BLOCK_BYTES, size - offset))
        self._check(number, index, memoryview(data))
        return data

    def fill(self, number: int, into: memoryview) -> None:
        """Put all of a file there, which has room for just that. Raises `check`."""
        opened = self._opened(number)
        for index in range(len(self._segment.files[number].blocks)):
            offset = index * BLOCK_BYTES
            block = into[offset : offset + BLOCK_BYTES]
            opened.read_into(offset, block)
            self._check(number, index, block)

    def _opened(self, number: int) -> _Opened:
        """The file, which is as long as it should be."""
        opened, size = self._open(number), self._segment.files[number].size
        if opened.stat.st_size != size:
            what = file_name(number)
            raise DataDamaged(f"{short(self._id)}: {what}: expected {size} bytes, got {opened.stat.st_size}")
        return opened

    def _check(self, number: int, index: int, data: memoryview) -> None:
        file, what = self._segment.files[number], file_name(number)
        if xxh3_64_intdigest(data) != file.blocks[index]:
            raise DataDamaged(f"{short(self._id)}: {what}: block {index} has another checksum")
        if index == 0 and data[: len(header := header_of(self._segment, number))] != header:
            raise DataDamaged(f"{short(self._id)}: {what}: expected the .npy header of its column")

    def _open(self, number: int) -> _Opened:
        if self._file is None or self._number != number:
            self._close_file()
            self._file = _Opened(file_name(number), self._id, self._directory)
            self._number = number
            if self._from_disk:
                self._file.forget()
        return self._file


class _Opened:
    """A regular file, open for reading and not by way of a link."""

    def __init__(self, name: str, segment_id: str, directory: int) -> None:
        self._name = name
        self._id = segment_id
        try:
            # Without O_NONBLOCK a pipe in the place of a file would hold this thread for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._fd = os.open(name, flags, dir_fd=directory)
        except OSError as error:
            raise _judged(error, segment_id, name) from None
        self.stat = os.fstat(self._fd)
        if not stat.S_ISREG(self.stat.st_mode):
            self.close()
            raise DataDamaged(f"{short(segment_id)}: {name} is no file")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def forget(self) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes, or `DataDamaged`."""
        try:
            data = os.pread(self._fd, size, offset)
            while len(data) < size:  # a read ends early at signals and at the file's end
                more = os.pread(self._fd, size - len(data), offset + len(data))
                if not more:
                    raise DataDamaged(f"{short(self._id)}: {self._name} ends too early")
                data += more
        except OSError as error:
            raise _judged(error, self._id, self._name) from None
        return data

    def read_into(self, offset: int, into: memoryview) -> None:
        """As many bytes as have room there, or `DataDamaged`."""
        try:
            while into:
                size = os.preadv(self._fd, [into], offset)
                if not size:
                    raise DataDamaged(f"{short(self._id)}: {self._name} ends too early")
                into, offset = into[size:], offset + size
        except OSError as error:
            raise _judged(error, self._id, self._name) from None


def _judged(error: OSError, segment_id: str, name: str) -> Exception:
    """The error as it is, or that the data is damaged, if it says that."""
    if error.errno in _DAMAGE:
        return DataDamaged(f"{short(segment_id)}: {name}: {error.strerror}")
    return error
