"""A counter: a process that goes over the parts it is given, and answers with sums over them.

    in   start {memory}, parts {source, parts: {number: columns}}, context {subject, source} + bytes,
         ask {ask, subject, parts} + question, forget {ask}, drop {source, parts}, end {subject}
    out  answer {ask, read} + bytes, failed {ask, why, lacking}, forgotten {ask}

Contexts and asks are done in the order in which they come, all else is heard between two parts: so what is forgotten
stops there. Files are believed by the daemon: it hears with each answer which parts were read from files that it has
not compared since, and looks at these again. Rows that fit into the memory given are kept; others are read each time.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from zkd.arrays.files import open_column
from zkd.errors import BadRecord, DataDamaged
from zkd.models.answering import Desk
from zkd.training.child import Line, be_child
from zkd.training.frames import Buffer, Frame
from zkd.workers.confine import Memory

ROOM_BYTES: Final = 1 << 30  # or as much as for the rows that are kept: for an answer, and rows being gone over
SMALL_BYTES: Final = 1 << 15  # a smaller file is copied: a map costs more than that
MAPS_MAX: Final = 50_000  # of the 65,530 that Linux allows a process
RACY_NS: Final = 1_000_000_000  # of a file changed so lately, a later change might not show
WORDS_MAX: Final = 2000
LISTEN_S: Final = 0.001

Marks = list[tuple[int, int, int, int]]


class Forgotten(Exception):
    """Nobody waits for the answer any more."""


class Files:
    """Where the columns of a part lie: (name, dtype, shape of a row, files) of each."""

    def __init__(self, columns: Sequence[tuple[str, str, list[int], list[str]]]) -> None:
        self.columns = columns

    def marks(self) -> Marks:
        """What changes when any of the files is touched. Raises `DataDamaged`."""
        try:
            found = [os.stat(path) for *_, paths in self.columns for path in paths]
        except OSError as error:
            raise DataDamaged(f"a file of the part cannot be read: {error}") from None
        return [(each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for each in found]


class Taken(NamedTuple):
    """A part as it lies on a desk."""

    files: Files
    marks: Marks
    held: int  # bytes of its columns that are copies
    maps: int
    is_settled: bool  # whether any change from now on shows in the marks


class Subject:
    """What one coordinator's asks are about."""

    def __init__(self, source: int) -> None:
        self.source = source
        self.desk = Desk()
        self.fault = ""
        self.taken: dict[int, Taken] = {}

    def drop(self, part: int) -> None:
        if self.taken.pop(part, None) is not None:
            self.desk.drop(part)


class Ask(NamedTuple):
    number: int
    subject: int
    files: dict[int, Files]  # of its parts, as they were when it came
    question: Buffer


