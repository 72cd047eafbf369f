"""Promises of zkd.overview.copies: what the bits say is what counting part by part says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zkd.manifests import Column, Manifest
from zkd.overview.copies import CELLS_MAX, at_least, dataset_seen, drawn

SETS = st.lists(st.integers(0, 2**16 - 1), max_size=6)


def manifest(parts: int, replicas: int, store: str | None = None) -> Manifest:
    columns = [Column("x", "<f8")]
    return Manifest(
        name="d", version=1, parts=parts, replicas=replicas, columns=columns, rows=9, size=72, chunks=[], store=store
    )


@given(SETS, st.integers(0, 2**16 - 1), st.integers(1, 4))
def test_health_is_what_counting_each_part_says(held: list[int], filled: int, replicas: int) -> None:
    counts = [sum(bits >> part & 1 for bits in held) for part in range(16) if filled >> part & 1]
    seen = dataset_seen(manifest(16, replicas), filled, held)
    assert seen.full == sum(count >= replicas for count in counts)
    assert seen.lost == sum(count == 0 for count in counts)
    assert seen.degraded == len(counts) - seen.full - seen.lost
    assert seen.health == ("lost" if seen.lost else "degraded" if seen.degraded else "full")
    there = iter(counts)
    expected = [str(min(next(there), replicas)) if filled >> part & 1 else "." for part in range(16)]
    assert seen.map == "".join(expected)


def test_a_cell_of_many_parts_shows_the_worst_of_them() -> None:
    parts, filled = 16_384, (1 << 16_384) - 1
    one_short = filled & ~(1 << 100)
    cells = drawn(parts, filled, at_least([filled, one_short], 2))
    assert len(cells) == CELLS_MAX
    assert (cells[100 * CELLS_MAX // parts], cells.count("1"), cells.count("2")) == ("1", 1, CELLS_MAX - 1)


def test_what_lies_in_a_store_of_its_own_has_no_copies_to_lose() -> None:
    seen = dataset_seen(manifest(4, 1, "s3://bucket/d"), 0b1111, [])
    assert (seen.health, seen.map, seen.store) == ("full", "1111", "s3://bucket/d")
