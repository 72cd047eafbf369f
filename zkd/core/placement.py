"""Where rows and parts belong: key -> 64-bit hash -> part -> nodes. Pure: whoever has the ring gets the same answer.

    hash_key("k")  ->  part_of(hash, parts)  ->  place(name, parts, replicas, keepers)[part]

Rows never move between parts; parts move between nodes as the ring changes. Weighted rendezvous hashing (Thaler and
Ravishankar 1998; weights by Schindelhauer and Schomaker 2005) lets every node bid for every part: without a cap
exactly those parts move that a node wins as it joins or held as it leaves. A cap on what a node holds, in the manner
of bounded loads (Mirrokni et al., arXiv 1608.01350), costs a little more movement for an even load.

This module is frozen in the manifests' ``hash`` as far as keys go, and in all nodes' agreement for the rest: a change
here moves data. `zkd.tables.hashing` does the same for whole columns.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from zkd.manifests import Keeper
from zkd.paths import NodeId

CAP = 0.10  # max/mean <= 1.12 for at most 1.25 times the least movement at 100 nodes; 0.05 moves 1.33 times as much
MASK = (1 << 64) - 1
# A node's bid for a part is made of the upper 52 bits of a hash: with a half added they are exact in a double, and
# neither 0 nor 1. Doubles all the same differ in the last place where math.log does, from one C library to
# another: that would show in one of 10^10 maps.
UNIT = 2.0**-52
SLACK = 1e-9  # a limit that should be whole must not be one more by rounding


def splitmix64(x: int) -> int:
    """A 64-bit number well mixed: Steele, Lea and Flood 2014, with the constants of Vigna's splitmix64.c."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_key(key: int | str | bytes | float) -> int:
    """The 64-bit hash of a row's key.

    A whole number counts as its 64 bits in two's complement (so -1 and 2^64 - 1 are one), a float as its IEEE 754
    bits with both zeros made one, text as its UTF-8 bytes. 1, 1.0 and "1" are different keys: a column has one type.
    Raises TypeError for other types, bool among them, and ValueError for NaN and for numbers of more than 64 bits.
    """
    match key:
        case bool():
            raise TypeError("key: expected an int, a str, bytes or a float, got a bool")
        case int():
            if not -(1 << 63) <= key <= MASK:
                raise ValueError(f"key: expected a whole number of at most 64 bits, got {key}")
            return splitmix64(key & MASK)
        case str():
            return xxh3_64_intdigest(key.encode())
        case bytes():
            return xxh3_64_intdigest(key)
        case float():
            if math.isnan(key):
                raise ValueError("key: NaN equals nothing, so nothing could be found by it")
            return splitmix64(int.from_bytes(struct.pack("<d", key + 0.0), "little"))  # -0.0 + 0.0 is 0.0
        case _:
            raise TypeError(f"key: expected an int, a str, bytes or a float, got {type(key).__name__}")


def part_of(hashed: int, parts: int) -> int:
    """The part, of so many (a power of two), that a key with this hash belongs to: the upper bits."""
    if parts < 1 or parts & (parts - 1):
        raise ValueError(f"parts: expected a power of two, got {parts}")
    return hashed >> (65 - parts.bit_length())


