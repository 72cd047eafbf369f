"""What a keeper decides: copies return to R, only what must move moves, the last good copy is never deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.keepers import GRACE_S, World, edition
from tests.node.datasets import rank
from zkd import codec
from zkd.core.atlas import Atlas, Dataset
from zkd.core.datasets import Held, bits, holding, read_holding
from zkd.core.keeping import (
    FETCHES_MAX,
    ORPHAN_S,
    RETRY_S,
    RETRY_S_MAX,
    Bucket,
    Command,
    Fetch,
    Keeping,
    Purge,
    Restore,
    Survey,
    Trash,
    Witnesses,
    report,
    survey,
)
from zkd.manifests import Keeper, Ring

S = [f"{n:08x}" for n in range(8)]  # segments


class Scene:
    """Node `a` of a ring, and a dataset of four parts: a holds 0 and 3, or 0, 1, 2, 3 if told so."""

    def __init__(self, nodes: str = "abcd", *, replicas: int = 2, parts: int = 4) -> None:
        self.atlas = Atlas()
        self.atlas.datasets["d"] = Dataset(1, {1: edition("d", 1, [[S[part]] for part in range(parts)], replicas)})
        self.live = {node: f"{node}.1" for node in nodes}
        self.here: set[str] = set()
        self.trashed: set[str] = set()
        self.keeping = Keeping("a")
        self.ring(nodes)

    def ring(self, nodes: str) -> None:
        keepers = [Keeper(node) for node in nodes]
        self.atlas.ring = Ring(self.atlas.ring.epoch + 1, keepers)
        for layer in self.atlas.layouts():
            self.atlas.placed[layer] = (keepers, rank(*layer, keepers) if keepers else [()] * layer[1])

    def says(self, node: str, *parts: int, version: int = 1, incarnation: str | None = None) -> None:
        count = len(self.atlas.datasets["d"].editions[version].parts)
        held = {version: bits([part in parts for part in range(count)])}
        self.atlas.holdings.setdefault("d", {})[node] = Held(incarnation or f"{node}.1", held)

    @property
    def survey(self) -> Survey:
        return survey(self.atlas, "a")

    @property
    def witnesses(self) -> Witnesses:
        return Witnesses(self.atlas.holdings, self.live)

    def decide(self, now: float, *, is_sure: bool = True) -> list[Command]:
        return self.keeping.decide(self.survey, self.here, self.trashed, self.witnesses, now, GRACE_S, is_sure=is_sure)


# --- Fetching -----------------------------------------------------------------------------------------------


def test_what_belongs_here_is_fetched_from_who_says_to_have_it() -> None:
    scene = Scene()
    scene.says("b", 0)
    scene.says("d", 3)
    assert scene.decide(0.0) == [Fetch(S[0], 1, 1, ("b",)), Fetch(S[3], 1, 1, ("d",))]
    scene.here = {S[0], S[3]}
    assert scene.decide(0.0) == []


def test_fewest_live_copies_come_first_and_what_nobody_has_last() -> None:
    scene = Scene("abcd", replicas=4)
    for node, parts in (("b", (0, 1)), ("c", (0, 1, 2)), ("d", (0,))):
        scene.says(node, *parts)
    order = [(command.segment, command.copies) for command in scene.decide(0.0) if isinstance(command, Fetch)]
    assert order == [(S[2], 1), (S[1], 2), (S[0], 3), (S[3], 0)]
    del scene.live["c"]  # what a lost node says does not count as a copy that is here
    order = [(command.segment, command.copies) for command in scene.decide(0.0) if isinstance(command, Fetch)]
    assert order == [(S[1], 1), (S[0], 2), (S[3], 0), (S[2], 0)]  # of the last two, we are the second for 3


def test_what_nobody_says_to_have_is_asked_of_everybody_here() -> None:
    scene = Scene()
    fetches = {each.segment: each for each in scene.decide(0.0) if isinstance(each, Fetch)}
    assert {each: sorted(fetch.sources) for each, fetch in fetches.items()} == {
        S[0]: ["b", "c", "d"],
        S[3]: ["b", "c", "d"],
    }
    scene.live = {"a": "a.1"}
    assert scene.decide(0.0) == []


def test_a_fetch_that_failed_is_tried_later_and_at_once_when_others_have_it() -> None:
    scene = Scene()
    scene.says("b", 0)
    scene.here = {S[3]}
    now = 0.0
    for tries in range(8):
        assert [each.segment for each in scene.decide(now) if isinstance(each, Fetch)] == [S[0]]
        scene.keeping.fetch_failed(S[0], scene.survey, scene.witnesses, now)
        pause_s = min(RETRY_S_MAX, RETRY_S * 2**tries)
        assert scene.decide(now + pause_s - 0.01) == []
        now += pause_s
    scene.keeping.fetch_failed(S[0], scene.survey, scene.witnesses, now)
    scene.says("c", 0)
    assert [each.segment for each in scene.decide(now) if isinstance(each, Fetch)] == [S[0]]


def test_sources_differ_from_segment_to_segment() -> None:
    scene = Scene("abcdef", replicas=6, parts=8)
    for node in "bcdef":
        scene.says(node, *range(8))
    first = Counter(each.sources[0] for each in scene.decide(0.0) if isinstance(each, Fetch))
    assert first == {"b": 2, "c": 2, "d": 2, "e": 1, "f": 1}


def test_a_segment_that_versions_share_is_had_from_who_holds_either() -> None:
    scene = Scene()
    scene.atlas.datasets["d"].editions[2] = edition("d", 2, [[S[part], S[part + 4]] for part in range(4)], 2)
    scene.says("b", 0, version=1)  # not yet whole in version 2
    fetches = {each.segment: each.sources for each in scene.decide(0.0) if isinstance(each, Fetch)}
    assert fetches[S[0]] == ("b",)
    assert len(fetches[S[4]]) == 3


def test_a_few_are_decided_at_a_time() -> None:
    many = FETCHES_MAX * 4
    scene = Scene("ab")
    scene.atlas.datasets["d"] = Dataset(1, {1: edition("d", 1, [[f"{n:08x}"] for n in range(many)], 2)})
    scene.ring("ab")
    assert len(scene.decide(0.0)) == FETCHES_MAX


# --- Keeping and throwing away ------------------------------------------------------------------------------


def moved() -> Scene:
    """Part 0 lies here, and belongs to b and c now, who hold it."""
    scene = Scene()
    scene.ring("bcd")
    scene.says("b", 0)
    scene.says("c", 0)
    scene.here = {S[0]}
    return scene


def test_what_moved_goes_in_two_steps_after_two_graces() -> None:
    scene = moved()
    assert scene.decide(0.0) == []
    assert scene.decide(GRACE_S - 0.1) == []
    assert scene.decide(GRACE_S) == [Trash(S[0])]
    scene.here, scene.trashed = set(), {S[0]}
    assert scene.decide(100.0) == []
    assert scene.decide(100.0 + GRACE_S) == [Purge(S[0], ("b", "c"))]
    scene.keeping.purge_refused(S[0])
    assert scene.decide(101.0 + GRACE_S) == []
    assert scene.decide(101.0 + 2 * GRACE_S) == [Purge(S[0], ("b", "c"))]


UNSAFE: dict[str, Callable[[Scene], object]] = {
    "one of them does not have it": lambda scene: scene.says("c"),
    "one of them says nothing": lambda scene: scene.atlas.holdings["d"].pop("c"),
    "one of them is away": lambda scene: scene.live.pop("c"),
    "one of them came anew and has not looked": lambda scene: scene.live.update(c="c.2"),
    "others have it, not those it belongs to": lambda scene: (scene.says("c"), scene.says("d", 0)),
    "there are fewer nodes than copies": lambda scene: scene.ring("b"),
    "there is no ring": lambda scene: scene.ring(""),
    "it is ours again": lambda scene: scene.ring("abcd"),
    "another version lists it and is not held": lambda scene: scene.atlas.datasets["d"].editions.update(
        {2: edition("d", 2, [[S[part], S[part + 4]] for part in range(4)], 2)}
    ),
}


@pytest.mark.parametrize("why", UNSAFE)
def test_nothing_goes_while_it_may_be_needed(why: str) -> None:
    scene = moved()
    UNSAFE[why](scene)
    commands = [scene.decide(now) for now in (0.0, GRACE_S, 10 * GRACE_S)]
    assert not any(isinstance(each, Trash | Purge) for some in commands for each in some)


@pytest.mark.parametrize("why", UNSAFE)
def test_the_grace_begins_anew_and_the_trash_gives_back(why: str) -> None:
    scene = moved()
    scene.decide(0.0)
    UNSAFE[why](scene)
    scene.decide(GRACE_S - 1)
    other = moved()
    scene.atlas, scene.live = other.atlas, other.live
    assert scene.decide(GRACE_S) == []
    assert scene.decide(2 * GRACE_S) == [Trash(S[0])]
    scene.here, scene.trashed = set(), {S[0]}
    scene.decide(2 * GRACE_S)
    UNSAFE[why](scene)
    assert Restore(S[0]) in scene.decide(3 * GRACE_S)


def test_nothing_goes_while_the_picture_may_be_old_and_everything_is_kept_for_a_grace_after() -> None:
    scene = moved()
    scene.decide(0.0)
    assert scene.decide(GRACE_S, is_sure=False) == []
    assert scene.decide(GRACE_S + 1) == []
    assert scene.decide(2 * GRACE_S + 1) == [Trash(S[0])]
    scene.here, scene.trashed = set(), {S[0]}
    assert scene.decide(3 * GRACE_S) == []
    assert scene.decide(4 * GRACE_S, is_sure=False) == []
    assert scene.decide(4 * GRACE_S + 1) == []
    assert scene.decide(5 * GRACE_S + 1) == [Purge(S[0], ("b", "c"))]


def test_what_no_manifest_names_is_kept_for_an_hour_without_writers() -> None:
    scene = Scene()
    scene.here = {S[0], S[3], S[7]}
    dataset = scene.atlas.datasets["d"]
    assert scene.decide(0.0) == []
    dataset.writers = 1
    assert scene.decide(ORPHAN_S - 1) == []
    dataset.writers = 0
    assert scene.decide(ORPHAN_S) == []
    dataset.refused[2] = "a manifest that cannot be read may list anything"
    assert scene.decide(ORPHAN_S + 1) == []
    del dataset.refused[2]
    begun = ORPHAN_S + 2
    assert scene.decide(begun) == []
    assert scene.decide(begun + ORPHAN_S + GRACE_S - 1) == []
    assert scene.decide(begun + ORPHAN_S + GRACE_S) == [Trash(S[7])]
    scene.here, scene.trashed = {S[0], S[3]}, {S[7]}
    assert scene.decide(20_000.0) == []
    dataset.writers = 1
    assert scene.decide(20_000.0 + GRACE_S) == []
    dataset.writers = 0
    assert scene.decide(30_000.0) == []
    assert scene.decide(30_000.0 + GRACE_S) == [Purge(S[7], ())]


def test_what_is_listed_again_comes_back_from_the_trash() -> None:
    scene = Scene()
    scene.here, scene.trashed = {S[0], S[3]}, {S[4]}
    assert scene.decide(0.0) == []
    scene.atlas.datasets["d"].editions[2] = edition("d", 2, [[S[part + 4]] for part in range(4)], 2)
    assert [each for each in scene.decide(1.0) if isinstance(each, Restore)] == [Restore(S[4])]


# --- Reporting ----------------------------------------------------------------------------------------------


def test_only_whole_parts_are_reported_also_those_that_belong_elsewhere() -> None:
    scene = Scene()
    scene.atlas.datasets["d"].editions[2] = edition("d", 2, [[S[0], S[4]], [S[1]], [], []], 2)
    assert report(scene.atlas, "a", set()) == {"d": {2: 0b1000}}  # part 3 is ours and empty, part 2 is not ours
    assert report(scene.atlas, "a", {S[0], S[1]}) == {"d": {1: 0b0011, 2: 0b1010}}
    assert report(scene.atlas, "a", {S[0], S[4], S[2]}) == {"d": {1: 0b0101, 2: 0b1001}}


@given(st.dictionaries(st.integers(1, 10**12), st.lists(st.booleans(), min_size=1, max_size=300), max_size=5))
def test_a_holding_says_what_it_was_made_of(parts: dict[int, list[bool]]) -> None:
    said = holding("i", {version: bits(flags) for version, flags in parts.items()})
    held = read_holding(codec.encode(said))
    for version, flags in parts.items():
        assert [held.has(version, part) for part in range(len(flags))] == flags
        assert not held.has(version, len(flags))
        assert not held.has(version + 1, 0) or version + 1 in parts


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1)), max_size=50))
def test_a_budget_holds_over_any_time(spent: list[tuple[int, float]]) -> None:
    bucket, now, total, rate = Bucket(0.0), 0.0, 0, 100.0
    for size, pause_s in spent:
        now += pause_s
        total += size
        now += bucket.spend(size, rate, now)
        assert total <= rate * (now + 1.0) + 1e-6  # what a second saves up is the most that comes at once


# --- The model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_copies_return_to_r_and_the_last_good_one_is_never_deleted(seed: int) -> None:
    world = World(seed, replicas=2 + seed % 2)
    for _ in range(400):
        world.step(luck=0.8, mischief=0.2)
    world.heal()
    world.check_rest()
    assert world.count.keys() >= {"crash", "rot", "quarantine", "fetch", "trash", "purge"}, world.count


def test_nothing_moves_while_nothing_changes() -> None:
    world = World(1)
    for _ in range(200):
        world.step()
    assert world.count == {}


def test_a_node_that_is_away_for_less_than_the_grace_moves_nothing() -> None:
    world = World(2)
    world.nodes["c"].is_up, world.away_since["c"] = False, 0.0
    for _ in range(int(GRACE_S) - 5):
        world.step()
    world.come(world.nodes["c"])
    for _ in range(100):
        world.step()
    assert world.count == {}


def ask_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Keeping, "_homes", lambda *_: ())


def believe_former_lives(patch: pytest.MonkeyPatch) -> None:
    ask_nobody(patch)
    patch.setattr(Witnesses, "vouches", lambda self, _, place: bool(self.holders([place])))


def leave_in_the_trash(patch: pytest.MonkeyPatch) -> None:
    ask_nobody(patch)
    patch.setattr(Keeping, "_is_needed", lambda _, survey, segment, witnesses: segment in survey.wanted)


@pytest.mark.parametrize("plant", [ask_nobody, believe_former_lives, leave_in_the_trash])
def test_the_model_finds_planted_bugs(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match="deleted"):
        run(range(200))


def run(seeds: range) -> None:
    for seed in seeds:
        world = World(seed)
        for _ in range(400):
            world.step(luck=0.8, mischief=0.2)
