"""What a process of ours may do to its node: the calls to the kernel that bound a worker.

A worker stands below the daemon in the scheduler's eyes and above it in the OOM killer's, is the leader of
its own process group (so that what a kernel starts dies with it), and dies with its parent: the fork
server with the daemon, the workers with the fork server, whatever they are doing at the time.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15

NICE: Final = 5  # numeric work must not starve the daemon's heartbeats on the same cores
OOM_SCORE: Final = 500  # the kernel's killer takes a worker, one task, before it takes the daemon, all of them
FILES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 64 * 1024**3

_libc = ctypes.CDLL(None, use_errno=True)
_page = resource.getpagesize()


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent ends; at once, if it has ended already."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def name_process(name: str) -> None:
    """The name that `ps` and `top` show; at most 15 bytes."""
    _libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def confine() -> None:
    """Bound the calling process. What the machine does not allow (a sandbox, an old kernel) is left as it is."""
    os.setpgid(0, 0)
    with suppress(OSError):
        os.nice(NICE)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as adjust:
        adjust.write(str(max(OOM_SCORE, _oom_score())))
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_NOFILE, FILES_MAX)
    lower(resource.RLIMIT_FSIZE, FILE_BYTES_MAX)


def _oom_score() -> int:
    with open("/proc/self/oom_score_adj") as score:
        return int(score.read())


def lower(which: int, limit: int) -> None:
    """Lower both limits to `limit`; a lower one that stands already is kept."""
    hard = resource.getrlimit(which)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(which, (limit, limit))


class Memory:
    """What this process uses, and the limit on what it may allocate.

    RLIMIT_DATA counts private writable memory only, so that a memory map of a large file stays free;
    RLIMIT_AS would count it. Only the soft limit moves: it has to be lifted again to report its own excess.
    """

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._hard = resource.getrlimit(resource.RLIMIT_DATA)[1]

    def private(self) -> int:
        """Bytes of resident memory that are not file pages."""
        fields = os.pread(self._statm, 128, 0).split()
        return (int(fields[1]) - int(fields[2])) * _page

    def allow(self, more: int) -> None:
        """Let this process allocate `more` bytes than it has now."""
        data = int(os.pread(self._statm, 128, 0).split()[5]) * _page
        limit = data + more
        if self._hard != resource.RLIM_INFINITY:
            limit = min(limit, self._hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, self._hard))

    def allow_all(self) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (self._hard, self._hard))