def place(
    name: str, parts: int, replicas: int, keepers: Sequence[Keeper], *, cap: float | None = CAP
) -> list[tuple[NodeId, ...]]:
    """The nodes that keep each part of a dataset, the primary first; all nodes, where there are fewer than `replicas`.

    Every node bids ``-weight / ln u`` for each part, u in (0, 1) being the hash of ``name/part`` seeded by the hash of
    the node's name. Parts take turns in their order, and each of their replicas goes to the node not yet taken that
    comes first by: a zone without a replica of this part; fewer parts than its limit; the highest bid; its name.
    The limit is its fair share (`shares`) and `cap` more; None: no limit. A node without a zone is one by itself.

    Takes about 0.2 us a part and node, so larger maps belong into a thread.
    """
    keepers = sorted(keepers, key=lambda keeper: keeper.node)
    nodes = [keeper.node for keeper in keepers]
    if len(set(nodes)) < len(nodes):
        raise ValueError("keepers: a node is there twice")
    weights = [keeper.weight for keeper in keepers]
    zones = _zones(keepers)
    wanted = min(replicas, len(nodes))
    room = [parts] * len(nodes)
    if cap is not None:
        room = [math.ceil((1 + cap) * parts * share - SLACK) for share in shares(keepers, replicas)]
    seeds = [hash_key(node) for node in nodes]
    is_even = len(set(weights)) <= 1  # then bids are in the order of u: no need to compute them
    everyone = range(len(nodes))
    placed = []
    for part in range(parts):
        label = f"{name}/{part}".encode()
        units = [xxh3_64_intdigest(label, seed) >> 12 for seed in seeds]
        bids: Sequence[float] = units
        if not is_even:
            bids = [-weight / math.log((unit + 0.5) * UNIT) for weight, unit in zip(weights, units, strict=True)]
        order = sorted(everyone, key=bids.__getitem__, reverse=True)  # stable: equal bids stay in order of names
        homes = _homes(order, wanted, zones, room)
        for node in homes:
            room[node] -= 1
        placed.append(tuple(nodes[node] for node in homes))
    return placed


def _homes(order: list[int], wanted: int, zones: list[int], room: list[int]) -> list[int]:
    """The nodes that a part goes to, from those in the order of their bids."""
    homes: list[int] = []
    used = set()
    for node in order:  # nearly always this is all: so many nodes with room in as many zones
        if room[node] > 0 and zones[node] not in used:
            homes.append(node)
            used.add(zones[node])
            if len(homes) == wanted:
                return homes
    del homes[:]
    used.clear()
    while len(homes) < wanted:
        left = [node for node in order if node not in homes]
        fresh = [node for node in left if zones[node] not in used] or left
        best = next((node for node in fresh if room[node] > 0), fresh[0])
        homes.append(best)
        used.add(zones[best])
    return homes


def shares(keepers: Sequence[Keeper], replicas: int) -> list[float]:
    """How much of a dataset each node should hold, of 1: by weight, but no more than one copy, and no node or zone
    more than one replica of a part while there are zones enough."""
    zones = _zones(keepers)
    members = defaultdict(list)
    for keeper, zone in zip(keepers, zones, strict=True):
        members[zone].append(keeper.weight)
    heavy = {zone: math.fsum(weights) for zone, weights in members.items()}
    if len(heavy) >= replicas:
        by_zone = dict(zip(heavy, _filled(list(heavy.values()), replicas), strict=True))
        return [by_zone[zone] * keeper.weight / heavy[zone] for keeper, zone in zip(keepers, zones, strict=True)]
    # Each zone has one replica of every part at least; the others are spread over all nodes.
    spread = _filled([keeper.weight for keeper in keepers], replicas)
    return [max(share, keeper.weight / heavy[zone]) for share, keeper, zone in zip(spread, keepers, zones, strict=True)]


def _filled(weights: list[float], total: int) -> list[float]:
    """``min(1, x * weight)`` for each weight, with the x for which the sum is `total`, or 1 for each."""
    if total >= len(weights):
        return [1.0] * len(weights)
    descending = sorted(weights, reverse=True)
    for full, weight in enumerate(descending):
        factor = (total - full) / math.fsum(descending[full:])
        if factor * weight <= 1:
            return [min(1.0, factor * each) for each in weights]
    raise AssertionError(f"{total} of {len(weights)} cannot all be full")


def _zones(keepers: Sequence[Keeper]) -> list[int]:
    """The number of each one's zone; who has none is a zone by itself."""
    numbers: dict[tuple[bool, str], int] = {}
    return [
        numbers.setdefault((True, keeper.node) if keeper.zone is None else (False, keeper.zone), len(numbers))
        for keeper in keepers
    ]
