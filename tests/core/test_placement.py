"""Where parts belong: against a second implementation, and against the figures that theory and simulations give."""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from statistics import fmean

import pytest

from tests.core.placement_twice import fair_parts, placed
from zkd.core.placement import place, shares
from zkd.manifests import Keeper

Map = list[tuple[str, ...]]


def nodes(count: int, zones: int | None = None, first: int = 0) -> list[Keeper]:
    """Nodes of weight 1, their zones taking turns."""
    return [Keeper(f"n{n}", zone=f"z{n % zones}" if zones else None) for n in range(first, first + count)]


def held(there: Map) -> Counter[str]:
    return Counter(node for homes in there for node in homes)


def max_over_mean(there: Map, count: int) -> float:
    return max(held(there).values()) * count / sum(map(len, there))


def moved(before: Map, after: Map) -> float:
    """Which share of all copies has to be made anew."""
    new = sum(len(set(after[part]) - set(before[part])) for part in range(len(before)))
    return new / sum(map(len, after))


def jump(key: int, buckets: int) -> int:
    """Lamping and Veach, arXiv 1406.2294, as published."""
    b, j = -1, 0
    while j < buckets:
        b = j
        key = (key * 2862933555777941757 + 1) % 2**64
        j = int((b + 1) * (2**31 / ((key >> 33) + 1)))
    return b


# --- The measures themselves, on a scheme whose answers are published -----------------------------------


@pytest.mark.parametrize(
    ("key", "buckets"),
    [
        (1, [0] * 6 + [6] * 11 + [17, 17]),
        (0xDEADBEEF, [0, 1, 2, 3, 3] + [5] * 11 + [16] * 3),
        (0x0DDC0FFEEBADF00D, [0, 1] + [2] * 13 + [15] * 4),
        (0, [0] * 19),
    ],
)
def test_jump_hashing_gives_its_published_vectors(key: int, buckets: list[int]) -> None:
    assert [jump(key, n) for n in range(1, 20)] == buckets


def test_the_measures_find_jump_hashing_even_and_optimal() -> None:
    def by_jump(count: int) -> Map:
        return [(f"n{jump(key * 0x9E3779B97F4A7C15 % 2**64, count)}",) for key in range(65_536)]

    ten, eleven = by_jump(10), by_jump(11)
    assert max_over_mean(ten, 10) < 1.03
    assert moved(ten, eleven) * 11 == pytest.approx(1, abs=0.05)
    assert {after[0] for before, after in zip(ten, eleven, strict=True) if before != after} == {"n10"}


# --- Agreement ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_second_implementation_agrees_on_every_part(seed: int) -> None:
    rng = random.Random(seed)
    zones = [None, *(f"rack{n}" for n in range(rng.randrange(6)))]
    weights = rng.choice([[1.0], [2.5], [1.0, 2.0], [0.25, 1.0, 3.0, 40.0], [rng.uniform(0.01, 9) for _ in range(9)]])
    keepers = [
        Keeper(f"{rng.choice('abc')}{n}", weight=rng.choice(weights), zone=rng.choice(zones))
        for n in range(rng.randrange(1, 14))
    ]
    rng.shuffle(keepers)
    name, parts, replicas = f"d{seed}", 2 ** rng.randrange(8), rng.randrange(1, 6)
    cap = rng.choice([None, 0.0, 0.02, 0.1, 0.5])
    assert place(name, parts, replicas, keepers, cap=cap) == placed(name, parts, replicas, keepers, cap)
    assert shares(keepers, replicas) == pytest.approx([fair_parts(keepers, replicas)[k.node] for k in keepers])


def test_the_order_in_which_nodes_are_named_does_not_matter() -> None:
    keepers = nodes(9, zones=3)
    assert place("d", 64, 2, keepers) == place("d", 64, 2, keepers[::-1])


def test_equal_weights_give_one_map_whatever_they_are() -> None:
    heavy = [Keeper(keeper.node, weight=7.5) for keeper in nodes(9)]
    assert place("d", 64, 2, heavy) == place("d", 64, 2, nodes(9))


def test_datasets_are_spread_each_in_its_own_way() -> None:
    assert place("d", 64, 2, nodes(9)) != place("e", 64, 2, nodes(9))


