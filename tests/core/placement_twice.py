"""Placement a second time, in another shape and with other tools: numpy's integers and logarithm, a search for the
fair shares instead of a sum, one comparison of tuples for each replica. It shares no line with `zkd.core.placement`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence

import numpy as np
import xxhash

from zkd.manifests import Keeper


def mixed(number: int) -> int:
    with np.errstate(over="ignore"):
        z = np.uint64(number % 2**64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        return int(z ^ (z >> np.uint64(31)))


def key_hash(key: int | str | bytes | float) -> int:
    if isinstance(key, float):
        (bits,) = struct.unpack(">Q", struct.pack(">d", key if key != 0 else 0.0))
        return mixed(bits)
    if isinstance(key, int):
        return mixed(key)
    return int.from_bytes(xxhash.xxh3_64(bytes(key, "utf-8") if isinstance(key, str) else key).digest(), "big")


def part_number(hashed: int, parts: int) -> int:
    return hashed * parts // 2**64


def fair(weights: dict[str, float], total: float) -> dict[str, float]:
    """By bisection: the factor for which the shares, none over 1, add up to the total."""
    if total >= len(weights):
        return dict.fromkeys(weights, 1.0)
    low, high = 0.0, 1.0 / min(weights.values())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(min(1.0, middle * w) for w in weights.values()) < total else (low, middle)
    return {name: min(1.0, high * weight) for name, weight in weights.items()}


def fair_parts(keepers: Sequence[Keeper], replicas: int) -> dict[str, float]:
    zone = {k.node: ("zone", k.zone) if k.zone is not None else ("node", k.node) for k in keepers}
    of_zone: Counter[tuple[str, str]] = Counter()
    for k in keepers:
        of_zone[zone[k.node]] += k.weight  # type: ignore[assignment]  # floats add up as well
    if len(of_zone) >= replicas:
        zones = fair({"/".join(z): w for z, w in of_zone.items()}, replicas)
        return {k.node: zones["/".join(zone[k.node])] * k.weight / of_zone[zone[k.node]] for k in keepers}
    nodes = fair({k.node: k.weight for k in keepers}, replicas)
    return {k.node: max(nodes[k.node], k.weight / of_zone[zone[k.node]]) for k in keepers}


def placed(name: str, parts: int, replicas: int, keepers: Sequence[Keeper], cap: float | None) -> list[tuple[str, ...]]:
    zone = {k.node: k.zone if k.zone is not None else ("alone", k.node) for k in keepers}
    share = fair_parts(keepers, replicas)
    limit = {node: parts if cap is None else int(np.ceil(parts * share[node] * (1 + cap) - 1e-9)) for node in share}
    held: Counter[str] = Counter()
    rows = []
    for part in range(parts):
        bid = {}
        for k in keepers:
            number = xxhash.xxh3_64(b"%b/%d" % (name.encode(), part), seed=key_hash(k.node)).intdigest()
            bid[k.node] = float(k.weight / -np.log(((number // 4096) + 0.5) / 2**52))
        row: list[str] = []
        while len(row) < min(replicas, len(keepers)):
            used = {zone[node] for node in row}
            row.append(
                min(
                    (node for node in bid if node not in row),
                    key=lambda node: (zone[node] in used, held[node] >= limit[node], -bid[node], node),
                )
            )
            held[row[-1]] += 1
        rows.append(tuple(row))
    return rows
