"""The picture of the datasets follows the tree, and believes only what it can check."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.node.datasets import manifest, publish, rank, remove, segment
from tests.node.submitter import until
from zkd import log as zkd_log
from zkd.manifests import Keeper, Ring
from zkd.node.view import View
from zkd.paths import Paths
from zkd.zk import WORLD_ALL, Acl, Perms, Session, ensure_path
from zkd.zk.server import EmbeddedServer


class Scene:
    def __init__(self, session: Session, root: str, view: View) -> None:
        self.session, self.paths, self.view, self.atlas = session, Paths(root), view, view.atlas

    async def sees(self, condition: Callable[[], object], what: str) -> None:
        async def is_so() -> bool:
            return bool(condition())

        await until(is_so, 8.0, what)

    async def publish(self, text: dict[str, Any], chunks: dict[str, bytes]) -> None:
        await publish(self.session, self.paths.root, text, chunks)

    async def ring(self, *nodes: str, epoch: int = 1) -> None:
        ring = {"epoch": epoch, "keepers": [{"node": node} for node in nodes]}
        if await self.session.exists(self.paths.ring) is None:
            await self.session.create(self.paths.ring, json.dumps(ring).encode())
        else:
            await self.session.set(self.paths.ring, json.dumps(ring).encode(), -1)


@asynccontextmanager
async def looking(hosts: str, root: str) -> AsyncIterator[Scene]:
    """A view with a session of its own, and another session to change the tree with."""
    async with Session(hosts, timeout_s=5.0) as session, Session(hosts, timeout_s=20.0) as writer:
        await session.connected(20.0)
        await writer.connected(20.0)
        for path in Paths(root).skeleton():
            await ensure_path(writer, path)
        view = View(session, Paths(root), rank, zkd_log.get())
        async with asyncio.TaskGroup() as group:
            following = group.create_task(view.run())
            scene = Scene(writer, root, view)
            await scene.sees(lambda: view.is_complete, "the picture is complete")
            yield scene
            following.cancel()


@pytest.fixture
async def scene(zookeeper: str, zk_root: str) -> AsyncIterator[Scene]:
    async with looking(zookeeper, zk_root) as scene:
        yield scene


async def test_versions_parts_and_homes_are_known_as_they_come_and_go(scene: Scene) -> None:
    atlas = scene.atlas
    first = [[segment(part)] for part in range(4)]
    await scene.publish(*manifest("digits", 1, first))
    await scene.sees(lambda: atlas.manifest("digits"), "version 1")
    assert atlas.segments("digits", 1, 2) == (tuple(segment(2)) and atlas.parts("digits")[2])  # type: ignore[index]
    assert [ref.id for ref in atlas.segments("digits", 1, 2) or ()] == [segment(2)[0]]
    assert atlas.homes("digits", 1, 0) == ()  # no ring yet
    await scene.ring("a", "b", "c")
    await scene.sees(lambda: atlas.homes("digits", 1, 0) == ("a", "b"), "homes by the ring")
    assert [atlas.homes("digits", 1, part) for part in range(4)] == rank("digits", 4, 2, [Keeper(n) for n in "abc"])
    await scene.ring("a", "c", epoch=2)
    await scene.sees(
        lambda: atlas.homes("digits", 1, 0) == ("a", "c") and scene.view.is_settled, "the new ring's homes"
    )
    await scene.publish(*manifest("digits", 2, [[*part, segment(9)] for part in first], parent=1))
    await scene.sees(lambda: (atlas.manifest("digits") or atlas.manifest("digits", 1)).version == 2, "version 2")  # type: ignore[union-attr]
    assert len(atlas.segments("digits", 1, 0) or ()) == 1
    assert len(atlas.segments("digits", 2, 0) or ()) == 2
    await scene.session.delete(scene.paths.version("digits", 1), -1)
    await scene.sees(lambda: atlas.manifest("digits", 1) is None, "version 1 is gone")
    await remove(scene.session, scene.paths.dataset("digits"))
    await scene.sees(lambda: "digits" not in atlas.datasets, "the dataset is gone")
    assert atlas.homes("digits", 2, 0) == ()
    assert atlas.layouts() == set()


async def test_a_dataset_of_the_same_name_is_another_one(scene: Scene) -> None:
    await scene.publish(*manifest("d", 1, [[segment(1)]]))
    await scene.sees(lambda: scene.atlas.parts("d"), "the first")
    await remove(scene.session, scene.paths.dataset("d"))
    await scene.publish(*manifest("d", 1, [[segment(2)]]))
    await scene.sees(
        lambda: [ref.id for ref in scene.atlas.segments("d", 1, 0) or ()] == [segment(2)[0]], "what is there now"
    )


LIES: dict[str, dict[str, Any]] = {
    "another name": {"name": "other"},
    "another version": {"version": 7},
    "parts that are no power of two": {"parts": 3},
    "too few chunks": {"chunks": []},
    "a chunk that is not there": {"chunks": ["0" * 64]},
    "a digest that leads elsewhere": {"chunks": ["../../../control/token"]},
    "more rows than its segments": {"rows": 1 << 40},
    "fewer bytes than its segments": {"size": 1},
    "columns of objects": {"columns": [{"name": "x", "dtype": "|O"}]},
    "a column twice": {"columns": [{"name": "x", "dtype": "<f8"}] * 2},
    "a key that is no column": {"key": "id"},
    "another hash": {"hash": "zkd-9"},
    "a parent that comes later": {"parent": 1},
    "too many replicas": {"replicas": 1000},
    "no number of parts": {"parts": "four"},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_manifest_that_lies_is_refused_and_harms_nothing(scene: Scene, lie: str) -> None:
    text, chunks = manifest("liar", 1, [[segment(1)], [segment(2)]])
    await scene.publish(*manifest("honest", 1, [[segment(3)]]))
    path = scene.paths.dataset("liar")
    await scene.publish({**text, "rows": -1}, chunks)  # makes the directories; no manifest either
    await scene.session.delete(f"{path}/versions/1", -1)
    await scene.session.create(f"{path}/versions/1", json.dumps(text | LIES[lie]).encode())
    await scene.sees(lambda: scene.atlas.refusal("liar"), "the refusal")
    assert scene.atlas.manifest("liar") is None
    assert scene.atlas.parts("honest") is not None
    await scene.session.delete(f"{path}/versions/1", -1)
    await scene.session.create(f"{path}/versions/1", json.dumps(text).encode())
    await scene.sees(lambda: scene.atlas.manifest("liar"), "the truth")
    assert scene.atlas.refusal("liar") is None


async def test_a_chunk_that_is_not_what_its_digest_says_is_refused_until_it_is(scene: Scene) -> None:
    text, chunks = manifest("d", 1, [[segment(1)]])
    (digest, truth), *_ = chunks.items()
    for lie in (b"", b"[[]]", b"\xff\xfe", b"[" * 100_000, truth + b" "):
        await scene.publish(text, {digest: lie})
        await scene.sees(lambda: "chunks/" in (scene.atlas.refusal("d") or ""), f"refusal of {lie[:20]!r}")
        await remove(scene.session, scene.paths.dataset("d"))
        await scene.sees(lambda: "d" not in scene.atlas.datasets, "gone")
    await scene.publish(text, {digest: b"[]"})
    await scene.session.set(scene.paths.chunk("d", digest), truth, -1)
    await scene.sees(lambda: scene.atlas.parts("d"), "the chunk that was mended")


@pytest.mark.parametrize("text", [b"", b"{", b'{"current": 0}', b'{"current": "x"}', b"[]", b'{"current": 5}'])
async def test_a_head_that_is_none_shows_no_version(scene: Scene, text: bytes) -> None:
    await scene.publish(*manifest("d", 1, [[segment(1)]]))
    await scene.sees(lambda: scene.atlas.manifest("d"), "the version")
    await scene.session.set(scene.paths.dataset("d"), text, -1)
    await scene.sees(lambda: scene.atlas.manifest("d") is None, "no version for readers")
    assert scene.atlas.manifest("d", 1) is not None


async def test_writers_and_holdings_are_followed_and_hostile_ones_are_passed_over(scene: Scene) -> None:
    atlas, session = scene.atlas, scene.session
    await scene.publish(*manifest("d", 1, [[segment(n)] for n in range(4)]))
    await session.create(f"{scene.paths.writers('d')}/w1", ephemeral=True)
    await scene.sees(lambda: "d" in atlas.datasets and atlas.datasets["d"].writers == 1, "a writer")
    await session.delete(f"{scene.paths.writers('d')}/w1", -1)
    await scene.sees(lambda: atlas.datasets["d"].writers == 0, "no writer")
    await ensure_path(session, f"{scene.paths.holdings}/d")
    await session.create(scene.paths.holding("d", "a"), b'{"incarnation": "i", "versions": {"1": "5"}}')
    for n, lie in enumerate((b"", b'{"incarnation": "i", "versions": {"1": "-5"}}', b'{"versions": {"1": "zz"}}')):
        await session.create(scene.paths.holding("d", f"h{n}"), lie)
    await scene.sees(lambda: atlas.holders("d", 1, 2) == ("a",), "a holder")
    assert [atlas.holders("d", 1, part) for part in range(4)] == [("a",), (), ("a",), ()]
    await session.delete(scene.paths.holding("d", "a"), -1)
    await scene.sees(lambda: atlas.holders("d", 1, 2) == (), "no holder")


async def test_who_looks_sees_what_is_there_now(scene: Scene) -> None:
    await scene.publish(*manifest("d", 1, [[segment(1)]]))
    await scene.view.look("d")
    assert scene.atlas.manifest("d") is not None
    await scene.view.look("absent")
    await scene.view.look("../control")
    assert scene.atlas.datasets.keys() == {"d"}


async def test_names_that_are_none_are_passed_over(scene: Scene) -> None:
    for name in (":x", "a" * 129, "ü"):
        await ensure_path(scene.session, f"{scene.paths.datasets}/{name}/versions")
    await scene.publish(*manifest("d", 1, [[segment(1)]]))
    for odd in ("0", "01", "-1", "x", "9" * 30):
        await scene.session.create(f"{scene.paths.versions('d')}/{odd}", b"{}")
    await scene.publish(*manifest("d", 2, [[segment(1)]]))
    await scene.sees(lambda: scene.atlas.manifest("d", 2), "version 2")
    assert scene.atlas.datasets.keys() == {"d"}
    assert scene.atlas.datasets["d"].editions.keys() == {1, 2}


async def test_what_changed_while_there_was_no_connection_is_read_on_return(embedded: EmbeddedServer) -> None:
    async with looking(embedded.connect_string, "/zkd") as scene:
        for name in ("kept", "gone", "anew"):
            await scene.publish(*manifest(name, 1, [[segment(1)]]))
        await scene.sees(lambda: len(scene.atlas.datasets) == 3, "all three")
        embedded.expire(scene.view._session.session_id)
        await remove(scene.session, scene.paths.dataset("gone"))
        await remove(scene.session, scene.paths.dataset("anew"))
        await scene.publish(*manifest("anew", 1, [[segment(2)]]))
        await scene.publish(*manifest("new", 1, [[segment(3)]]))
        await scene.sees(lambda: scene.view.is_complete and "new" in scene.atlas.datasets, "the picture is complete")
        assert scene.atlas.datasets.keys() == {"kept", "anew", "new"}
        assert [ref.id for ref in scene.atlas.segments("anew", 1, 0) or ()] == [segment(2)[0]]


async def test_large_maps_are_computed_beside_the_loop(scene: Scene) -> None:
    parts = 1024
    await scene.ring(*(f"n{number}" for number in range(10)))
    await scene.publish(*manifest("large", 1, [[segment(n)] for n in range(parts)]))
    await scene.sees(lambda: scene.view.is_settled and scene.atlas.homes("large", 1, parts - 1), "placed")
    assert scene.atlas.homes("large", 1, parts) == ()
    assert scene.atlas.ring == Ring(1, [Keeper(f"n{number}") for number in range(10)])


async def test_a_dataset_that_may_not_be_read_costs_no_other(scene: Scene) -> None:
    nobody = [Acl(Perms.WRITE | Perms.ADMIN, "world", "anyone")]
    for name in ("shut", "open"):
        await scene.publish(*manifest(name, 1, [[segment(1)]]))
    await scene.sees(lambda: len(scene.atlas.datasets) == 2, "both")
    await scene.session.set_acl(scene.paths.dataset("shut"), nobody, -1)
    await scene.view.look("shut")  # servers tell nobody of events at what he may not read
    assert scene.atlas.refusal("shut")
    assert not scene.atlas.datasets["shut"].is_readable
    await scene.publish(*manifest("open", 2, [[segment(2)]]))
    await scene.publish(*manifest("new", 1, [[segment(3)]]))
    await scene.sees(lambda: scene.atlas.manifest("open", 2) and scene.atlas.manifest("new"), "the others")
    assert scene.view.is_settled
    await scene.session.set_acl(scene.paths.dataset("shut"), WORLD_ALL, -1)
    await scene.session.set(scene.paths.dataset("shut"), b'{"current": 1}', -1)
    await scene.sees(lambda: scene.atlas.refusal("shut") is None, "that it may be read again")


async def test_directories_that_are_deleted_are_made_again(scene: Scene) -> None:
    await scene.publish(*manifest("d", 1, [[segment(1)]]))
    await scene.sees(lambda: scene.atlas.manifest("d"), "the dataset")
    tree = scene.view.tree
    await remove(scene.session, scene.paths.holdings)
    await remove(scene.session, scene.paths.datasets)
    await scene.sees(lambda: not scene.atlas.datasets and scene.view.tree not in ("", tree), "another tree")
    await scene.publish(*manifest("d", 1, [[segment(2)]]))
    await scene.sees(lambda: scene.atlas.manifest("d"), "a new dataset")


@pytest.mark.parametrize(
    "ring",
    [
        b"garbage",
        b'{"epoch":9,"keepers":[{"node":"a"},{"node":"a"}]}',
        b'{"epoch":9,"keepers":[{"node":"../a"}]}',
        b'{"epoch":9,"keepers":[{"node":"a","weight":0}]}',
    ],
)
async def test_a_ring_that_places_nothing_is_as_if_it_were_not_there(scene: Scene, ring: bytes) -> None:
    text, chunks = manifest("digits", 1, [[segment(number)] for number in range(4)])
    await scene.publish(text, chunks)
    await scene.ring("a", "b")
    await scene.sees(lambda: scene.atlas.homes("digits", 1, 0) == ("a", "b"), "the ring")
    await scene.session.set(scene.paths.ring, ring, -1)
    await asyncio.sleep(0.3)
    assert scene.atlas.homes("digits", 1, 0) == ("a", "b")
    await scene.ring("b", "c", epoch=10)
    await scene.sees(lambda: scene.atlas.homes("digits", 1, 0) == ("b", "c"), "the next ring")
