"""Log entries with fields, straight to journald: `journalctl ZKD_TASK=t-42` finds every line of a task.

An entry is one datagram of ``NAME=value`` lines; a value with a newline in it is written with its length
instead; an entry too big for a datagram goes as a sealed memory file, by its descriptor. Sending never
waits: a journal that does not keep up costs entries, which are counted, and never the time of the caller.
"""

from __future__ import annotations

import array
import fcntl
import os
import re
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_PATH = "/run/systemd/journal/socket"

_NOT_IN_NAMES = re.compile(r"[^A-Z0-9_]+")
_NAME_LENGTH_MAX = 64  # journald drops longer ones


def is_stderr_the_journal(env: Mapping[str, str] = os.environ) -> bool:
    """Whether what we write to stderr ends in the journal: systemd names the device and inode of its pipe."""
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return env.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def field_name(key: str) -> str:
    """``task`` -> ``ZKD_TASK``: journald takes capitals, digits and underscores."""
    return _NOT_IN_NAMES.sub("_", f"ZKD_{key}".upper())[:_NAME_LENGTH_MAX]


def entry(fields: Mapping[str, str]) -> bytes:
    """The fields in journald's native format."""
    parts = []
    for name, value in fields.items():
        text = value.encode(errors="replace")
        if b"\n" in text:
            parts.append(b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(text)), text))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), text))
    return b"".join(parts)


class Journal:
    """An open way to journald. `dropped` counts the entries that it did not take."""

    def __init__(self, path: str = SOCKET_PATH) -> None:
        self.dropped = 0
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def send(self, message: bytes) -> None:
        try:
            self._socket.sendto(message, self._path)
        except BlockingIOError:
            self.dropped += 1
        except OSError:
            # Most likely too big for a datagram (EMSGSIZE, or ENOBUFS); if journald is away this fails too.
            self._send_as_file(message)

    def __del__(self) -> None:
        # Logging has no end that anyone announces: it is over when nothing holds it any more.
        self._socket.close()

    def _send_as_file(self, message: bytes) -> None:
        # journald reads the file at leisure, so it insists that nobody can change it any more.
        file = os.memfd_create("zkd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(file, "wb", closefd=False) as out:
                out.write(message)
            fcntl.fcntl(
                file,
                fcntl.F_ADD_SEALS,
                fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
            )
            # Not socket.send_fds: it ignores the address it is given (Python 3.11).
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
            self._socket.sendmsg([b""], rights, 0, self._path)
        except OSError:
            self.dropped += 1
        finally:
            os.close(file)