# --- Copies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_copies_lie_on_different_nodes(replicas: int) -> None:
    for homes in place("d", 256, replicas, nodes(7)):
        assert len(homes) == len(set(homes)) == replicas


def test_where_nodes_are_few_all_have_everything() -> None:
    assert {frozenset(homes) for homes in place("d", 16, 5, nodes(3))} == {frozenset({"n0", "n1", "n2"})}
    assert place("d", 4, 2, nodes(1)) == [("n0",)] * 4
    assert place("d", 4, 2, []) == [()] * 4


def test_a_node_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        place("d", 4, 2, [Keeper("a"), Keeper("a", weight=2.0)])


def test_first_copies_are_spread_too() -> None:
    first = Counter(homes[0] for homes in place("d", 4096, 3, nodes(10)))
    assert max(first.values()) * 10 / 4096 < 1.2


# --- Movement: without a cap exactly what must move -----------------------------------------------------


@pytest.mark.parametrize("zones", [None, 3, 5])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_uncapped_only_what_the_joiner_wins_moves(replicas: int, zones: int | None) -> None:
    keepers = nodes(21, zones)
    before, after = (place("d", 1024, replicas, some, cap=None) for some in (keepers[:-1], keepers))
    for old, new in zip(before, after, strict=True):
        assert set(new) - set(old) == set(new) & {"n20"}
    assert moved(before, after) * 21 == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("zones", [None, 3, 5])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_uncapped_only_what_the_leaver_held_moves(replicas: int, zones: int | None) -> None:
    keepers = nodes(21, zones)
    before, after = (place("d", 1024, replicas, some, cap=None) for some in (keepers, keepers[1:]))
    for old, new in zip(before, after, strict=True):
        assert set(old) - set(new) == set(old) & {"n0"}
        if "n0" not in old:
            assert old == new
    assert moved(before, after) == held(before)["n0"] / (1024 * replicas)


# Means over datasets. Movement is told as a multiple of the least, 1/(n + 1) and 1/n of all copies.
# A simulation of n = 10: max/mean 1.09, join 0.96, leave 1.02; n = 100: 1.11, 1.14, 1.08; n = 1000 (one map): 1.12,
# 1.55, 1.36. The last takes 20 s and is left out here.
@pytest.mark.parametrize(("count", "parts", "worst"), [(10, 1024, 1.25), (100, 4096, 1.25)])
def test_the_cap_holds_and_moves_little_more_than_it_must(count: int, parts: int, worst: float) -> None:
    joins, leaves = [], []
    for seed in range(5):
        before = place(f"d{seed}", parts, 3, nodes(count))
        joins.append(moved(before, place(f"d{seed}", parts, 3, nodes(count + 1))) * (count + 1))
        leaves.append(moved(before, place(f"d{seed}", parts, 3, nodes(count - 1, first=1))) * count)
        assert max(held(before).values()) <= math.ceil(1.1 * parts * 3 / count)
        assert min(held(before).values()) > 0
    assert 0.8 < fmean(joins) < worst
    assert 0.8 < fmean(leaves) < worst


@pytest.mark.parametrize(("cap", "evenness"), [(None, (1.12, 1.35)), (0.25, (1.1, 1.26)), (0.02, (1.0, 1.035))])
def test_the_cap_is_what_makes_it_even(cap: float | None, evenness: tuple[float, float]) -> None:
    low, high = evenness
    assert low < max_over_mean(place("d", 4096, 3, nodes(100), cap=cap), 100) < high


def test_spread_without_a_cap_is_what_chance_gives() -> None:
    """The standard deviation of the load is sqrt((n - R) / (S R)) of its mean."""
    loads = [count * 100 / (4096 * 3) for count in held(place("d", 4096, 3, nodes(100), cap=None)).values()]
    assert fmean((load - 1) ** 2 for load in loads) ** 0.5 == pytest.approx((97 / (4096 * 3)) ** 0.5, rel=0.25)


# --- Weights --------------------------------------------------------------------------------------------


def weighted(*weights: float) -> list[Keeper]:
    return [Keeper(f"n{n}", weight=weight) for n, weight in enumerate(weights)]


