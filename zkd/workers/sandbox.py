"""What a worker may still do once it is shut in: read, compute, and write where it was told.

Landlock, the kernel's sandbox for processes without privileges (Linux 5.13; TCP since 6.7, signals since 6.12): no
change of any file outside the given directories, no TCP, and no signal to a process outside. Reading stays free, as
memory maps need it, and so do descriptors that are open already. It cannot be undone, and children inherit it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
VERSION: Final = 1  # flag of CREATE_RULESET: say which version of Landlock this is
PATH_BENEATH: Final = 1
PR_SET_NO_NEW_PRIVS: Final = 38

# Of <linux/landlock.h>, by the version that brought them.
WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 1 << 1, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 9, 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE = 1 << 13, 1 << 14  # 2: rename between directories; 3
ON_FILES = WRITE_FILE | TRUNCATE
MAKE = MAKE_CHAR | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | MAKE_SYM
CHANGES = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE
TCP = 1 << 0 | 1 << 1  # 4: bind, connect
SIGNALS = 1 << 1  # 6: to processes outside

ALWAYS_WRITABLE = ("/dev/null", "/dev/shm")  # the second is memory, and multiprocessing's

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Of the kernel's Landlock; 0 if there is none, or it is forbidden here."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)))


def shut_in(writable: Sequence[Path]) -> None:
    """Let this process, from now on, change files below `writable` alone. Raises `OSError`.

    What of `writable` is not there is left out.
    """
    found = version()
    if not found:
        raise OSError("this kernel has no Landlock, or it is forbidden here")
    changes = CHANGES | (REFER if found >= 2 else 0) | (TRUNCATE if found >= 3 else 0)
    attributes = struct.pack("=QQQ", changes, TCP if found >= 4 else 0, SIGNALS if found >= 6 else 0)
    attributes = attributes[: 24 if found >= 6 else 16 if found >= 4 else 8]
    ruleset = _call(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path in (*writable, *map(Path, ALWAYS_WRITABLE)):
            _allow(ruleset, path, changes)
        if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, changes: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = changes if path.is_dir() else changes & ON_FILES
        _call(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, beneath), 0)
    finally:
        os.close(beneath)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {os.strerror(ctypes.get_errno())}")
    return result
