"""The ring: who comes, goes and is told to go; what stands in the tree then."""

from __future__ import annotations

import math
import random

import pytest

from tests.core.scene import node
from zkd.core.ring import SETTLE_S, Muster, keeper_of
from zkd.manifests import Keeper, Ring
from zkd.paths import NodeId

GRACE_S = 60.0


class Leader:
    """A leader with a clock: writes what is decided, and looks again when it said it would."""

    def __init__(self, ring: Ring | None = None, *here: str) -> None:
        self.now = 0.0
        self.written: list[tuple[float, str]] = []
        self.muster = Muster(Ring(0))
        for name in here:
            self.comes(name)
        self.muster.ring_read(ring or Ring(0), 0.0)

    def comes(self, name: str, weight: float = 1.0, zone: str | None = None) -> None:
        self.muster.node_here(name, Keeper(name, weight=weight, zone=zone) if weight else None, self.now)

    def goes(self, name: str) -> None:
        self.muster.node_gone(name, self.now)

    def is_told(self, name: str, state: str) -> None:
        self.muster.node_state(name, state, self.now)  # type: ignore[arg-type]

    def until(self, time: float) -> None:
        """Let time pass."""
        for _ in range(100):
            decided = self.muster.decide(self.now, GRACE_S, f"at {self.now:g}")
            if decided is not None:
                keepers, lost = decided
                self.muster.ring_read(Ring(1, keepers, lost), self.now)
                self.written.append((self.now, self.ring))
                assert self.muster.decide(self.now, GRACE_S, "later") is None, (
                    "asked again, it has something new to say"
                )
            timer = self.muster.next_timer(self.now, GRACE_S)
            if timer is None or timer > time:
                self.now = time
                return
            assert timer > self.now
            self.now = timer
        raise AssertionError("it decides without end")

    @property
    def ring(self) -> str:
        """The nodes in it, the lost ones in brackets."""
        ring = self.muster.ring
        return " ".join(f"({k.node})" if k.node in ring.lost else k.node for k in ring.keepers)

    @property
    def keepers(self) -> list[Keeper]:
        return list(self.muster.ring.keepers)


def ring(*nodes: NodeId, lost: tuple[NodeId, ...] = ()) -> Ring:
    return Ring(0, [Keeper(name) for name in nodes], dict.fromkeys(lost, "long ago"))


def test_nodes_that_start_together_make_one_change() -> None:
    leader = Leader()
    leader.comes("b")
    leader.until(0.4)
    leader.comes("a")
    leader.until(5.0)
    assert leader.written == [(SETTLE_S, "a b")]


def test_a_joiner_waits_a_moment_for_others() -> None:
    leader = Leader(ring("a"), "a")
    leader.until(10.0)
    for name in "bcd":
        leader.comes(name)
        leader.until(leader.now + 0.3)
    leader.until(20.0)
    assert leader.written == [(10.0 + SETTLE_S, "a b c d")]


def test_one_that_came_and_went_was_never_in() -> None:
    leader = Leader(ring("a"), "a")
    leader.comes("b")
    leader.until(0.5)
    leader.goes("b")
    leader.until(100.0)
    leader.comes("c")
    leader.until(200.0)
    assert leader.written == [(100.0 + SETTLE_S, "a c")]


def test_a_lost_node_stays_for_its_time_of_grace() -> None:
    leader = Leader(ring("a", "b", "c"), "a", "b", "c")
    leader.until(10.0)
    leader.goes("b")
    leader.until(1000.0)
    assert leader.written == [(10.0, "a (b) c"), (10.0 + GRACE_S, "a c")]
    assert leader.muster.ring.lost == {}


def test_a_restart_moves_nothing() -> None:
    leader = Leader(ring("a", "b"), "a", "b")
    leader.goes("b")
    leader.until(30.0)
    before = leader.keepers
    leader.comes("b")
    leader.until(1000.0)
    assert leader.ring == "a b"
    assert leader.keepers == before
    leader.goes("b")  # and its next loss has all of the time again
    leader.until(1000.0 + GRACE_S - 1)
    assert leader.ring == "a (b)"


def test_a_new_leader_gives_the_missing_all_of_the_time_again() -> None:
    leader = Leader(ring("a", "b", "c", lost=("b",)), "a")
    leader.until(GRACE_S - 1)
    assert leader.ring == "a (b) (c)"
    assert leader.muster.ring.lost == {"b": "long ago", "c": "at 0"}
    leader.until(GRACE_S)
    leader.until(GRACE_S + 1)
    assert leader.ring == "a"


def test_a_ring_is_not_written_by_every_new_leader() -> None:
    leader = Leader(ring("a", "b"), "a", "b")
    leader.until(1000.0)
    assert leader.written == []