def test_one_copy_is_shared_out_by_weight() -> None:
    parts = 65_536
    before = place("d", parts, 1, weighted(1, 1, 2, 4), cap=None)
    load = held(before)
    for n, share in enumerate((0.125, 0.125, 0.25, 0.5)):  # one in 500 is five standard deviations
        assert load[f"n{n}"] / parts == pytest.approx(share, abs=0.008)
    after = place("d", parts, 1, weighted(1, 1, 2, 5), cap=None)
    assert moved(before, after) == pytest.approx(5 / 9 - 4 / 8, abs=0.005)
    assert {new for old, new in zip(before, after, strict=True) if old != new} == {("n3",)}


@pytest.mark.parametrize(
    ("replicas", "simulated"), [(2, (0.156, 0.155, 0.285, 0.405)), (3, (0.200, 0.199, 0.282, 0.319))]
)
def test_several_uncapped_copies_are_less_uneven_than_weights(replicas: int, simulated: tuple[float, ...]) -> None:
    load = held(place("d", 16_384, replicas, weighted(1, 1, 2, 4), cap=None))
    for n, share in enumerate(simulated):
        assert load[f"n{n}"] / (16_384 * replicas) == pytest.approx(share, abs=0.008)


def test_the_cap_brings_several_copies_nearer_to_the_weights() -> None:
    keepers = weighted(*[1.0] * 10, *[4.0] * 5)
    fair = shares(keepers, 3)
    assert fair == pytest.approx([0.1] * 10 + [0.4] * 5)
    load = held(place("d", 4096, 3, keepers))
    for keeper, share in zip(keepers, fair, strict=True):
        assert load[keeper.node] <= math.ceil(1.1 * share * 4096)


def test_no_node_is_to_hold_more_than_one_copy() -> None:
    assert shares(weighted(1, 1, 98), 2) == pytest.approx([0.5, 0.5, 1.0])
    assert shares(weighted(1, 2, 3), 4) == [1.0, 1.0, 1.0]


# --- Zones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "zones"), [(9, 3), (12, 3), (30, 5), (99, 3), (7, 3)])
def test_copies_lie_in_different_zones(count: int, zones: int) -> None:
    for replicas in (2, 3):
        there = place("d", 2048, replicas, nodes(count, zones))
        assert all(len({int(node[1:]) % zones for node in homes}) == replicas for homes in there)
        fair = shares(nodes(count, zones), replicas)
        load = held(there)
        assert all(load[f"n{n}"] <= math.ceil(1.1 * 2048 * fair[n] - 1e-9) for n in range(count))


def test_zones_move_little_more_than_must_move() -> None:
    for count, zones in ((9, 3), (12, 3), (30, 5), (99, 3)):
        before = place("d", 2048, 3, nodes(count, zones))
        join = moved(before, place("d", 2048, 3, nodes(count + 1, zones))) * (count + 1)
        leave = moved(before, place("d", 2048, 3, nodes(count, zones)[1:])) * count
        assert 0.8 < join < 1.4, (count, join)
        assert 0.8 < leave < 1.5, (count, leave)


def test_where_zones_are_few_each_has_a_copy() -> None:
    there = place("d", 512, 3, nodes(8, zones=2))
    assert all({int(node[1:]) % 2 for node in homes} == {0, 1} and len(set(homes)) == 3 for homes in there)


def test_a_zone_comes_before_the_cap() -> None:
    """One node alone in its zone holds a copy of everything, where there are as many zones as copies."""
    keepers = [Keeper("alone", zone="a"), *(Keeper(f"b{n}", zone="b") for n in range(9))]
    assert all("alone" in homes for homes in place("d", 256, 2, keepers))


def test_one_node_that_names_its_zone_is_no_magnet() -> None:
    some = [Keeper("n0", zone="a"), *nodes(9, first=1)]
    assert place("d", 256, 2, some) == place("d", 256, 2, nodes(10))


def test_a_map_of_4096_parts_and_100_nodes_does_not_take_a_second() -> None:
    """About 0.1 s; the bound is for machines under load."""
    began = time.process_time()
    place("d", 4096, 3, [Keeper(f"n{n}", weight=1 + n % 3) for n in range(100)])
    assert time.process_time() - began < 0.5
