"""Aliases move and go back, names mean one thing, and every node agrees on which files it should hold."""

from __future__ import annotations

import pytest

from zkd import codec
from zkd.core import registry
from zkd.core.registry import Hand, ModelRef, Registered
from zkd.errors import BadRecord, ModelInUse, ModelNotFound
from zkd.manifests import Keeper, Ring
from zkd.registry import Alias, Canary, Feature, ModelFile, ModelHead, ModelVersion, Move

HAND = Hand("ann", 7, "why not")


def version(digit: str = "a", **fields: object) -> ModelVersion:
    return ModelVersion(file=ModelFile(digit * 64, 10), kind="linear", features=[Feature("x")], **fields)  # type: ignore[arg-type]


def model(*numbers: int, **aliases: Alias) -> Registered:
    versions = {number: version(f"{number:x}") for number in numbers}
    return Registered("m", ModelHead(max(numbers, default=0)), versions, aliases)


def on(*versions: int) -> Alias:
    alias = None
    for each in versions:
        alias = registry.moved(alias, each, HAND)
    assert alias is not None
    return alias


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("m", ModelRef("m")),
        ("m@latest", ModelRef("m")),
        ("m@12", ModelRef("m", version=12)),
        ("m@live", ModelRef("m", alias="live")),
        ("a.b-c_1@v2", ModelRef("a.b-c_1", alias="v2")),
    ],
)
def test_a_name_means_one_model(text: str, ref: ModelRef) -> None:
    assert registry.split_ref(text) == ref


@pytest.mark.parametrize("text", ["", "@1", "m@", "m@0", "m@01", "../m", "m@../x", "m@1@2", "m/1", "m@1x", "m" * 129])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadRecord, match="expected NAME"):
        registry.split_ref(text)


def test_names_lead_to_versions() -> None:
    found = model(1, 2, 4, live=on(2))
    assert found.number(ModelRef("m")) == 4
    assert found.number(ModelRef("m", version=1)) == 1
    assert found.number(ModelRef("m", alias="live")) == 2
    for ref, words in (
        (ModelRef("m", version=3), "no version 3"),
        (ModelRef("m", alias="x"), "no alias x; it has live"),
    ):
        with pytest.raises(ModelNotFound, match=words):
            found.number(ref)
    with pytest.raises(ModelNotFound, match="no model m"):
        model().number(ModelRef("m"))


def test_two_rollbacks_in_a_row_go_back_two_versions() -> None:
    alias = on(1, 2, 3)
    alias = registry.rolled_back(alias, [1, 2, 3], HAND)
    assert alias.version == 2
    alias = registry.rolled_back(alias, [1, 2, 3], HAND)
    assert alias.version == 1
    assert [move.version for move in alias.history] == [1, 2, 3, 2, 1]
    with pytest.raises(ModelNotFound, match="nowhere else"):
        registry.rolled_back(alias, [1, 2, 3], HAND)


def test_after_a_rollback_the_next_move_lies_on_what_it_went_back_to() -> None:
    alias = registry.moved(registry.rolled_back(on(1, 2, 3), [1, 2, 3], HAND), 5, HAND)
    assert registry.rolled_back(alias, [1, 2, 3, 5], HAND).version == 2  # not 3, which was taken back


def test_a_rollback_goes_past_versions_that_are_gone() -> None:
    alias = registry.rolled_back(on(1, 2, 3), [1, 3], HAND)
    assert alias.version == 1
    with pytest.raises(ModelNotFound):
        registry.rolled_back(alias, [1, 2, 3], HAND)


def test_a_rollback_of_a_canary_leaves_the_version_alone() -> None:
    alias = registry.with_canary(on(1, 2), Canary(version=3, percent=10), HAND)
    assert registry.served(alias) == [2, 3]
    back = registry.rolled_back(alias, [1, 2, 3], HAND)
    assert (back.version, back.canary) == (2, None)
    assert back.history[-1].why == "canary 3 taken back: why not"
    assert registry.rolled_back(back, [1, 2, 3], HAND).version == 1


def test_a_canary_is_promoted_and_that_can_be_undone() -> None:
    alias = registry.promoted(registry.with_canary(on(1), Canary(version=3, percent=10), HAND), HAND)
    assert (alias.version, alias.canary) == (3, None)
    assert registry.rolled_back(alias, [1, 3], HAND).version == 1
    with pytest.raises(ModelInUse):
        registry.promoted(alias, HAND)
    with pytest.raises(ModelInUse):
        registry.with_canary(alias, Canary(version=3, percent=10), HAND)


def test_a_canary_that_is_another_by_now_is_not_taken_back() -> None:
    canary = Canary(version=3, percent=10, since_ms=7)
    alias = registry.with_canary(on(1), canary, HAND)
    for other in (Canary(version=2, percent=10, since_ms=7), Canary(version=3, percent=10, since_ms=8)):
        assert registry.without_canary(alias, HAND, only=other) is alias
    assert registry.without_canary(alias, HAND, only=canary).canary is None


