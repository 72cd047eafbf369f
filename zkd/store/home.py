"""A node's own directory: locked by one daemon, with what it must remember across a restart.

    <data_dir>/lock       held by the running daemon
    <data_dir>/session    the ZooKeeper session of the running daemon, or of the one that died

Knowing the session of its former life lets a restarted daemon end it at once; otherwise its entry in nodes/
would stand in the way until the session times out. The file is a key to that session: only we may read it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from zkd.errors import BadSettings


class _Former(msgspec.Struct, frozen=True):
    cluster: str  # hosts and root: a session of another cluster is no business of ours
    session_id: int
    password: bytes


class Home:
    """`with Home(path) as home:` makes the directory and holds its lock; `BadSettings` if it cannot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadSettings(f"node.data_dir: cannot use {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BadSettings(f"node.data_dir: {self.path} is in use by another zkd daemon") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def remember_session(self, cluster: str, session_id: int, password: bytes) -> None:
        half_written = self.path / "session.tmp"
        fd = os.open(half_written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(_Former(cluster, session_id, password)))
        finally:
            os.close(fd)
        half_written.rename(self.path / "session")

    def former_session(self, cluster: str) -> tuple[int, bytes] | None:
        """Id and password of the session that was remembered for this cluster and not forgotten."""
        try:
            former = msgspec.json.decode((self.path / "session").read_bytes(), type=_Former)
        except (OSError, msgspec.DecodeError):
            return None  # without it, the old session ends by its timeout
        return (former.session_id, former.password) if former.cluster == cluster else None

    def forget_session(self) -> None:
        (self.path / "session").unlink(missing_ok=True)
