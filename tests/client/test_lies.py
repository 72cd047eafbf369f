"""Manifests whose sums are right, and which say what is not so: damage in words, and no memory is taken for it."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from tests.client.keepers import Keepers, keepers
from zkd.client import Client
from zkd.codec import encode
from zkd.core.datasets import chunk_digest
from zkd.errors import DataDamaged, DataUnavailable
from zkd.manifests import Column, Head, Manifest, SegmentRef
from zkd.zk import ensure_path
from zkd.zk.server import EmbeddedServer

Refs = list[list[SegmentRef]]
Lie = Callable[[Manifest, Refs], tuple[Manifest, Refs]]

X, T, Y = Column("x", "<f8", [2]), Column("t", "<U3"), Column("y", "|i1")
ROW_BYTES = 8 + 16 + 12 + 1


@pytest.fixture(params=["far", "near"])
async def nodes(embedded: EmbeddedServer, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Keepers]:
    async with (
        Client(embedded.connect_string) as client,
        keepers(embedded.connect_string, tmp_path, client) as nodes,
    ):
        nodes.is_local = request.param == "near"
        await nodes.add("n1", "n2")
        yield nodes


def columns(*them: Column) -> Lie:
    return lambda manifest, refs: (replace(manifest, columns=list(them)), refs)


def rows(more: int, part: int = 0) -> Lie:
    """So many rows more in one segment, and the bytes that they would take."""

    def lie(manifest: Manifest, refs: Refs) -> tuple[Manifest, Refs]:
        told = replace(refs[part][0], rows=refs[part][0].rows + more, size=refs[part][0].size + more * ROW_BYTES)
        return manifest, [[told] if number == part else each for number, each in enumerate(refs)]

    return lie


def twice(manifest: Manifest, refs: Refs) -> tuple[Manifest, Refs]:
    return manifest, [refs[0], refs[0]]


LIES: dict[str, Lie] = {
    "one row more": rows(1),
    "a million rows more": rows(10**6),
    "more rows than there is memory for": rows(10**15),
    "more bytes than there are addresses": rows(2**60),
    "rows without their bytes": lambda manifest, refs: (
        manifest,
        [[replace(refs[0][0], rows=10**12)], refs[1]],
    ),
    "another kind of number": columns(Column("x", "<i8", [2]), T, Y),
    "another shape of the same size": columns(Column("x", "<f4", [4]), T, Y),
    "rows without a shape": columns(Column("x", "|S16"), T, Y),
    "another order": columns(T, X, Y),
    "one column more": columns(X, T, Y, Column("z", "<f4", [0])),
    "another name": columns(X, T, Column("z", "|i1")),
    "narrower text": columns(X, Column("t", "<U1"), Y),
    "text as wide as memory": columns(X, Column("t", "<U99999999"), Y),
    "bytes as wide as memory": columns(X, Column("t", "|S999999999", [1000]), Y),
    "a shape beyond numpy's": columns(Column("x", "<f8", [2**62, 2**62, 0]), T, Y),
    "a shape of much": columns(Column("x", "<f8", [2**40]), T, Y),
    "a shape of too many dimensions": columns(Column("x", "<f8", [1] * 70 + [2]), T, Y),
    "objects": columns(Column("x", "|O", [2]), T, Y),
    "the same segment in two parts": twice,
}


async def tell(nodes: Keepers, lie: Lie) -> None:
    """A dataset of 2 parts of 50 rows, and another one that says of its segments what is not so."""
    dataset = await nodes.client.datasets.put(
        "true",
        {"x": np.ones((100, 2)), "t": np.array(["abc"] * 100), "y": np.arange(100, dtype="i1")},
        parts=2,
        replicas=2,
    )
    manifest, refs = lie(replace(dataset.manifest, name="lie"), [list(part) for part in dataset.segments])
    chunk = encode(refs)
    told = [ref for part in refs for ref in part]
    manifest = replace(
        manifest,
        chunks=[chunk_digest(chunk)],
        rows=sum(ref.rows for ref in told),
        size=sum(ref.size for ref in told),
    )
    for path, text in (
        (nodes.paths.chunk("lie", manifest.chunks[0]), chunk),
        (nodes.paths.version("lie", 1), encode(manifest)),
        (nodes.paths.dataset("lie"), encode(Head(1))),
    ):
        await ensure_path(nodes.session, path)
        await nodes.session.set(path, text, -1)


@pytest.mark.parametrize("what", LIES)
async def test_a_manifest_that_lies_is_damage_and_costs_no_memory(nodes: Keepers, what: str) -> None:
    await tell(nodes, LIES[what])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataDamaged):
        await (await nodes.client.datasets.open("lie")).read()
    if what != "the same segment in two parts":  # which are right, each for itself
        with pytest.raises(DataDamaged):
            await (await nodes.client.datasets.open("lie")).part(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "in KB"
    assert (await (await nodes.client.datasets.open("true")).read())["y"].tolist() == list(range(100))


async def test_a_table_that_is_too_large_says_so(nodes: Keepers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    dataset = await nodes.client.datasets.put("a", {"x": np.arange(100)}, parts=2)
    monkeypatch.setattr("zkd.tables.assemble.Assembly.__init__", full)
    with pytest.raises(DataUnavailable, match="there is no memory for 800 bytes; read"):
        await dataset.read()
