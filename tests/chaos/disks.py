"""Small disks that can be filled: a tmpfs for a daemon, an ext4 image for a server, which needs a real fsync.

It takes root. Where that is missing the directories are plain ones, and the faults of disks miss.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILLER = "filler"


def is_possible() -> bool:
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in ("mount", "umount", "mkfs.ext4"))


@contextmanager
def mounted(directory: Path, *, megabytes: int, is_durable: bool) -> Iterator[bool]:
    """A disk of its own at `directory`; False where that cannot be had."""
    directory.mkdir(parents=True, exist_ok=True)
    if not is_possible():
        yield False
        return
    image = directory.with_suffix(".image")
    try:
        if is_durable:
            with image.open("wb") as file:
                file.truncate(megabytes * 2**20)
            _run("mkfs.ext4", "-q", "-m", "0", str(image))
            _run("mount", "-o", "loop", str(image), str(directory))
        else:
            _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "zkd-chaos", str(directory))
    except subprocess.CalledProcessError:
        yield False
        return
    try:
        yield True
    finally:
        keep = directory.with_suffix(".kept")
        if is_durable:  # its logs are evidence
            shutil.copytree(directory, keep, dirs_exist_ok=True)
        _run("umount", "-l", str(directory))
        if is_durable:
            directory.rmdir()
            keep.rename(directory)
            image.unlink()


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def fill(directory: Path) -> dict[str, object]:
    """Fill the disk at `directory` to its last byte; the proof."""
    filler = directory / FILLER
    written = 0
    with filler.open("ab", buffering=0) as file:
        room = shutil.disk_usage(directory).free - 2**20
        if room > 0:
            os.posix_fallocate(file.fileno(), 0, room)
            file.seek(0, os.SEEK_END)
            written = room
        for size in (2**16, 2**12, 1):
            block = b"\xff" * size
            while True:
                try:
                    written += file.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
                if size == 1 and written % 4096 == 0:
                    break
    free = shutil.disk_usage(directory).free
    return {"filled": written, "free": free} if free < 4096 else {}


def free(directory: Path) -> None:
    (directory / FILLER).unlink(missing_ok=True)
