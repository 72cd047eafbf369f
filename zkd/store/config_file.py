"""The last good central configuration on a node's own disk, for a start without ZooKeeper.

    <data_dir>/config     a line with the digest of the rest; the rest as `zkd.core.config` wrote it

It is replaced whole, and is on the disk before the values in it are taken over.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from zkd.errors import DataDamaged

_MAGIC = b"zkd-config-1 sha256:"


class ConfigFile:
    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "config"

    def write(self, text: bytes) -> None:
        """Keep this instead of what was kept. Raises `OSError`; then the former one stays."""
        half_written = self._path.with_suffix(".tmp")
        fd = os.open(half_written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
            file.flush()
            os.fsync(fd)
        half_written.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read(self) -> bytes | None:
        """What was kept, or None. Raises `DataDamaged`, `OSError`."""
        try:
            line, _, text = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if line != _MAGIC + hashlib.sha256(text).hexdigest().encode():
            raise DataDamaged(f"{self._path}: expected the bytes that its first line is the digest of")
        return text
