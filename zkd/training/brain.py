"""The process that does a coordinator's arithmetic: it runs a job's course, and knows of no nodes.

    python -m zkd.training.brain FD PARENT

    in    start     head {"job": Job, "manifest": Manifest}; body: a checkpoint, or none
          answers   head {"number": n}; bodies: the answers to question n, of all parts, each once, in any order
          stop      head {"reason": words}: end with what there is
          save      -> saved
    out   question  head `Question`; bodies: the question, its context
          saved     head {"round": n, "phase": ...}; body: a checkpoint
          over      head {"summary": Summary, "rounds": [Round...]}; body: the model's file
          refused   head {"error": words}: there can be no model, whoever tries

A question comes after `start`, and after the answers to the one before; also after a `stop` that ends the rounds, and
once more, with `again` and why, where answers were not those of all parts. Answers to any but the last question are
dropped. The same bits come of a job whenever this is killed and started again from a checkpoint.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from zkd.errors import BadAnswers, BadRecord, BadTraining
from zkd.jobs import Job, Phase, Progress, Round
from zkd.manifests import Manifest
from zkd.models.course import Course, begin
from zkd.models.resuming import packed, resume
from zkd.training.child import Line, be_child
from zkd.training.frames import BadFrame, Frame

NAME: Final = "zkd-brain"
AGAIN_MAX: Final = 3  # times in a row that answers to one question were not those of all parts


class Start(msgspec.Struct, frozen=True):
    job: Job
    manifest: Manifest


class Question(msgspec.Struct, frozen=True):
    """Head of a question. `rounds` are the rounds since the last question; after `start`, all there were.

    `context` names the context that is the second body: who was told that one needs no other. `columns` are those that
    parts have to come with.
    """

    number: int
    phase: Phase
    progress: Progress
    rounds: tuple[Round, ...]
    columns: tuple[str, ...]
    context: str
    again: str | None = None


@dataclass
class Brain:
    line: Line
    course: Course
    number: int = 0  # of the last question
    told: int = -1  # the last round that was told
    doubts: int = 0

    def ask(self, again: str | None = None) -> None:
        """The next question, or what came of it all."""
        course = self.course
        rounds = course.rounds_after(self.told)
        self.told = rounds[-1].number if rounds else self.told
        if course.is_over:
            self.line.send("over", _plain({"summary": course.summary, "rounds": rounds}), course.trained().write())
            return
        self.number += 1
        head = Question(self.number, course.phase, course.progress, rounds, course.chosen.columns, course.name, again)
        self.line.send("question", _plain(head), course.question, course.context)

    def take(self, frame: Frame) -> None:
        """Raises `BadTraining` when there can be no model; `BadFrame` for what nobody may say now."""
        if frame.kind == "save":
            saved = packed(self.course)
            self.line.send("saved", {"round": self.course.number, "phase": self.course.phase}, saved)
        elif frame.kind == "stop":
            after = self.course.stop(str(_field(frame, "reason", str)))
            if after is not self.course:
                self.course = after
                self.ask()
        elif frame.kind == "answers":
            if _field(frame, "number", int) == self.number and not self.course.is_over:
                self._answered(frame)
        else:
            raise BadFrame(f"{frame.kind[:40]!r}, which nobody says to a brain that has started")

    def _answered(self, frame: Frame) -> None:
        try:
            self.course = self.course.told(frame.bodies)
        except BadAnswers as doubt:
            self.doubts += 1
            if self.doubts == AGAIN_MAX:
                raise BadTraining(f"answers: {doubt}, {AGAIN_MAX} times in a row") from None
            self.ask(again=str(doubt))
            return
        self.doubts = 0
        self.ask()


def serve(line: Line) -> None:
    frame = line.receive()
    if frame is None:
        return
    if frame.kind != "start":
        raise BadFrame(f"{frame.kind[:40]!r} before start")
    try:
        start = msgspec.convert(frame.head, Start)
    except msgspec.ValidationError as error:
        raise BadFrame(f"start: {error}") from None
    try:
        brain = Brain(line, _course(start, frame))
        brain.ask()
        while (frame := line.receive()) is not None:
            brain.take(frame)
    except BadTraining as problem:
        _refuse(line, str(problem))
    except np.linalg.LinAlgError as problem:
        _refuse(line, f"the Hessian could not be factored ({problem}); set l2 > 0, or a larger one")
    except MemoryError:
        _refuse(line, "there is not enough memory for a model of so many parameters")


def _course(start: Start, frame: Frame) -> Course:
    if not (frame.bodies and frame.bodies[0]):
        return begin(start.job, start.manifest)
    try:
        return resume(start.job, start.manifest, frame.bodies[0])
    except BadRecord as problem:  # begun anew it comes to the same bits, only later
        print(f"{NAME}: begins anew: {problem}", file=sys.stderr, flush=True)
        return begin(start.job, start.manifest)


def _refuse(line: Line, why: str) -> None:
    line.send("refused", {"error": why})
    while line.receive() is not None:  # until the parent has heard it and hangs up
        pass


def _field(frame: Frame, name: str, kind: type[Any]) -> Any:
    value = frame.head.get(name) if isinstance(frame.head, dict) else None
    if type(value) is not kind:
        raise BadFrame(f"{frame.kind} with no {name}")
    return value


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


if __name__ == "__main__":
    be_child(NAME, serve)
