"""Kernels that do what kernels should not."""

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy
import numpy.random

import zkd.kernels
from zkd.kernels import current_task, kernel


@kernel
def plus(a, b=0):  # type: ignore[no-untyped-def]
    return a + b


@kernel
def raise_value_error(message: str) -> None:
    raise ValueError(message)


@kernel
def raise_unprintable() -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    raise UnprintableError


@kernel
def raise_odd() -> None:
    raise ValueError("odd \ud800 text")


@kernel
def raise_long() -> None:
    raise ValueError("x" * 1_000_000)


@kernel
def exit_process(status: int) -> None:
    os._exit(status)


@kernel
def exit_python(status: int) -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()  # the interpreter's own end would wait for it
    sys.exit(status)


@kernel
def abort() -> None:
    os.abort()


@kernel
def segfault() -> None:
    ctypes.string_at(0)


@kernel
def kill_itself(number: int) -> None:
    os.kill(os.getpid(), number)


@kernel
def loop() -> None:
    while True:
        pass


@kernel
def stick_in_c(mark: str = "") -> None:
    if mark:
        with open(mark, "w") as file:
            file.write(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)  # with the GIL held: no Python runs, no signal handler, no other thread


@kernel
def ignore_sigterm(mark: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(mark, "w") as file:
        file.write(str(os.getpid()))
    while True:
        time.sleep(60)


@kernel
def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@kernel
def allocate(megabytes: int) -> int:
    block = numpy.ones(megabytes * 1024 * 1024 // 8)
    return block.nbytes


KEPT: list[bytearray] = []


@kernel
def leak(megabytes: int) -> int:
    KEPT.append(bytearray(b"x") * (megabytes * 1024 * 1024))
    return os.getpid()


@kernel
def short(what: str = "") -> int:
    """Quick, as a rule."""
    if what == "sleep":
        time.sleep(0.5)
    elif what == "exit":
        os._exit(1)
    elif what == "loop":
        while True:
            pass
    elif what.startswith("print"):
        print(what, flush=True)
    return os.getpid()


@kernel
def pid() -> int:
    return os.getpid()


@kernel
def send_garbage(text: str) -> None:
    """Find the worker's own socket and write to it."""
    for fd in range(3, 256):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.type == socket.SOCK_STREAM:
                    sock.sendall(text.encode("latin-1"))
        except OSError:
            continue
    time.sleep(60)


@kernel
def answer_twice(part: int) -> int:
    """Put a second answer behind the first, or the first bytes of one."""
    from msgspec import json as msgjson

    head = msgjson.encode([0, 0.0, 0, False])
    frame = (5 + len(head) + 1).to_bytes(4, "little") + b"\x03" + len(head).to_bytes(4, "little") + head + b"7"
    send_garbage_now(frame + frame[:part])
    return 1


def send_garbage_now(data: bytes) -> None:
    for fd in range(3, 256):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.type == socket.SOCK_STREAM:
                    sock.sendall(data)
        except OSError:
            continue


@kernel
def close_everything() -> None:
    os.closerange(3, 256)
    time.sleep(60)


@kernel
def start_child(mark: str, seconds: float) -> None:
    child = subprocess.Popen(["sleep", "600"])
    with open(mark, "w") as file:
        file.write(json.dumps([os.getpid(), child.pid]))
    time.sleep(seconds)
    os._exit(1)


@kernel
def say(text: str, times: int = 1) -> None:
    for _ in range(times):
        print(text)
    ctypes.CDLL(None).write(2, b"from C\n", 7)


@kernel
def report(steps: int) -> None:
    for step in range(steps):
        zkd.kernels.report(step / steps, f"step {step}")
        time.sleep(0.0001)
    zkd.kernels.report(1.0, "done")


@kernel
def report_after_the_end() -> None:
    """Leave a thread behind that goes on reporting."""
    import contextvars

    inherited = contextvars.copy_context()

    def go_on() -> None:
        for _ in range(100):
            time.sleep(0.002)
            zkd.kernels.report(1.0, "still here")

    threading.Thread(target=inherited.run, args=(go_on,), daemon=True).start()


@kernel
def who() -> list:
    task = current_task()
    return [task.id, task.attempt, task.fence]


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


@kernel
def surroundings() -> dict:
    with open("/proc/self/oom_score_adj") as file:
        oom_score = int(file.read())
    return {
        "blas": [
            os.environ[name]
            for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        ],
        "threads": len(os.listdir("/proc/self/task")),
        "nice": os.nice(0),
        "oom_score": oom_score,
        "is_group_leader": os.getpgid(0) == os.getpid(),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "stdin": os.readlink("/proc/self/fd/0"),
        "fds": sorted(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in range(64) if is_open(fd)),
        "inheritable": [fd for fd in range(3, 64) if is_open(fd) and os.get_inheritable(fd)],
        "notify": os.environ.get("NOTIFY_SOCKET"),
        "random": float(numpy.random.random()),
    }


@kernel
def zeros(rows: int) -> numpy.ndarray:
    return numpy.zeros(rows)


@kernel
def many_words(count: int) -> list:
    return ["word"] * count


@kernel
def unsendable() -> object:
    return {"a": {1, 2}}


@kernel
def total(array: numpy.ndarray) -> float:
    return float(array.sum())


@kernel
def run_a_loop() -> int:
    import asyncio

    return asyncio.run(asyncio.sleep(0, 5))


@kernel
def fork_and_return() -> str:
    """Both processes come back from here."""
    return "child" if os.fork() == 0 else "parent"


@kernel
def leave_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)


@kernel
def report_the_end(times: int) -> None:
    for _ in range(times):
        zkd.kernels.report(1.0)


@kernel
def start_a_daemon(mark: str) -> None:
    """A grandchild in a session of its own, which a kill of the group does not reach."""
    child = subprocess.Popen(["sleep", "5"], start_new_session=True, stdout=subprocess.DEVNULL)
    with open(mark, "w") as file:
        file.write(str(child.pid))
    child.returncode = 0
    os._exit(1)
