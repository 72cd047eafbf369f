"""Models in the tree: each change is made once, whatever happens to the connection, and one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from zkd import codec
from zkd.client import Client, model_tree
from zkd.client.model_tree import ModelTree
from zkd.core import registry
from zkd.core.registry import Hand
from zkd.errors import DataDamaged, ModelInUse, ModelNotFound
from zkd.registry import Alias, Feature, ModelFile, ModelHead, ModelVersion
from zkd.zk import ensure_path
from zkd.zk.server import EmbeddedServer, Op

BELOW = "/zkd/models"
HAND = Hand("ann", 5)


def version(number: int) -> ModelVersion:
    return ModelVersion(file=ModelFile(f"{number:064x}", 10), kind="linear", features=[Feature("x")], note=str(number))


@pytest.fixture
async def client(embedded: EmbeddedServer) -> AsyncIterator[Client]:
    async with Client(embedded.connect_string, session_timeout_s=2.0) as client:
        yield client


@pytest.fixture
def tree(client: Client) -> ModelTree:
    return client.models._tree


async def move(tree: ModelTree, number: int, alias: str = "live", why: str = "") -> Alias | None:
    hand = Hand("ann", 5, why or str(number))
    return await tree.change("m", alias, lambda _, now: registry.moved(now, number, hand))


async def test_the_first_model_makes_its_own_directories(tree: ModelTree, client: Client) -> None:
    assert await tree.names() == []
    assert await tree.publish("m", version(1)) == 1
    assert await tree.publish("m", version(2)) == 2
    found = await tree.read("m")
    assert (found.head, dict(found.versions)) == (ModelHead(2), {1: version(1), 2: version(2)})
    for path in (client.paths.aliases("m"),):  # somebody has taken it
        await client.session.delete(path, -1)
    assert (await move(tree, 1)) is not None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_version_is_made_once_when_the_answer_is_lost(
    tree: ModelTree, embedded: EmbeddedServer, when: str, first: bool
) -> None:
    if not first:
        await tree.publish("m", version(1))
    cut = embedded.cut_before if when == "before" else embedded.cut_after
    cut(Op.MULTI, path=BELOW)
    number = await tree.publish("m", version(7))
    found = await tree.read("m")
    assert found.versions[number] == version(7)
    assert sorted(found.versions) == ([1] if first else [1, 2])


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_rollback_goes_back_once_when_the_answer_is_lost(
    tree: ModelTree, embedded: EmbeddedServer, when: str
) -> None:
    for number in (1, 2, 3):
        await tree.publish("m", version(number))
        await move(tree, number)
    cut = embedded.cut_before if when == "before" else embedded.cut_after
    cut(Op.MULTI, path=BELOW)
    back = await tree.change("m", "live", lambda model, now: registry.rolled_back(now, model.versions, HAND))  # type: ignore[arg-type]
    assert back is not None
    assert back.version == 2
    assert (await tree.read("m")).aliases["live"] == back


@pytest.mark.parametrize("when", ["before", "after"])
async def test_removing_is_done_once_when_the_answer_is_lost(
    tree: ModelTree, embedded: EmbeddedServer, when: str
) -> None:
    for number in (1, 2, 3):
        await tree.publish("m", version(number))
    await move(tree, 3)
    cut = embedded.cut_before if when == "before" else embedded.cut_after
    cut(Op.MULTI, path=BELOW)
    await tree.remove("m", 1)
    assert sorted((await tree.read("m")).versions) == [2, 3]
    cut(Op.MULTI, path=BELOW)
    await tree.change("m", "live", lambda *_: None)
    assert (await tree.read("m")).aliases == {}
    cut(Op.MULTI, path=BELOW)
    await tree.remove("m", None)
    assert (await tree.read("m")).versions == {}
    with pytest.raises(ModelNotFound):
        await tree.remove("m", None)
    assert await tree.publish("m", version(4)) == 4


async def test_many_versions_go_with_their_aliases(tree: ModelTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_tree, "REMOVED_AT_ONCE", 4)
    for number in range(1, 11):  # more than one transaction takes
        await tree.publish("m", version(number))
    await move(tree, 7)
    with pytest.raises(ModelInUse, match="what live points to"):
        await tree.remove("m", 7)
    await tree.remove("m", None)
    found = await tree.read("m")
    assert (found.versions, found.aliases, found.head) == ({}, {}, ModelHead(10))


async def test_what_others_wrote_and_nobody_can_read_harms_nobody(tree: ModelTree, client: Client) -> None:
    await tree.publish("m", version(1))
    paths, session = client.paths, client.session
    for path, text in (
        (paths.model_version("m", 5), b"\xff"),
        (paths.model_version("m", 6), codec.encode(version(1)).replace(b'"size":10', b'"size":-1')),
        (f"{paths.model_versions('m')}/07", codec.encode(version(7))),
        (f"{paths.model_versions('m')}/x", b""),
        (paths.alias("m", "bad"), b"[" * 100_000),
        (paths.alias("m", "latest"), b'{"version":1}'),
        (f"{paths.aliases('m')}/1", b'{"version":1}'),
    ):
        await session.create(path, text)
    found = await tree.read("m")
    assert (list(found.versions), list(found.aliases)) == ([1], [])
    assert sorted(found.refused) == ["aliases/bad", "versions/5", "versions/6"]
    assert await tree.publish("m", version(2)) == 2
    with pytest.raises(DataDamaged, match="aliases/bad"):
        await move(tree, 1, "bad")
    await ensure_path(session, paths.model("broken"))
    with pytest.raises(DataDamaged, match="models/broken"):
        await tree.read("broken")
    await session.create(f"{paths.models}/.hidden", b"")
    assert await tree.names() == ["broken", "m"]
    await tree.remove("m", None)  # also what cannot be read
    assert (await tree.read("m")).refused == {}


async def test_no_change_is_lost_while_connections_are_cut_all_the_time(
    tree: ModelTree, client: Client, embedded: EmbeddedServer
) -> None:
    rng = random.Random(3)
    await tree.publish("m", version(1))
    await tree.publish("m", version(2))

    async def cut() -> None:
        for _ in range(10):
            (embedded.cut_after if rng.random() < 0.7 else embedded.cut_before)(Op.MULTI, path=BELOW)
            await asyncio.sleep(0.05)

    async def moves(whose: int) -> None:
        for number in range(4):
            await move(tree, 1 + (number + whose) % 2, f"a{whose % 2}", f"{whose}.{number}")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cut())
        published = [tasks.create_task(tree.publish("m", version(number))) for number in range(10, 16)]
        moving = [tasks.create_task(moves(whose)) for whose in range(4)]
        await asyncio.wait([*published, *moving])
        embedded.heal()
    found = await tree.read("m")
    numbers = [task.result() for task in published]
    assert sorted(found.versions) == [1, 2, *sorted(numbers)]
    assert len(set(numbers)) == 6
    assert all(found.versions[number] == version(10 + index) for index, number in enumerate(numbers))
    for name in ("a0", "a1"):
        said = [change.why for change in found.aliases[name].history]
        assert len(said) == len(set(said)), "no change was made twice"
        for earlier, later in zip(found.aliases[name].history, found.aliases[name].history[1:], strict=False):
            assert earlier.version != later.version  # what is said twice is no change
