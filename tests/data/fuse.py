"""Kills a process with signal 9 at a chosen change of its files, and can take back with it what was not synced.

    python -m tests.data.fuse zkd daemon        what it does is told by the variable ZKD_FUSE, a `Fuse` as JSON

Every call that changes something below a directory (or makes it durable) is a boundary, named by what it does to
what, such as ``rename segments.incoming/<id> segments/<id>``; so is every write to what the tree says of datasets.
There are no marks in the product: the functions of `os`, `open` and the session's are replaced in this process.

A kill leaves what the kernel has. A power cut does not: files that were not synced since they were written lose
some of their end, and names that came or went in a directory that was not synced since are as before. What that
concerns is written to a file at the kill, and `cut_power` does it.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import random
import re
import runpy
import shutil  # before the functions of os are replaced: it asks which of them can do what
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

VARIABLE = "ZKD_FUSE"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REPLACED = (
    "open rename replace unlink remove rmdir mkdir fsync fdatasync ftruncate truncate write pwrite link close readlink"
)
_ID = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"(^|/)\d+(?=/|$)")
_TEMPORARY = re.compile(r"zkd-[a-z0-9_]{8}")
_TOLD = re.compile(r"/(datasets|holdings|control/ring)(/|$)")


class Trip(Struct, frozen=True, omit_defaults=True):
    """Where it blows."""

    label: str  # "*": at whatever boundary comes next
    occurrence: int = 1  # since the trip was set
    when: str = "before"  # before | after | torn: in the middle of a write
    power: str | None = None  # a file that gets what was not synced then


class Fuse(Struct, frozen=True, omit_defaults=True):
    below: str  # changes of files elsewhere are none of ours
    trip: Trip | None = None
    trips: str | None = None  # a file with a trip, if it is to be set while the process runs
    trace: str | None = None  # a file that gets a line for each boundary
    constants: dict[str, float] = {}  # of modules, by their dotted names: times that are too long for a test


def main() -> None:
    fuse = msgspec.json.decode(os.environ[VARIABLE], type=Fuse)
    sys.argv = sys.argv[1:]
    burning = lit(fuse)
    burning.replace_session()
    for dotted, value in fuse.constants.items():
        module, _, name = dotted.rpartition(".")
        assert isinstance(getattr(import_module(module), name), int | float)
        setattr(import_module(module), name, value)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def environment(fuse: Fuse) -> dict[str, str]:
    return {VARIABLE: msgspec.json.encode(fuse).decode()}


def lit(fuse: Fuse) -> Lit:
    """Replace the functions of this process."""
    burning = Lit(fuse)
    burning.replace()
    return burning


class Lit:
    def __init__(self, fuse: Fuse) -> None:
        self.fuse = fuse
        self.below = os.path.realpath(fuse.below)
        self.trip = fuse.trip
        self.trip_text = b""
        self.counts: Counter[str] = Counter()
        self.unsynced: set[str] = set()  # files
        self.changes: list[tuple[str, str, str]] = []  # of directories, that were not synced: what, path, new path
        self.lock = threading.RLock()
        self.real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in REPLACED.split()}
        self.real_open = io.open

    def replace(self) -> None:
        real = self.real

        def replaced(name: str, wrapper: Callable[..., Any]) -> None:
            for words in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                if real[name] in words:
                    words.add(wrapper)
            setattr(os, name, wrapper)

        def moving(name: str) -> Callable[..., Any]:
            def move(src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
                one, other = self.path(src, src_dir_fd), self.path(dst, dst_dir_fd)
                had = os.path.lexists(other)
                self.around(
                    f"{name} {self.short(one)} {self.short(other)}",
                    one,
                    other,
                    lambda: real[name](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd),
                    lambda: self.moved(one, other, had),
                )

            return move

        def one_path(name: str, done: Callable[[str], None]) -> Callable[..., Any]:
            def call(path: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> Any:
                full = self.path(path, dir_fd)
                if dir_fd is not None:
                    more["dir_fd"] = dir_fd
                return self.around(
                    f"{name} {self.short(full)}",
                    full,
                    full,
                    lambda: real[name](path, *args, **more),
                    lambda: done(full),
                )

            return call

        def by_fd(name: str, done: Callable[[str], None]) -> Callable[..., Any]:
            def call(fd: int, *args: Any) -> Any:
                path = self.of_fd(fd)
                if name in ("write", "pwrite") and self.is_torn(f"{name} {self.short(path)}", path):
                    data = memoryview(args[0]).cast("B")
                    real[name](fd, data[: len(data) // 2], *args[1:])
                    self.touched(path)
                    self.blow()
                return self.around(
                    f"{name} {self.short(path)}", path, path, lambda: real[name](fd, *args), lambda: done(path)
                )

            return call

        def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            def go() -> int:
                fd: int = real["open"](path, flags, mode, dir_fd=dir_fd)
                return fd

            if not flags & WRITING:
                return go()
            full = self.path(path, dir_fd)
            is_new = not os.path.lexists(full)
            fd: int = self.around(f"open {self.short(full)}", full, full, go, lambda: self.opened(full, is_new))
            return fd

        def opening_file(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            def go() -> Any:
                return self.real_open(file, mode, *args, **more)

            if isinstance(file, int) or not set(mode) & set("wax+"):
                return go()
            full = self.path(file, None)
            is_new = not os.path.lexists(full)
            return self.around(f"open {self.short(full)}", full, full, go, lambda: self.opened(full, is_new))

        for name in ("rename", "replace", "link"):
            replaced(name, moving(name) if name != "link" else one_path("link", lambda _: None))
        for name in ("unlink", "remove", "rmdir"):
            replaced(name, one_path(name, self.removed))
        replaced("mkdir", one_path("mkdir", lambda path: self.changes.append(("create", path, ""))))
        replaced("truncate", one_path("truncate", self.touched))
        for name in ("fsync", "fdatasync"):
            replaced(name, by_fd(name, self.synced))
        for name in ("write", "pwrite", "ftruncate"):
            replaced(name, by_fd(name, self.touched))
        replaced("open", opening)
        builtins.open = io.open = opening_file  # type: ignore[assignment]

    # --- Boundaries -------------------------------------------------------------------------------------

    def around(
        self, label: str, path: str, other: str, go: Callable[[], Any], done: Callable[[], None] | None = None
    ) -> Any:
        if not (self.is_ours(path) or self.is_ours(other)):
            return go()
        is_here = self.reached(label)
        result = go()
        with self.lock:
            if done is not None:
                done()
        if is_here:
            self.blow()
        return result

    def reached(self, label: str) -> bool:
        """A boundary was reached; whether it has to blow after it."""
        with self.lock:
            self.reset()
            self.counts[label] += 1
            self.counts["*"] += 1
            trip = self.trip
            is_here = trip is not None and trip.label in (label, "*") and self.counts[trip.label] == trip.occurrence
            if self.fuse.trace is not None:
                self.append(self.fuse.trace, label.encode() + b"\n")
        if is_here and trip is not None and trip.when != "after":
            self.blow()
        return is_here

    def is_torn(self, label: str, path: str) -> bool:
        """Whether this write is the one to blow in."""
        with self.lock:
            self.reset()
            trip = self.trip
            return (
                trip is not None
                and trip.when == "torn"
                and self.is_ours(path)
                and label == trip.label
                and self.counts[label] + 1 == trip.occurrence
            )

    def reset(self) -> None:
        """Take over a trip that was set meanwhile."""
        if self.fuse.trips is None:
            return
        try:
            with self.real_open(self.fuse.trips, "rb") as file:
                text = file.read()
        except FileNotFoundError:
            text = b""
        if text != self.trip_text:
            self.trip_text = text
            self.trip = msgspec.json.decode(text, type=Trip) if text else None
            self.counts.clear()

    def append(self, path: str, text: bytes, flags: int = os.O_APPEND) -> None:
        fd = self.real["open"](path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
        self.real["write"](fd, text)
        self.real["close"](fd)

    def blow(self) -> None:
        with self.lock:
            assert self.trip is not None
            if self.trip.power is not None:
                text = json.dumps({"unsynced": sorted(self.unsynced), "changes": self.changes}).encode()
                self.append(self.trip.power, text, os.O_TRUNC)
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()

    def replace_session(self) -> None:
        """Make boundaries of the writes to the tree, too."""
        from zkd.zk import Session

        def replaced(name: str, real: Callable[..., Any]) -> None:
            @wraps(real)
            async def call(session: Session, what: Any, *args: Any, **more: Any) -> Any:
                paths = [what] if isinstance(what, str) else [op.path for op in what]
                about = next((path for path in paths if _TOLD.search(path)), None)
                if about is None:
                    return await real(session, what, *args, **more)
                is_here = self.reached(f"tree.{name} {_told(about)}")
                result = await real(session, what, *args, **more)
                if is_here:
                    self.blow()
                return result

            setattr(Session, name, call)

        for name in ("create", "set", "delete", "multi"):
            replaced(name, getattr(Session, name))

    # --- What is not synced -----------------------------------------------------------------------------

    def opened(self, path: str, is_new: bool) -> None:
        self.unsynced.add(path)
        if is_new:
            self.changes.append(("create", path, ""))

    def touched(self, path: str) -> None:
        self.unsynced.add(path)

    def synced(self, path: str) -> None:
        self.unsynced.discard(path)
        if os.path.isdir(path):
            # A rename concerns two directories, and is durable with that in which the new name is.
            self.changes = [each for each in self.changes if os.path.dirname(each[2] or each[1]) != path]

    def removed(self, path: str) -> None:
        self.unsynced.discard(path)
        self.changes = [each for each in self.changes if path not in (each[1], each[2])]

    def moved(self, one: str, other: str, had: bool) -> None:
        def now(path: str) -> str:
            return other + path[len(one) :] if path == one or path.startswith(one + "/") else path

        self.unsynced = {now(path) for path in self.unsynced}
        self.changes = [(what, now(path), now(to) if to else "") for what, path, to in self.changes]
        if not had:  # what was replaced is not kept for us
            self.changes.append(("move", one, other))

    # --- Paths ------------------------------------------------------------------------------------------

    def is_ours(self, path: str) -> bool:
        return path == self.below or path.startswith(self.below + "/")

    def path(self, path: Any, dir_fd: int | None) -> str:
        if isinstance(path, int):
            return self.of_fd(path)
        text = os.fsdecode(path)
        directory = os.getcwd() if dir_fd is None else self.of_fd(dir_fd)
        return os.path.normpath(os.path.join(directory, text))

    def of_fd(self, fd: int) -> str:
        try:
            path: str = self.real["readlink"](f"/proc/self/fd/{fd}")
        except OSError:
            return ""
        return path

    def short(self, path: str) -> str:
        if not self.is_ours(path):
            return path
        plain = _ID.sub("<id>", path[len(self.below) + 1 :] or ".")
        return _TEMPORARY.sub("zkd-<any>", _NUMBER.sub(r"\1<n>", plain))


def _told(path: str) -> str:
    """A path of the tree, without the names in it."""
    plain = path[_TOLD.search(path).start() + 1 :]  # type: ignore[union-attr]
    plain = re.sub(r"^(datasets|holdings)/[^/]+", r"\1/<name>", plain)
    plain = re.sub(r"(writers|<name>)/(?!versions|chunks|writers)[^/]+$", r"\1/<any>", plain)
    return _NUMBER.sub(r"\1<n>", _ID.sub("<id>", plain))


def cut_power(power: Path, seed: int) -> list[str]:
    """Do to the files what a power cut at the kill would have done; gives what it was. Nothing if none was noted."""
    if not power.exists():
        return []
    dice = random.Random(seed)
    noted = json.loads(power.read_text())
    done = []
    for path in noted["unsynced"]:
        size = os.path.getsize(path) if os.path.isfile(path) else 0
        if size and dice.random() < 0.8:
            left = dice.choice([0, size // 2, size - 1])
            os.truncate(path, left)
            if dice.random() < 0.5:
                os.truncate(path, size)  # the length was durable and the bytes were not
            done.append(f"{path}: {left} bytes left of {size}")
    # A journal keeps the order of changes: some of the last ones never happened.
    changes = noted["changes"]
    for what, path, to in reversed(changes[dice.randint(0, len(changes)) :]):
        with contextlib.suppress(FileNotFoundError):
            if what == "move":
                os.rename(to, path)
            elif os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
            done.append(f"never happened: {what} {path} {to}")
    power.unlink()
    return done


if __name__ == "__main__":
    main()