def test_a_drained_node_is_out_at_once_and_may_come_back() -> None:
    leader = Leader(ring("a", "b"), "a", "b")
    leader.is_told("b", "draining")
    leader.until(0.0)
    assert leader.ring == "a"
    leader.until(50.0)
    leader.is_told("b", "active")
    leader.until(100.0)
    assert leader.written == [(0.0, "a"), (50.0 + SETTLE_S, "a b")]


def test_a_cordoned_node_keeps_its_data() -> None:
    leader = Leader(ring("a", "b"), "a", "b")
    leader.is_told("b", "cordoned")
    leader.until(1000.0)
    assert leader.written == []


def test_an_operator_can_say_that_a_lost_node_will_not_come_back() -> None:
    leader = Leader(ring("a", "b"), "a")
    leader.until(3.0)
    leader.is_told("b", "draining")
    leader.until(4.0)
    assert leader.written == [(0.0, "a (b)"), (3.0, "a")]


def test_a_drained_node_that_starts_does_not_come_in() -> None:
    leader = Leader(ring("a"), "a")
    leader.is_told("b", "draining")
    leader.comes("b")
    leader.until(1000.0)
    assert leader.written == []


def test_weight_and_zone_are_taken_over_when_they_change() -> None:
    leader = Leader(ring("a", "b"), "a", "b")
    leader.goes("b")
    leader.until(5.0)
    leader.comes("b", weight=2.0, zone="r1")
    leader.until(6.5)
    assert leader.keepers == [Keeper("a"), Keeper("b", weight=2.0, zone="r1")]
    leader.comes("b", weight=0)
    leader.until(6.5)
    assert leader.ring == "a"


def test_the_ring_is_never_empty_once_somebody_kept_data() -> None:
    leader = Leader(ring("a", "b"), "a", "b")
    leader.goes("a")
    leader.is_told("b", "draining")
    leader.until(1000.0)
    assert leader.ring == "(a) b"
    leader.goes("b")
    leader.until(2000.0)
    assert leader.ring == "(a) (b)"
    leader.comes("c")
    leader.until(2000.0)
    assert leader.ring == "c"  # those have been missing for long
    leader.is_told("b", "active")
    leader.comes("b")
    leader.until(3000.0)
    assert leader.ring == "b c"


def test_where_all_are_drained_from_the_start_they_keep_data_all_the_same() -> None:
    leader = Leader()
    leader.is_told("a", "draining")
    leader.comes("a")
    leader.comes("b", weight=0)
    leader.until(10.0)
    assert leader.ring == "a"


def test_nobody_is_nobody() -> None:
    leader = Leader()
    leader.comes("a", weight=0)
    leader.until(10.0)
    assert leader.written == []


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (1.0, Keeper("a")),
        (0.5, Keeper("a", weight=0.5)),
        (0.0, None),
        (-1.0, None),
        (math.nan, None),
        (math.inf, Keeper("a", weight=1e6)),
    ],
)
def test_what_a_node_says_of_its_weight_is_not_believed_blindly(weight: float, expected: Keeper | None) -> None:
    assert keeper_of(node("a", weight=weight, address="http://h:1", data="/d")) == expected


def test_a_node_that_cannot_hold_or_hand_out_data_keeps_none() -> None:
    assert keeper_of(node("a", data="/d")) is None
    assert keeper_of(node("a", address="http://h:1")) is None  # of an earlier version


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_the_ring_is_right_in_the_end(seed: int) -> None:
    rng = random.Random(seed)
    leader = Leader()
    here: dict[str, float] = {}
    drained: set[str] = set()
    for _ in range(60):
        name = rng.choice("abcdef")
        match rng.randrange(5):
            case 0 | 1:
                here[name] = rng.choice([0, 1.0, 2.0])
                leader.comes(name, here[name])
            case 2:
                here.pop(name, None)
                leader.goes(name)
            case 3:
                drained.add(name)
                leader.is_told(name, "draining")
            case 4:
                drained.discard(name)
                leader.is_told(name, rng.choice(["active", "cordoned"]))
        was_there = bool(leader.keepers)
        leader.until(leader.now + rng.choice([0, 0.1, 2.0, 70.0]))
        assert leader.keepers or not was_there
    leader.until(leader.now + 1000.0)
    fit = {name: weight for name, weight in here.items() if weight and name not in drained}
    if fit:
        assert {keeper.node: keeper.weight for keeper in leader.keepers} == fit
        assert leader.muster.ring.lost == {}
    assert set(leader.muster.ring.lost) == {keeper.node for keeper in leader.keepers} - set(here)
