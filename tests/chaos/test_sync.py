"""A short run of `python -m tests.chaos.sync`, and that its checker finds what it is there to find."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.chaos.sync import Options, conduct
from tests.chaos.sync_checker import judge, read

Fact = dict[str, object]


def fact(t: float, what: str, **more: object) -> Fact:
    return {"t": t, "what": what, "program": "p", **more}


def held(fence: int, start: float, end: float, mode: str = "write") -> list[Fact]:
    grant = fact(start, "granted", name="l", mode=mode, fence=fence)
    return [grant, *(fact(t, "sure", name="l", mode=mode, fence=fence) for t in (start, end))]


def violations(*facts: Fact, counted: int = 0, queued: set[str] | None = None) -> str:
    return "; ".join(judge(sorted(facts, key=lambda f: f["t"]), counted=counted, queued=queued or set()).violations)


def test_holders_one_after_the_other_are_fine() -> None:
    assert violations(*held(1, 0, 1), *held(5, 1.5, 2), *held(9, 2, 3)) == ""


def test_two_holders_at_once_are_found() -> None:
    assert "two hold at once" in violations(*held(1, 0, 2), *held(5, 1, 3))
    assert "two hold at once" in violations(*held(1, 0, 2, "read"), *held(5, 1, 3))
    assert violations(*held(5, 0, 2, "read"), *held(1, 1, 3, "read")) == ""
    assert "3 hold 2 leases" in violations(*(f for n in (1, 2, 3) for f in held(n, n / 10, 2, "lease")))


def test_a_fence_that_goes_back_or_is_given_twice_is_found() -> None:
    assert "fences go back" in violations(*held(5, 0, 1), *held(1, 2, 3))
    assert "fences go back" in violations(*held(5, 0, 1, "read"), *held(1, 2, 3))
    assert "given twice" in violations(*held(5, 0, 1), *held(5, 2, 3))


def test_what_was_counted_twice_or_not_is_found() -> None:
    one = [fact(0, "adding"), fact(1, "added", value=1)]
    assert violations(*one, counted=1) == ""
    assert violations(*one, fact(2, "adding"), counted=2) == ""  # nobody knows
    assert "the counter says 2" in violations(*one, counted=2)
    assert "the counter says 0" in violations(*one, counted=0)
    assert "the same value" in violations(*one, *one, counted=2)


def test_items_that_are_lost_or_ended_twice_are_found() -> None:
    put = [fact(0, "putting", id="a"), fact(1, "put", id="a")]
    taken, done = fact(2, "taken", id="a", deliveries=1), fact(3, "done", id="a")
    assert violations(*put, taken, done) == violations(*put, queued={"a"}) == ""
    assert "is lost" in violations(*put)
    assert "ended 2 times" in violations(*put, taken, done, done)
    assert "still there" in violations(*put, taken, done, queued={"a"})
    assert "from nowhere" in violations(taken, done)


def test_half_a_line_of_a_killed_program_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "p0.1.jsonl"
    file.write_text(json.dumps(fact(1, "adding")) + '\n{"t": 2, "wh')
    assert [found["what"] for found in read([file])] == ["adding"]


@pytest.mark.timeout(400)
async def test_no_two_hold_and_nothing_counts_twice_while_things_break(tmp_path: Path) -> None:
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a proxy that cuts writes into closed sockets now and then
    faults = ("holder-freeze", "cut-after-commit", "program-kill", "server-kill")
    verdict, blows = await conduct(Options(5.0, 7, tmp_path, programs=2, faults=faults))
    assert verdict.violations == []
    assert blows.total() > 0
    assert verdict.grants["write"] > 0
