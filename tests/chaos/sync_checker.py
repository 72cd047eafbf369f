"""What programs that lock, count and queue saw, and whether it can be true.

Each program writes a line a fact, with the machine's own clock. A *certain* moment of a holder is one at which it had
been granted before, and asked `is_sure` afterwards and was told so: then nobody else may hold.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

LEASES = 2


@dataclass(frozen=True)
class Span:
    """From the first certain moment of a grant to the last one."""

    name: str
    mode: str
    fence: int
    program: str
    start: float
    end: float


@dataclass
class Verdict:
    violations: list[str] = field(default_factory=list)
    grants: Counter[str] = field(default_factory=Counter)
    losses: int = 0
    unsure: int = 0  # moments at which a holder knew that it did not know
    added: int = 0
    maybe_added: int = 0
    put: int = 0
    done: int = 0
    again: int = 0  # items that were taken more than once

    def __str__(self) -> str:
        grants = ", ".join(f"{count} {mode}" for mode, count in sorted(self.grants.items()))
        return (
            f"{grants} grants; {self.losses} lost, unsure {self.unsure} times; added {self.added} (+{self.maybe_added} "
            f"unknown); {self.put} put, {self.done} done, {self.again} taken again; {len(self.violations)} violations"
        )


def read(files: list[Path]) -> list[dict[str, object]]:
    """All whole lines; a program that was killed may have left half a one."""
    facts = []
    for file in files:
        for line in file.read_text().splitlines():
            try:
                facts.append({**json.loads(line), "program": file.stem})
            except json.JSONDecodeError:
                continue
    return sorted(facts, key=lambda fact: fact["t"])


def judge(facts: list[dict[str, object]], *, counted: int, queued: set[str]) -> Verdict:
    """`counted` is the counter's value in the end, `queued` the ids that were left in the queue."""
    verdict = Verdict()
    spans = _spans(facts, verdict)
    for name in {span.name for span in spans}:
        _check_line([span for span in spans if span.name == name], verdict)
    _check_counter(facts, counted, verdict)
    _check_queue(facts, queued, verdict)
    return verdict


def _spans(facts: list[dict[str, object]], verdict: Verdict) -> list[Span]:
    moments: dict[tuple[str, int], list[dict[str, object]]] = defaultdict(list)
    granted: Counter[tuple[str, int]] = Counter()
    for fact in facts:
        key = (str(fact.get("name")), int(str(fact.get("fence", 0))))
        if fact["what"] == "granted":
            verdict.grants[str(fact["mode"])] += 1
            granted[key] += 1
            if granted[key] > 1:
                verdict.violations.append(f"{key[0]}: the fence {key[1]} was given twice")
        elif fact["what"] == "sure":
            moments[key].append(fact)
        verdict.unsure += fact["what"] == "unsure"
        verdict.losses += fact["what"] == "lost"
    return [
        Span(
            name,
            str(sure[0]["mode"]),
            fence,
            str(sure[0]["program"]),
            float(str(sure[0]["t"])),
            float(str(sure[-1]["t"])),
        )
        for (name, fence), sure in moments.items()
    ]


def _check_line(spans: list[Span], verdict: Verdict) -> None:
    ordered = sorted(spans, key=lambda span: span.start)
    holding: list[Span] = []
    largest: dict[bool, Span] = {}
    for span in ordered:
        holding = [other for other in holding if other.end > span.start]
        if span.mode == "lease":
            if len(holding) >= LEASES:
                verdict.violations.append(f"{len(holding) + 1} hold {LEASES} leases at once: {[*holding, span]}")
        else:
            for other in holding:
                if "write" in (span.mode, other.mode):
                    verdict.violations.append(f"two hold at once: {other} and {span}")
            # Whoever came before a writer, or a writer before it, has the smaller fence; readers come in any order.
            for is_writer in (True, False) if span.mode == "write" else (True,):
                former = largest.get(is_writer)
                if former is not None and former.fence >= span.fence:
                    verdict.violations.append(f"fences go back: {former} and then {span}")
        holding.append(span)
        is_writer = span.mode == "write"
        if is_writer not in largest or largest[is_writer].fence < span.fence:
            largest[is_writer] = span


def _check_counter(facts: list[dict[str, object]], counted: int, verdict: Verdict) -> None:
    tried = sum(fact["what"] == "adding" for fact in facts)
    made = [fact["value"] for fact in facts if fact["what"] == "added"]
    verdict.added, verdict.maybe_added = len(made), tried - len(made)
    if not len(made) <= counted <= tried:
        verdict.violations.append(f"the counter says {counted}: {len(made)} were added for certain, {tried} at most")
    if len(set(made)) != len(made):
        verdict.violations.append("two additions made the same value")


def _check_queue(facts: list[dict[str, object]], queued: set[str], verdict: Verdict) -> None:
    put = {str(fact["id"]) for fact in facts if fact["what"] == "put"}
    putting = {str(fact["id"]) for fact in facts if fact["what"] == "putting"}
    ended = Counter(str(fact["id"]) for fact in facts if fact["what"] == "done")
    ending = {str(fact["id"]) for fact in facts if fact["what"] == "taken"}
    verdict.put, verdict.done = len(put), ended.total()
    verdict.again = sum(int(str(fact["deliveries"])) > 1 for fact in facts if fact["what"] == "taken")
    for item, count in ended.items():
        if count > 1:
            verdict.violations.append(f"the item {item} was ended {count} times")
        if item in queued:
            verdict.violations.append(f"the item {item} was ended, and is still there")
        if item not in putting:
            verdict.violations.append(f"the item {item} came from nowhere")
    # An item that was taken and is gone may have been ended without its taker's living to write so.
    for item in put - queued - set(ended) - ending:
        verdict.violations.append(f"the item {item} is lost: nobody ever took it")
