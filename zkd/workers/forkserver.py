"""The fork server: imports numpy and the kernels once, then forks a worker whenever the pool asks for one.

It is a child of the daemon, started with exec, so that no lock, loop or connection of the daemon's is ever
copied; and it has one thread, so that its own forks are safe. It reaps the workers and says how they ended.

    python -m zkd.workers.forkserver <control socket> <pid of the daemon>
"""

from __future__ import annotations

import faulthandler
import gc
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from zkd.workers import control
from zkd.workers.confine import die_with_parent, name_process
from zkd.workers.control import Configure, Exited, Faulty, Forked, Importing, Kernels, Report, Serving, Signal, Spawn


def main(control_fd: int, parent: int) -> None:
    die_with_parent(parent)
    name_process("zkd-forkserver")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    sock = socket.socket(fileno=control_fd)
    sock.set_inheritable(False)
    configure = control.decode_order(sock.recv(control.PACKET_BYTES_MAX))
    assert isinstance(configure, Configure), configure
    server = ForkServer(sock, configure)
    server.load()
    server.serve()


class ForkServer:
    def __init__(self, sock: socket.socket, configure: Configure) -> None:
        self._sock = sock
        self._configure = configure
        self._workers: dict[int, int] = {}  # pid -> worker; every one of them not reaped yet, so its pid is its own

    def load(self) -> None:
        # numpy comes in here and not before: BLAS reads its environment, which the pool has set, when it is loaded.
        from zkd.workers import engine

        configure = self._configure
        self._registry, faults = engine.load(
            configure.modules,
            installed=configure.entry_points,
            excluded=configure.excluded,
            importing=lambda module: self._report(Importing(module)),
        )
        for fault in faults:
            self._report(Faulty(fault))
        if threading.active_count() > 1:
            names = ", ".join(thread.name for thread in threading.enumerate()[1:])
            print(f"modules of kernels have started threads, which workers will not have: {names}", file=sys.stderr)
        kernels = engine.signatures(self._registry, control.DOC_CHARS_MAX)
        for at in range(0, len(kernels), control.KERNELS_IN_A_PACKET):
            self._report(Kernels(kernels[at : at + control.KERNELS_IN_A_PACKET]))

    def serve(self) -> None:
        """Fork, signal and reap until the daemon's end of the control socket closes."""
        wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
        self._wake_fds = (wakeup, wake)
        import zkd.workers.child  # noqa: F401 - once, for all workers

        gc.collect()
        gc.freeze()  # a collection in a worker must not touch, and so copy, the pages that all of them share
        self._report(Serving())
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if wakeup in ready:
                with suppress(BlockingIOError):
                    os.read(wakeup, 4096)
                self._reap()
            if self._sock.fileno() in ready and not self._take_order():
                break
        self._kill_all()

    def _take_order(self) -> bool:
        packet, fds, _, _ = socket.recv_fds(self._sock, control.PACKET_BYTES_MAX, 3)
        if not packet:
            return False
        match control.decode_order(packet):
            case Spawn(worker):
                calls, answers, output = fds
                for fd in (calls, answers):  # recv_fds ignores its flags, MSG_CMSG_CLOEXEC among them
                    os.set_inheritable(fd, False)
                self._spawn(worker, calls, answers, output)
            case Signal(worker, number):
                self._signal(worker, number)
            case order:
                raise AssertionError(order)
        return True

    def _spawn(self, worker: int, calls: int, answers: int, output: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            print(f"cannot fork a worker: {error}", file=sys.stderr, flush=True)
            pid = -1
        if pid == 0:
            self._become_worker(worker, calls, answers, output)
        for fd in (calls, answers, output):
            os.close(fd)
        if pid < 0:
            self._report(Exited(worker, -1))
            return
        with suppress(OSError):
            os.setpgid(pid, pid)  # the worker does it, too: whoever comes first, the group is there for a signal
        self._workers[pid] = worker
        self._report(Forked(worker, pid))

    def _become_worker(self, worker: int, calls: int, answers: int, output: int) -> NoReturn:
        parent = os.getppid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for fd in (*self._wake_fds, self._sock.detach()):
            os.close(fd)
        from zkd.workers.child import run_worker  # loaded before the first fork, in `serve`

        line = socket.socket(fileno=calls), socket.socket(fileno=answers)
        run_worker(worker, line, output, self._registry, self._configure, parent=parent)

    def _signal(self, worker: int, number: int) -> None:
        for pid, other in self._workers.items():
            if other == worker:
                with suppress(ProcessLookupError):
                    os.killpg(pid, number)

    def _reap(self) -> None:
        while self._workers:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self._workers:
                # What the kernel has started dies with it. Before the pid is reaped, and could be another's.
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            worker = self._workers.pop(pid, None)
            if worker is not None:
                self._report(Exited(worker, status))

    def _kill_all(self) -> None:
        for pid in self._workers:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in self._workers:
            os.waitpid(pid, 0)

    def _report(self, report: Report) -> None:
        self._sock.send(control.encode(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
