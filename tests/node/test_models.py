"""Registered models on nodes: files lie where they should, come back when lost, and go when nobody needs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

import zkd
from tests.node.conftest import Site
from tests.node.submitter import until
from zkd import codec
from zkd.client.models import ModelEntry
from zkd.core.registry import Registered, homes
from zkd.daemon import Daemon
from zkd.errors import BadModel, DataDamaged, DataUnavailable, ModelInUse, ModelNotFound
from zkd.jobs import Job, Summary
from zkd.manifests import Keeper
from zkd.models.explain import explain
from zkd.models.model import Model
from zkd.models.trained import Trained
from zkd.node import model_keeper
from zkd.registry import ModelHead, ModelVersion
from zkd.zk.server import EmbeddedServer

NOTHING = Registered("", ModelHead(0))


def made(*weights: float) -> Trained:
    """A linear model with these weights, and an intercept of 1."""
    model, w = Model("linear", len(weights)), np.array([*weights, 1.0])
    return Trained(
        model,
        w,
        None,
        np.zeros(len(weights)),
        (),
        tuple((f"x{number}", 0) for number in range(len(weights))),
        "y",
        "",
        Job(model="linear", dataset=""),
        Summary(reason="made", rounds=0),
        0,
        0,
        0.0,
        (),
        (),
        explanation=explain(model, w, None, l2=0.0),
    )


@pytest.fixture
async def client(site: Site) -> AsyncIterator[zkd.Client]:
    async with zkd.Client(site.hosts, site.root) as client:
        yield client


async def ringed(site: Site, *names: str) -> None:
    """Wait until these are the keepers that are here."""

    async def is_so() -> bool:
        if not await site.user.is_there(site.user.paths.ring):
            return False
        ring = codec.decode((await site.user.session.get(site.user.paths.ring)).data, dict[str, object])
        keepers = {keeper["node"] for keeper in ring["keepers"]}  # type: ignore[attr-defined]
        return keepers - set(ring.get("lost", {})) == set(names)  # type: ignore[call-overload]

    await until(is_so, 30.0, f"{names} are in the ring")


async def held(client: zkd.Client, model: str, *names: str, within_s: float = 20.0) -> None:
    """Wait until these nodes, and no others, have the file."""

    async def is_so() -> bool:
        return {node for node, has in (await client.models.holders(model)).items() if has} == set(names)

    await until(is_so, within_s, f"{model} is on {names}")


async def test_a_model_is_pushed_named_moved_rolled_back_compared_and_removed(site: Site, client: zkd.Client) -> None:
    node = await site.node()
    await ringed(site, "a")
    models = client.models
    first = await models.push("m", made(1.0, 2.0), note="first", metrics={"r2": 0.5})
    assert (str(first), first.version.kind, first.version.metrics) == ("m@1", "linear", {"r2": 0.5})
    assert (await models.push("m", made(1.0, 3.0).write())).number == 2
    assert (await models.get("m")).number == 2
    await models.alias("m@live", 1, why="it is good")
    assert (await models.alias("m@live")).version == 2
    assert (await models.load("m@live")).predict([[1.0, 1.0]]).tolist() == [5.0]
    assert (await models.rollback("m@live", why="it was not")).version == 1
    assert [move.why for move in (await models.describe("m")).aliases["live"].history] == [
        "it is good",
        "",
        "it was not",
    ]
    with pytest.raises(ModelNotFound, match="nowhere else"):
        await models.rollback("m@live")
    assert (await models.canary("m@live", percent=5)).canary is not None
    assert (await models.promote("m@live")).version == 2
    changed = await models.diff("m@1", "m@2")
    assert [(each.name, each.before, each.after) for each in changed.coefficients] == [("x1", 2.0, 3.0)]
    assert (changed.largest, changed.metrics) == (1.0, {"r2": (0.5, None)})
    assert (await models.diff("m@1", "m@1")).is_empty
    with pytest.raises(ModelInUse, match="what live points to"):
        await models.rm("m@2")
    await models.rm("m@1")
    with pytest.raises(ModelNotFound, match="no version 1"):
        await models.load("m@1")
    await models.rm("m@live")
    await models.rm("m@2")
    assert await models.list() == {}
    with pytest.raises(ModelNotFound, match="no model m"):
        await models.get("m")
    assert (await models.push("m", made(1.0))).number == 3  # a number means one thing for ever
    await models.rm("m")
    with pytest.raises(ModelNotFound):
        await models.rm("m")
    await until(lambda: _true(not any(m.versions for m in node.keeping.registry.models.values())), 5.0, "seen")


async def _true(value: bool) -> bool:
    return value


async def test_an_alias_that_moves_is_seen_by_every_node_within_a_second_and_its_file_is_there(
    site: Site, client: zkd.Client
) -> None:
    names = "abcd"
    nodes = [await site.node(name, 1) for name in names]
    await ringed(site, *names)
    for weight in (1.0, 2.0):
        await client.models.push("m", made(weight))
    await client.models.alias("m@live", 1)
    keepers = [Keeper(name) for name in names]
    version = (await client.models.get("m@2")).version
    await held(client, "m@1", *names)
    await held(client, "m@2", *homes(version.file.id, keepers))
    took = []
    for number in (2, 1) * 5:
        await client.models.alias("m@live", number)
        began = time.monotonic()

        async def is_seen(number: int = number) -> bool:
            return all(node.keeping.registry.models["m"].aliases["live"].version == number for node in nodes)

        await until(is_seen, 10.0, "all nodes have seen it")
        took.append(time.monotonic() - began)
    print(f"seen by all of {len(nodes)} within {max(took):.3f} s")
    assert sorted(took)[len(took) // 2] < 1.0  # single ones wait for whatever else this machine does
    await held(client, "m@2", *names)  # where it was served once it stays, until no version needs it


async def test_files_that_vanish_or_rot_come_back_and_new_nodes_pull_theirs(
    site: Site, client: zkd.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_keeper, "LOOK_S", 0.2)
    for name in "ab":
        await site.node(name, 1)
    await ringed(site, "a", "b")
    entry = await client.models.push("m", made(1.0))
    file_id = entry.version.file.id
    await held(client, "m", "a", "b")
    (site.directory / "a" / "models" / file_id).unlink()
    await held(client, "m", "a", "b")
    path = site.directory / "b" / "models" / file_id
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert (await client.models.load("m")).w.tolist() == [1.0, 1.0]  # never from the one that was changed
    await held(client, "m", "a", "b")
    assert path.read_bytes() != bytes(data)
    await site.node("c", 1)
    await held(client, "m", "a", "b", "c", within_s=15.0)


async def test_files_go_when_no_version_needs_them_and_never_before(
    site: Site, client: zkd.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOOK_S", 0.1), ("GRACE_S", 0.3), ("ARRIVAL_GRACE_S", 0.6)):
        monkeypatch.setattr(model_keeper, name, value)
    node = await site.node()
    await ringed(site, "a")
    first = await client.models.push("m", made(1.0))
    second = await client.models.push("m", made(2.0))
    await client.models.push("n", made(2.0))  # the same bytes
    there = node._model_files.ids
    session, paths = site.user.session, site.user.paths
    assert there() == {first.version.file.id, second.version.file.id}
    await session.create(paths.model_version("m", 7), b"{}")  # of nobody knows what
    await client.models.rm("m@1")
    await asyncio.sleep(1.2)
    assert first.version.file.id in there()
    await session.delete(paths.model_version("m", 7), -1)
    await until(lambda: _true(there() == {second.version.file.id}), 5.0, "the first file is gone")
    await client.models.rm("m")
    await asyncio.sleep(1.0)
    assert there() == {second.version.file.id}  # another model has it
    await client.models.rm("n")
    await until(lambda: _true(there() == set()), 5.0, "all are gone")


async def test_an_empty_tree_costs_no_file(site: Site, client: zkd.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOOK_S", 0.1), ("GRACE_S", 0.2), ("ARRIVAL_GRACE_S", 0.2)):
        monkeypatch.setattr(model_keeper, name, value)
    node = await site.node()
    await ringed(site, "a")
    entry = await client.models.push("m", made(1.0))
    session, paths = site.user.session, site.user.paths
    for path in (paths.model_version("m", 1), paths.model_versions("m"), paths.aliases("m"), paths.model("m")):
        await session.delete(path, -1)
    await until(lambda: _true(node.keeping.registry.models == {}), 5.0, "the node has seen it")
    await asyncio.sleep(1.0)
    assert node._model_files.ids() == {entry.version.file.id}


async def test_changes_at_the_same_time_are_all_made_one_after_the_other(site: Site, client: zkd.Client) -> None:
    await site.node()
    await ringed(site, "a")
    entries = await asyncio.gather(*(client.models.push("m", made(float(number))) for number in range(8)))
    assert sorted(entry.number for entry in entries) == list(range(1, 9))
    await asyncio.gather(*(client.models.alias("m@live", number) for number in range(1, 9)))
    alias = (await client.models.describe("m")).aliases["live"]
    assert sorted(move.version for move in alias.history) == list(range(1, 9))
    # Whoever wins: no alias points to a version that is gone.
    for number in range(1, 8):
        await asyncio.gather(
            client.models.alias("m@race", number), client.models.rm(f"m@{number}"), return_exceptions=True
        )
        model = await client.models.describe("m")
        assert all(alias.version in model.versions for alias in model.aliases.values())


async def test_without_nodes_that_take_it_nothing_is_published(site: Site, client: zkd.Client) -> None:
    node = await site.node(data__weight=0.0)
    with pytest.raises(DataUnavailable, match="there are no other nodes"):
        await client.models.push("m", made(1.0))
    assert await client.models.list() == {}
    assert isinstance(node, Daemon)


LIES: list[tuple[dict[str, object], str]] = [
    ({"kind": "poisson"}, r"\$\.kind: the file .* has linear, not poisson"),
    ({"features": [{"name": "x1"}]}, r"\$\.features: the file .* has x0, not x1"),
    ({"classes": ["a", "b"]}, r"\$\.classes"),
    ({"outputs": 2}, r"\$\.outputs"),
]


async def test_a_record_that_lies_about_its_file_is_found_out(site: Site, client: zkd.Client) -> None:
    await site.node()
    await ringed(site, "a")
    version = (await client.models.push("m", made(1.0))).version
    text = codec.decode(codec.encode(version), dict[str, object])
    for number, (lie, words) in enumerate(LIES, 2):
        await site.user.session.create(site.user.paths.model_version("m", number), codec.encode(text | lie))
        with pytest.raises(DataDamaged, match=words):
            await client.models.load(f"m@{number}")
    file = {"id": version.file.id, "size": 10}
    await site.user.session.create(site.user.paths.model_version("m", 20), codec.encode(text | {"file": file}))
    with pytest.raises(DataUnavailable, match="expected 10 bytes"):
        await client.models.load("m@20")
    with pytest.raises(BadModel, match="name: expected"):
        await client.models.push("../m", made(1.0))
    assert isinstance(version, ModelVersion)
    assert isinstance(await client.models.get("m@1"), ModelEntry)


async def test_a_node_that_was_cut_off_goes_on_with_what_it_knew_and_then_sees_all_that_changed(
    cut_site: Site, embedded: EmbeddedServer
) -> None:
    node = await cut_site.node()
    await ringed(cut_site, "a")
    async with zkd.Client(cut_site.hosts, cut_site.root) as client:
        await client.models.push("m", made(1.0))
        await client.models.alias("m@live", 1)
        view = node.keeping.registry
        await until(lambda: _true("live" in view.models.get("m", NOTHING).aliases), 5.0, "the node has seen it")
        embedded.partition(node.session.session_id)
        version = (await client.models.push("m", made(2.0))).version
        await client.models.alias("m@live", 2)
        await client.models.rm("m@1")
        # Nobody should: another version of a number that was given before.
        await client.session.create(client.paths.model_version("m", 1), codec.encode(version))
        await until(lambda: _true(not view.is_complete), 10.0, "the node knows that it is cut off")
        assert view.models["m"].aliases["live"].version == 1
        embedded.drop_connections()
        embedded.heal()
        await until(lambda: _true(view.is_complete), 10.0, "the node is back")
        assert view.models["m"].aliases["live"].version == 2
        assert view.models["m"].versions == {1: version, 2: version}
        await held(client, "m@2", "a")
