"""The pool's side of the fork server: start it, talk to it, notice its end.

One object is one process; when it has ended the pool makes another. Its end is known by its pidfd, not by
SIGCHLD, which belongs to the program that the pool is part of.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from zkd.workers import control
from zkd.workers.control import Configure, Importing, Order, Report, Serving, Signal, Spawn
from zkd.workers.output import Output

EXIT_S_MAX: Final = 1.0  # from the end of its control socket to its exit
LOAD_S_MAX: Final = 30.0  # to import numpy, or one module of kernels
# What workers must not inherit: the daemon's line to systemd, its sockets, its secrets.
PRIVATE_ENVIRONMENT: Final = frozenset(
    {
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "CREDENTIALS_DIRECTORY",
    }
)
BLAS_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def worker_environment(environment: Mapping[str, str], blas_threads: int) -> dict[str, str]:
    """The environment of the fork server and so of all workers."""
    kept = {name: value for name, value in environment.items() if name not in PRIVATE_ENVIRONMENT}
    # The modules of kernels are found where this program finds its own, whichever way it was started.
    kept["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return kept | dict.fromkeys(BLAS_VARIABLES, str(blas_threads))


class ForkServerProcess:
    """`serving` and `ended` are futures; `ended` gives a sentence. `report` gets what the process says."""

    def __init__(
        self,
        configure: Configure,
        blas_threads: int,
        *,
        report: Callable[[Report], None],
        printed: Callable[[str], None],
    ) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._report = report
        self._orders: deque[tuple[bytes, list[int]]] = deque()
        self.importing: str | None = None
        self.serving: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[str] = loop.create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        printed_fd, print_fd = os.pipe2(os.O_CLOEXEC)
        with theirs:
            command = [sys.executable, "-P", "-m", "zkd.workers.forkserver", str(theirs.fileno()), str(os.getpid())]
            try:
                self._process = subprocess.Popen(
                    command,
                    env=worker_environment(os.environ, blas_threads),
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=print_fd,
                    stderr=print_fd,
                )
            finally:
                os.close(print_fd)
        self.pid = self._process.pid
        self._sock = ours
        ours.setblocking(False)
        self._output = Output(loop, printed_fd, printed)
        self._pidfd = os.pidfd_open(self.pid)
        loop.add_reader(ours.fileno(), self._readable)
        loop.add_reader(self._pidfd, self._exited)
        self._load_timer: asyncio.TimerHandle | None = loop.call_later(LOAD_S_MAX, self._load_timeout)
        self._killed_for = ""
        self._send(configure)

    @property
    def is_serving(self) -> bool:
        return self.serving.done() and not self.ended.done()

    def spawn(self, worker: int, calls: int, answers: int, output: int) -> None:
        """Ask for a worker. The descriptors are this call's to close."""
        self._send(Spawn(worker), [calls, answers, output])

    def signal(self, worker: int, number: signal.Signals) -> None:
        if not self.ended.done():  # else the worker has died with it
            self._send(Signal(worker, number))

    def close(self) -> None:
        """Ask it to kill its workers and go; `ended` follows."""
        if not self.ended.done():
            self._sock.shutdown(socket.SHUT_RDWR)

    def kill(self, why: str) -> None:
        """SIGKILL; its workers die with it."""
        if self._process.returncode is None:
            self._killed_for = self._killed_for or why
            self._process.kill()

    def reap(self) -> None:
        """Kill it and wait for it here and now, which takes milliseconds: for a loop that is about to end."""
        if not self.ended.done():
            self.kill("the pool was closed")
            self._process.wait()
            self._exited()

    def _send(self, order: Order, fds: list[int] | None = None) -> None:
        assert not self.ended.done(), order
        self._orders.append((control.encode(order), fds or []))
        if len(self._orders) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._orders:
            packet, fds = self._orders[0]
            try:
                socket.send_fds(self._sock, [packet], fds)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:  # it has died; `ended` says so
                pass
            self._orders.popleft()
            for fd in fds:
                os.close(fd)
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        for _ in range(64):  # a bound on one turn; the socket stays readable
            try:
                packet = self._sock.recv(control.PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                # Its exit follows, and says more; if not, a module has closed what was not its own.
                self._loop.remove_reader(self._sock.fileno())
                self._restart_load_timer(EXIT_S_MAX)
                return
            self._take(control.decode_report(packet))

    def _take(self, report: Report) -> None:
        match report:
            case Importing(module):
                self.importing = module
                self._restart_load_timer(LOAD_S_MAX)
            case Serving():
                self.importing = None
                self._restart_load_timer(None)
                self.serving.set_result(None)
        self._report(report)

    def _restart_load_timer(self, seconds: float | None) -> None:
        if self._load_timer is not None:
            self._load_timer.cancel()
        self._load_timer = None if seconds is None else self._loop.call_later(seconds, self._load_timeout)

    def _load_timeout(self) -> None:
        if self.importing is not None or not self.serving.done():
            self.kill(f"no end of importing within {LOAD_S_MAX:g} s")
        else:
            self.kill("it closed its control socket")

    def _exited(self) -> None:
        status = self._process.wait()
        self._restart_load_timer(None)
        if self._sock.fileno() >= 0:
            self._drain()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._output.close()
        for _, fds in self._orders:
            for fd in fds:
                os.close(fd)
        self._orders.clear()
        if not self.serving.done():
            self.serving.cancel()
        self.ended.set_result(self._killed_for or describe_exit(status))

    def _drain(self) -> None:
        """Take the last reports, then let go of the socket."""
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._readable()
        self._sock.close()


def describe_exit(code: int) -> str:
    """`code` as `subprocess` gives it: negative for a signal."""
    if code >= 0:
        return f"exited with status {code}"
    if code == -signal.SIGKILL:
        return "killed by signal 9 (out of memory?)"
    try:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"killed by signal {-code}"
