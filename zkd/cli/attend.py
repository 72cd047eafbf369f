"""Run a command for as long as something is held: pass signals on, kill it when it is lost, give back its exit code.

The command gets a process group of its own, so that what it started is ended with it. It is killed within a quarter
of the session timeout: in doubt that is before ZooKeeper may give the lock to another. It dies with us, too, if we are
killed; what it started in its turn does not.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from zkd.cli.exits import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_OF_TIMEOUT = 1 / 4
NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as shells say it
PR_SET_PDEATHSIG = 1


async def attend(command: Sequence[str], env: dict[str, str], *, session_timeout_s: float) -> int:
    """The exit code of `command`, 128 + N if signal N ended it. Cancelled, it leaves no process of its group."""
    loop = asyncio.get_running_loop()
    try:
        child = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **env}, process_group=0, preexec_fn=_die_with_parent
        )
    except FileNotFoundError:
        raise Stop(NOT_FOUND, f"error: {command[0]}: there is no such command") from None
    except OSError as error:
        raise Stop(NOT_EXECUTABLE, f"error: {command[0]}: {error.strerror}") from None
    with ExitStack() as stack:
        for number in PASSED_ON:
            loop.add_signal_handler(number, _signal, child.pid, number)
            stack.callback(loop.remove_signal_handler, number)
        stack.enter_context(_terminal(child.pid))
        try:
            code = await child.wait()
        finally:
            if child.returncode is None:
                await _end(child, GRACE_OF_TIMEOUT * session_timeout_s)
    return code if code >= 0 else 128 - code


async def _end(child: asyncio.subprocess.Process, grace_s: float) -> None:
    _signal(child.pid, signal.SIGTERM)
    _signal(child.pid, signal.SIGCONT)  # a stopped one could not die of the first
    with suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            await child.wait()
    _signal(child.pid, signal.SIGKILL)  # whatever is left of the group
    await child.wait()


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _terminal(group: int) -> Iterator[None]:
    """Let the command have the terminal, as a shell would, if we have it."""
    is_lent = False
    with suppress(OSError, ValueError):  # there is none, or stdin is closed
        if sys.stdin.isatty() and os.tcgetpgrp(0) == os.getpgrp():
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or we would be stopped when we take it back
            os.tcsetpgrp(0, group)
            is_lent = True
            _signal(group, signal.SIGCONT)  # it may have been stopped for reading before this
    try:
        yield
    finally:
        if is_lent:
            with suppress(OSError):
                os.tcsetpgrp(0, os.getpgrp())
