"""The judge of what submitters saw: pure functions over files, each line looked at once.

    histories (what was asked, what was seen)  \
    ledgers   (what kernels did)                >--- verdict: every rule that was broken, with the task
    the tree at the end (results, dead, tasks) /

`tests.chaos.audit` judges by ZooKeeper's own log. Neither believes anything that zkd says of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.chaos import history, work
from tests.chaos.history import Cancel, Cancelled, Ended, Lost, Seen, Submit, Submitted

CHARGED = {"error", "crash", "timeout"}
NODE_LOSSES_MAX = 10
FOREIGN = "x-"  # ids that the nemesis drops as garbage


class Violation(NamedTuple):
    rule: str  # lost | duplicated | stale | wrong | ...
    task: str  # id or key
    text: str


@dataclass(slots=True)
class Deed:
    """One task from its submitter's side."""

    submit: Submit
    id: str
    outcome: history.Outcome = "unknown"
    is_again: bool = False  # it may have been created twice
    cancel: history.Outcome | None = None
    saw: Seen | None = None
    was_left: bool = False  # its submitter's session ended after it began


class Left(msgspec.Struct, frozen=True):
    """One result in the tree at the end. `key` is the task's, where value or obituary tell it."""

    id: str
    seen: Seen
    key: str = ""


class Tree(msgspec.Struct, frozen=True):
    """What else is in the tree at the end."""

    tasks: list[str]
    dead: list[str]


class Run(NamedTuple):
    """One run of a kernel, as it wrote it down."""

    attempt: int
    fence: str
    node: str
    has_ended: bool


@dataclass
class Ledger:
    runs: dict[str, list[Run]] = field(default_factory=dict)
    starts: int = 0


@dataclass
class Verdict:
    violations: list[Violation] = field(default_factory=list)
    tasks: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_outcome: Counter[str] = field(default_factory=Counter)
    executions: int = 0
    expected_executions: int = 0
    unfinished: list[str] = field(default_factory=list)

    def blame(self, rule: str, task: str, text: str) -> None:
        self.violations.append(Violation(rule, task, text))


def deeds_of(paths: Iterable[Path]) -> Iterator[Deed]:
    for path in paths:
        deeds: dict[str, Deed] = {}
        ephemeral: dict[str, Deed] = {}  # those that have not ended
        for line in history.read(path):
            if isinstance(line, Submit):
                deeds[line.key] = deed = Deed(line, line.id)
                if line.mode == "ephemeral":
                    ephemeral[line.key] = deed
            elif isinstance(line, Submitted):
                deed = deeds[line.key]
                deed.id, deed.outcome = line.id or deed.id, line.outcome
                deed.is_again = line.why == "again" or line.why == "it was there"
            elif isinstance(line, Cancel):
                deeds[line.key].cancel = "unknown"
            elif isinstance(line, Cancelled):
                deeds[line.key].cancel = line.outcome
            elif isinstance(line, Ended):
                deeds[line.key].saw = line.seen
                ephemeral.pop(line.key, None)
            elif isinstance(line, Lost):
                for deed in ephemeral.values():
                    deed.was_left = True
        for deed in ephemeral.values():  # its submitter was killed
            deed.was_left = True
        yield from deeds.values()


def ledger_of(paths: Iterable[Path]) -> Ledger:
    ledger = Ledger()
    for path in paths:
        ended: set[tuple[str, str]] = set()
        begun: dict[str, list[tuple[int, str]]] = {}
        with path.open() as file:
            for line in file:
                words = line.split()
                if len(words) != 6:
                    continue  # torn by the death of the process
                mark, task_id, attempt, fence = words[:4]
                if mark == "start":
                    ledger.starts += 1
                    begun.setdefault(task_id, []).append((int(attempt), fence))
                else:
                    ended.add((task_id, fence))
        for task_id, runs in begun.items():
            ledger.runs.setdefault(task_id, []).extend(
                Run(attempt, fence, path.stem, (task_id, fence) in ended) for attempt, fence in runs
            )
    return ledger


def left_in(path: Path) -> Iterator[Left]:
    with path.open("rb") as file:
        for line in file:
            yield msgspec.json.decode(line, type=Left)


def judge(
    histories: Iterable[Path],
    ledgers: Iterable[Path],
    results: Path,
    tree: Tree,
) -> Verdict:
    """Everything that is wrong with this run."""
    verdict = Verdict()
    ledger = ledger_of(ledgers)
    verdict.executions = ledger.starts
    left = {each.id: each for each in left_in(results)}
    dead, waiting = set(tree.dead), set(tree.tasks)
    unclaimed = {task_id for task_id in left if not task_id.startswith(FOREIGN)}
    doubtful: dict[str, Deed] = {}  # by key or prefix: nobody learned the id
    unanswered = {task_id for task_id in dead if task_id not in left and not task_id.startswith(FOREIGN)}
    for deed in deeds_of(histories):
        verdict.tasks += 1
        verdict.by_outcome[deed.outcome] += 1
        is_known = deed.id and not (deed.submit.mode == "sequential" and deed.id == deed.submit.id)
        if not is_known:
            doubtful[deed.submit.key] = deed
            continue
        unclaimed.discard(deed.id)
        if deed.submit.mode == "forget" and deed.saw is not None:
            unanswered.discard(deed.id)
        end = left.get(deed.id)
        _judge(verdict, deed, None if end is None else end.seen, ledger, dead, is_waiting=deed.id in waiting)
    _judge_doubtful(verdict, doubtful, unclaimed, left, ledger, dead)
    for task_id, end in left.items():
        if task_id.startswith(FOREIGN) and end.seen.status != "rejected":
            verdict.blame("wrong", task_id, f"garbage is {end.seen.status}")
    for task_id in sorted(unanswered):
        verdict.blame("wrong", task_id, "it is in dead/ and has no result")
    verdict.unfinished = sorted(waiting)
    return verdict