def test_the_history_is_bounded_and_what_is_said_twice_is_no_move() -> None:
    alias = on(*[1, 2] * 60)
    assert len(alias.history) == 50
    assert registry.moved(alias, 2, HAND) is alias
    assert registry.read_alias(codec.encode(alias)) == alias
    for _ in range(20):  # each of them takes up a line, too
        alias = registry.rolled_back(alias, [1, 2], HAND)


def test_an_alias_that_was_set_by_hand_can_be_gone_back_to() -> None:
    by_hand = registry.read_alias(b'{"version":4}')
    assert registry.rolled_back(registry.moved(by_hand, 5, HAND), [4, 5], HAND).version == 4
    with_canary = registry.with_canary(by_hand, Canary(version=5, percent=1), HAND)
    assert registry.rolled_back(registry.promoted(with_canary, HAND), [4, 5], HAND).version == 4


@pytest.mark.parametrize(
    ("alias", "words"),
    [
        (Alias(2, None, [Move(1, 0, "")]), "last line"),
        (Alias(2, Canary(version=2, percent=1)), "another version"),
    ],
)
def test_an_alias_that_contradicts_itself_is_refused(alias: Alias, words: str) -> None:
    with pytest.raises(BadRecord, match=words):
        registry.read_alias(codec.encode(alias))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "nothing"),
        (b"{}", "missing required field `file`"),
        (codec.encode(version()).replace(b'"size":10', b'"size":10737418240'), "<= 536870912"),
        (codec.encode(version()).replace(b'"linear"', b'"forest"'), "invalid enum value 'forest'"),
        (codec.encode(version()).replace(b"aaaa", b"../a"), "matching regex"),
        (codec.encode(version(classes=[1, 1])), "each of them once"),
        (codec.encode(version(classes=["a"])), "at least two"),
        (codec.encode(version()).replace(b'[{"name":"x"}]', b"[]"), "at least one"),
        (codec.encode(version(note="x" * 600_000)), "at most"),
        (codec.encode(version()).replace(b"{", b'{"nice":1,', 1), "unknown field"),
    ],
)
def test_a_version_that_lies_is_refused(text: bytes, words: str) -> None:
    with pytest.raises(BadRecord, match=words):
        registry.read_version(text)


def test_labels_of_several_types_are_kept_as_they_are() -> None:
    given = version(classes=[False, True, 0.5, 2, "a"])
    assert registry.read_version(registry.checked_version(given)) == given
    with pytest.raises(BadRecord, match="finite"):
        registry.checked_version(version(metrics={"loss": float("nan")}))


def test_files_belong_on_three_nodes_that_everybody_agrees_on_and_served_ones_on_all() -> None:
    keepers = [Keeper(f"n{number}") for number in range(10)]
    models = [model(1, 2, 3, 4, 5, live=registry.with_canary(on(2), Canary(version=4, percent=1), HAND))]
    needed = registry.needs(models)
    where = {keeper.node: registry.wanted(needed, keeper.node, keepers) for keeper in keepers}
    for number in (1, 3, 5):
        file_id = f"{number:x}" * 64
        holders = {node for node, files in where.items() if file_id in files}
        assert holders == set(registry.homes(file_id, keepers))
        assert len(holders) == 3
    for number in (2, 4):
        assert all(f"{number:x}" * 64 in files for files in where.values())
    assert list(registry.wanted(needed, "stranger", keepers)) == ["2" * 64, "4" * 64]
    assert registry.homes("a" * 64, keepers[:2]) != ()
    assert registry.homes("a" * 64, []) == ()


def test_homes_are_the_first_of_the_order_and_a_loss_moves_one_copy() -> None:
    keepers = [Keeper(f"n{number}", zone=f"z{number % 5}") for number in range(10)]
    for digit in "0123456789abcdef":
        file_id = digit * 64
        homes = registry.homes(file_id, keepers)
        assert registry.order(file_id, keepers)[:3] == homes
        left = [keeper for keeper in keepers if keeper.node != homes[0]]
        assert set(homes[1:]) <= set(registry.homes(file_id, left))


def test_lost_nodes_take_no_files() -> None:
    ring = Ring(1, [Keeper("a"), Keeper("b")], {"b": "since then"})
    assert [keeper.node for keeper in registry.live(ring)] == ["a"]


def test_a_file_goes_only_when_nobody_has_needed_it_for_the_time_of_grace() -> None:
    needed = {"a": registry.Need(1, False)}

    def gone(**since: float) -> list[str]:
        here = {"a": 9e9, "b": 700.0, "c": 100.0}
        return registry.disposable(needed, here, since, 1000.0, grace_s=60, arrival_grace_s=600)

    assert gone() == []
    assert gone(a=0, b=950, c=0) == []
    assert gone(a=0, b=940, c=0) == ["b"]