class Counter:
    def __init__(self, line: Line) -> None:
        self._line = line
        self._limit = Memory()
        self._memory = 0
        self._files: dict[tuple[int, int], Files] = {}  # source, part
        self._subjects: dict[int, Subject] = {}
        self._waiting: deque[Frame | Ask] = deque()
        self._forgotten: set[int] = set()
        self._new: set[int] = set()  # parts that this ask has taken
        self._listen_at = 0.0
        self._passing: int | None = None  # a part for which there is no room: it goes after it was gone over

    def serve(self) -> None:
        while True:
            if not self._waiting:
                self._hear(self._line.receive())
            elif isinstance(what := self._waiting.popleft(), Ask):
                self._answer(what)
            else:
                self._tell(what.head["subject"], what.head["source"], what.bodies[0])

    # --- In ---------------------------------------------------------------------------------------------

    def _hear(self, frame: Frame | None) -> None:
        if frame is None:
            raise SystemExit(0)
        head: Any = frame.head
        if frame.kind == "ask":
            subject, parts = head["subject"], head["parts"]
            files = {part: self._files[head["source"], part] for part in parts}
            self._waiting.append(Ask(head["ask"], subject, files, frame.bodies[0]))
        elif frame.kind == "context":
            self._waiting.append(frame)
        elif frame.kind == "parts":
            for part, columns in head["parts"].items():
                self._files[head["source"], int(part)] = Files(columns)
        elif frame.kind == "forget":
            self._forget(head["ask"])
        elif frame.kind == "drop":
            for part in head["parts"]:
                self._files.pop((head["source"], part), None)
                for each in self._subjects.values():
                    if each.source == head["source"]:
                        each.drop(part)
        elif frame.kind == "end":
            self._subjects.pop(head["subject"], None)
        else:
            assert frame.kind == "start", frame.kind
            self._memory = head["memory"]
            self._limit.allow(self._memory + max(self._memory, ROOM_BYTES))

    def _forget(self, number: int) -> None:
        for ask in self._waiting:
            if isinstance(ask, Ask) and ask.number == number:
                self._waiting.remove(ask)
                self._line.send("forgotten", {"ask": number})
                return
        self._forgotten.add(number)  # the one that it is at, or one that it has answered

    def _tell(self, number: int, source: int, context: Buffer) -> None:
        subject = self._subjects.setdefault(number, Subject(source))
        try:
            subject.desk.told(context)
            subject.fault = ""
        except BadRecord as error:
            subject.fault = str(error)
        for part in [part for part in subject.taken if part not in subject.desk]:
            subject.drop(part)

    # --- Out --------------------------------------------------------------------------------------------

    def _answer(self, ask: Ask) -> None:
        subject = self._subjects.get(ask.subject)
        if subject is None:
            self._line.send("forgotten", {"ask": ask.number})
            return  # ended
        lacking: list[int] = []
        try:
            if subject.fault:
                raise BadRecord("$.context", subject.fault)
            try:
                answer = self._counted(ask, subject, lacking, self._memory)
            except MemoryError:
                self._let_go()
                answer = self._counted(ask, subject, lacking, 0)
            self._line.send("answer", {"ask": ask.number, "read": self._read(subject)}, answer)
        except Forgotten:
            self._line.send("forgotten", {"ask": ask.number})
        except BadRecord as error:
            self._failed(ask, str(error))
        except DataDamaged as error:
            self._failed(ask, str(error), lacking)
        except MemoryError:
            self._let_go()
            most = self._memory + max(self._memory, ROOM_BYTES)
            self._failed(ask, f"it takes more than the {most} bytes that training.memory allows a counter in all")
        finally:
            self._pass_on(subject)
            self._forgotten.clear()

    def _counted(self, ask: Ask, subject: Subject, lacking: list[int], memory: int) -> bytes:
        """The answer, with so many bytes for rows that are kept."""
        self._new.clear()
        subject.desk.memory = memory - self._used() + subject.desk.kept
        return subject.desk.answer(
            ask.question, list(ask.files), lambda part: self._before(ask, subject, part, lacking, memory)
        )

    def _failed(self, ask: Ask, why: str, lacking: Sequence[int] = ()) -> None:
        self._line.send("failed", {"ask": ask.number, "why": why[:WORDS_MAX], "lacking": lacking})

    def _before(self, ask: Ask, subject: Subject, part: int, lacking: list[int], memory: int) -> None:
        """Between two parts: hear what there is, and have this part on the desk."""
        self._pass_on(subject)
        if time.monotonic() >= self._listen_at:  # not for each of a thousand small parts
            while self._line.is_waiting():
                self._hear(self._line.receive())
            self._listen_at = time.monotonic() + LISTEN_S
        if ask.number in self._forgotten or ask.subject not in self._subjects:
            raise Forgotten
        files = ask.files[part]
        taken = subject.taken.get(part)
        if taken is None or taken.files is not files:
            lacking[:] = [part]
            subject.drop(part)
            self._take(subject, part, files, memory)
            lacking.clear()

    def _take(self, subject: Subject, part: int, files: Files, memory: int) -> None:
        """Open its columns. Raises `DataDamaged`, `BadRecord`."""
        columns: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
        marks, now_ns = files.marks(), time.time_ns()
        held = maps = 0
        for name, dtype, shape, paths in files.columns:
            column = open_column(dtype, shape, paths)
            if isinstance(column, np.memmap) and column.nbytes > SMALL_BYTES:
                maps += 1
            else:
                column = np.array(column)
                held += column.nbytes
            columns[name] = column
        missing = [name for name in subject.desk.columns if name not in columns]
        if missing:
            raise BadRecord("$.columns", f"expected {', '.join(missing)}, too, which the job is about")
        subject.desk.take(part, columns)
        is_settled = max((mark[3] for mark in marks), default=0) + RACY_NS < now_ns
        subject.taken[part] = Taken(files, marks, held, maps, is_settled)
        self._new.add(part)
        all_taken = [each for subject in self._subjects.values() for each in subject.taken.values()]
        if self._used() > memory or sum(each.maps for each in all_taken) > MAPS_MAX:
            self._passing = part
            subject.desk.memory = 0

    def _pass_on(self, subject: Subject) -> None:
        """Let go of the part that there is no room for."""
        if self._passing is not None:
            subject.drop(self._passing)
            self._passing = None

    def _used(self) -> int:
        """Bytes that are kept of all parts."""
        return sum(
            each.desk.kept + sum(taken.held for taken in each.taken.values()) for each in self._subjects.values()
        )

    def _let_go(self) -> None:
        for subject in self._subjects.values():
            for part in list(subject.taken):
                subject.drop(part)

    def _read(self, subject: Subject) -> list[int]:
        """The parts whose files have to be looked at before the answer counts."""
        read = set(self._new)
        for part in subject.desk.went_over:
            taken = subject.taken.get(part)
            if taken is None or not taken.maps or part in read:
                continue  # it was let go of, and is in there already; or nothing of it lies in files
            try:
                marks = taken.files.marks()
            except DataDamaged:
                marks = []
            if not taken.is_settled or marks != taken.marks:
                read.add(part)
                newest = max((mark[3] for mark in marks), default=0)
                subject.taken[part] = taken._replace(marks=marks, is_settled=newest + RACY_NS < time.time_ns())
        return sorted(read)


if __name__ == "__main__":
    be_child("zkd-counter", lambda line: Counter(line).serve())