def _judge_doubtful(
    verdict: Verdict,
    doubtful: Mapping[str, Deed],
    unclaimed: set[str],
    left: Mapping[str, Left],
    ledger: Ledger,
    dead: set[str],
) -> None:
    """Results whose ids nobody learned: each belongs to one deed of unknown outcome, and no deed has two."""
    claimed: dict[str, str] = {}
    for task_id in sorted(unclaimed):
        end = left[task_id]
        prefix = task_id[:-10].rstrip("-") if task_id[-10:].isdigit() else ""
        key = next((key for key in (end.key, prefix) if key in doubtful), None)
        if key is None:
            nameless = [key for key, deed in doubtful.items() if not deed.id and key not in claimed]
            if end.key or not nameless:
                verdict.blame("wrong", task_id, f"a result that nobody asked for: {end.seen}")
                continue
            key = nameless[0]  # a rejected one does not say whose it was
            doubtful[key].submit = msgspec.structs.replace(doubtful[key].submit, kind="unknown")
        if key in claimed:
            verdict.blame("duplicated", task_id, f"submitted once, and there is {claimed[key]} too")
            continue
        claimed[key] = task_id
        deed = doubtful[key]
        deed.id = task_id
        _judge(verdict, deed, end.seen, ledger, dead, is_waiting=False)
    for key, deed in doubtful.items():
        if key not in claimed:
            verdict.by_status["none"] += 1
            if deed.outcome == "ok":
                verdict.blame("lost", key, "accepted, and there is no result")


def _judge(verdict: Verdict, deed: Deed, end: Seen | None, ledger: Ledger, dead: set[str], *, is_waiting: bool) -> None:
    runs = ledger.runs.get(deed.id, [])
    final = end or deed.saw
    verdict.by_status["waiting" if is_waiting else final.status if final else "none"] += 1
    verdict.expected_executions += _expected_runs(final, runs)
    if is_waiting:
        return  # the run has not converged, which is said once, and is void
    blame = verdict.blame
    if deed.outcome == "fail" and final is not None:
        blame("wrong", deed.id, f"it was refused, and there is a result: {final}")
    if deed.saw is not None and end is not None and end != deed.saw:
        blame("duplicated", deed.id, f"its result changed: {deed.saw} was seen, in the end it is {end}")
    if deed.saw is not None and end is None and deed.submit.mode != "forget":
        blame("lost", deed.id, f"its result was seen and is gone: {deed.saw}")
    is_cancellable = deed.cancel in ("ok", "unknown") or deed.was_left
    if final is None:
        if deed.outcome == "ok" and not is_cancellable:
            blame("lost", deed.id, "accepted, not cancelled, and there is no result")
        return
    for problem in _problems(deed, final, runs, dead, is_cancellable=is_cancellable):
        blame("wrong", deed.id, problem)


def _expected_runs(final: Seen | None, runs: list[Run]) -> int:
    """How often the kernel had to run: once, and once more for each attempt that it ended itself."""
    if final is None or final.status in ("cancelled", "rejected"):
        return min(1, len(runs))
    charged = sum(cause in CHARGED for cause in final.causes)
    return charged + (final.status == "done")


def _problems(deed: Deed, final: Seen, runs: list[Run], dead: set[str], *, is_cancellable: bool) -> Iterator[str]:
    """Each rule that this result breaks, in words."""
    kind = deed.submit.kind
    if final.status == "cancelled":
        if deed.cancel == "fail" and not deed.was_left:
            yield "its submitter was told that it had ended before the cancellation, and it is cancelled"
        elif not is_cancellable:
            yield "it is cancelled, and nobody cancelled it"
    elif final.status != work.statuses_of(kind) and (kind, final.error) != ("big", "OSError"):  # a disk was full
        yield f"a task of kind {kind} is {final.status} ({final.error})"
    elif deed.cancel == "ok" and not deed.is_again:
        yield f"its submitter was told that it is cancelled, and it is {final.status}"
    if final.status == "done" and kind == "big":
        if final.ref != work.big_sha256(deed.submit.n):
            yield f"its file is {final.ref}, not {work.big_sha256(deed.submit.n)}"
    elif final.status == "done":
        value = msgspec.json.decode(final.value) if final.value is not None else None
        right = work.value_of(deed.submit.key, deed.submit.n)
        if value != right:
            yield f"its value is {value}, not {right}"
    if final.status == "done" and not any(_is_by(run, final) for run in runs):
        yield f"attempt {final.attempt} by {final.owner} is in no ledger as ended"
    if final.status == "failed":
        if kind in work.POISON and final.error not in work.POISON[kind]:
            yield f"poison of kind {kind} failed by {final.error}"
        if deed.id not in dead:
            yield "it failed and is not in dead/"
    elif deed.id in dead:
        yield f"it is in dead/ and {final.status}"
    charged = sum(cause in CHARGED for cause in final.causes)
    if charged > work.retries_of(kind) + (final.status == "failed"):
        yield f"{charged} charged attempts: {final.causes}"
    if final.causes.count("node_loss") > NODE_LOSSES_MAX + 1:
        yield f"too many attempts were lost with their nodes: {final.causes}"
    if final.status != "cancelled" and runs and kind in ("unknown", "garbage"):
        yield "it was run"


def _is_by(run: Run, final: Seen) -> bool:
    return (
        run.has_ended
        and run.node == final.node
        and run.attempt == final.attempt
        and run.fence.startswith(f"{final.czxid:x}.")
        and run.fence.endswith(f".{final.owner}")
    )
