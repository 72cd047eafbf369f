"""What makes a run count, and that its seed fixes what is broken in which order."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from tests.chaos import nemesis
from tests.chaos.conductor import FAULTS, Options, Outcome
from tests.chaos.nemesis import Blow, Known, Missed, Nemesis, Struck, read_blows
from tests.chaos.report import longest_wait
from tests.chaos.site import Site

HIT = Blow("server-kill", "server-1", {"state": "X"}, 10.0, 12.0)


def counting(tmp_path: Path) -> Outcome:
    outcome = Outcome(Options(100, 1, tmp_path), load_before=80.0, blows=[HIT], converged_at=20.0)
    assert outcome.void == ""
    return outcome


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("load_before", 49.0, "49 tasks/s before the first fault"),
        ("blows", [msgspec.structs.replace(HIT, proof={})], "no fault hit"),
        ("converged_at", None, "not at rest"),
        ("disagreement", "server-1 lacks 3 znodes", "ZooKeeper itself"),
    ],
)
def test_a_run_that_proves_nothing_does_not_count(tmp_path: Path, field: str, value: object, why: str) -> None:
    outcome = counting(tmp_path)
    setattr(outcome, field, value)
    assert why in outcome.void


async def order_of(seed: int, directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The first faults of each lane, in a nemesis whose faults take no time."""
    monkeypatch.setattr(nemesis, "GAP_S", (0.0, 0.0))
    over = asyncio.Event()

    def fake(name: str, lane: str) -> Known:
        async def make(site: Site, rng: random.Random) -> Struck:
            if rng.random() < 0.1:
                raise Missed(name)
            return Struck(str(rng.random()), {"hit": True})

        return Known(name, lane, 1, make)

    fakes = {f"{lane}-{n}": fake(f"{lane}-{n}", lane) for lane in ("a", "b") for n in range(3)}
    monkeypatch.setattr(nemesis, "FAULTS", fakes)

    def tell(text: str) -> None:
        if len(raging.blows) > 60:
            over.set()

    raging = Nemesis(Site(directory, None, 1.0), seed, fakes, tell)  # type: ignore[arg-type]
    await raging.run(over)
    assert raging.spared() == set()
    assert read_blows(directory / "nemesis") == raging.blows
    return [(blow.fault, blow.target) for lane in "ab" for blow in raging.blows if blow.fault[0] == lane][:20]


async def test_the_seed_fixes_what_is_broken_in_which_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "123":
        (tmp_path / name).mkdir()
    first = await order_of(1, tmp_path / "1", monkeypatch)
    assert first == await order_of(1, tmp_path / "2", monkeypatch)
    assert first != await order_of(2, tmp_path / "3", monkeypatch)
    assert {name for name, _ in first[:3]} == {"a-0", "a-1", "a-2"}  # each once before any comes again


def test_every_fault_belongs_to_a_lane() -> None:
    assert {known.lane for known in FAULTS.values()} == {"servers", "daemons", "connections", "people"}
    assert len(FAULTS) > 25


def test_the_longest_wait_counts_from_the_first_moment_to_the_last() -> None:
    assert longest_wait([1.0, 2.0, 5.0, 6.0], 1.5, 5.5) == 3.0
    assert longest_wait([], 1.0, 4.0) == 3.0
