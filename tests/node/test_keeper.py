"""Copies return to R after a loss, only what must move moves, and nothing that may be needed is thrown away."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from tests.node.conftest import Site
from tests.node.datasets import remove
from tests.node.depot import Depot
from tests.node.submitter import until
from tests.store.made import make, put
from zkd.client import Client
from zkd.core import keeping
from zkd.core.placement import place
from zkd.daemon import Daemon
from zkd.errors import NoNode
from zkd.manifests import Keeper
from zkd.node import scrubber
from zkd.store import SegmentStore
from zkd.zk.server import EmbeddedServer

GRACE_S = 1.0


class Crew:
    """Daemons that can be killed."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.daemons: dict[str, Daemon] = {}

    async def start(self, *names: str, grace_s: float = GRACE_S, **overrides: Any) -> dict[str, Daemon]:
        for name in names:
            settings = self.site.settings(name, 1, data__grace_s=grace_s, **overrides)
            self.daemons[name] = await Daemon(settings).__aenter__()
        return self.daemons

    async def kill(self, name: str) -> None:
        """As if its machine had gone: nothing is handed over, and its port answers nobody."""
        daemon = self.daemons.pop(name)
        daemon._drained = True
        await daemon.__aexit__(None, None, None)

    @property
    def repaired(self) -> dict[str, int]:
        return {name: daemon.keeping.keeper.repaired for name, daemon in self.daemons.items()}


@pytest.fixture
async def crew(site: Site) -> AsyncIterator[Crew]:
    crew = Crew(site)
    yield crew
    for name in list(crew.daemons):
        await crew.kill(name)


@pytest.fixture
def depot(site: Site) -> Depot:
    return Depot(site.user, site.directory, lambda node: site.directory / node)


async def test_what_was_pushed_is_reported_and_nothing_moves(crew: Crew, depot: Depot) -> None:
    daemons = await crew.start("a", "b", "c")
    await depot.ringed("a", "b", "c")
    await depot.put()
    await depot.settled("a", "b", "c", is_tidy=True)
    assert not any(crew.repaired.values())

    async def is_told() -> bool:
        """The figures are of the keeper's last look, which comes a little later."""
        samples = {(name, *labels.values()): value for name, labels, value in daemons["a"]._samples()}
        assert samples["zkd_segments", "missing"] == 0
        here = depot.lying("a")
        size = sum(depot.made[each].ref.size for each in here)
        return (samples["zkd_segments", "here"], samples["zkd_segment_bytes",]) == (len(here), size)

    await until(is_told, 30.0, "what lies here is told")


async def test_what_the_client_pushed_once_is_copied(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b", "c")
    await depot.ringed("a", "b", "c")
    await depot.put(copies=1)
    await depot.settled("a", "b", "c", is_tidy=True)
    assert sum(crew.repaired.values()) == 8


async def test_a_joiner_gets_what_belongs_to_it_and_nothing_else_moves(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b", "c")
    await depot.ringed("a", "b", "c")
    await depot.put(parts=16)
    await depot.put(version=2, parts=16)
    await depot.settled("a", "b", "c")
    before = {node: depot.lying(node) for node in "abc"}
    await crew.start("d")
    await depot.ringed("a", "b", "c", "d")
    await depot.settled("a", "b", "c", "d", is_tidy=True)
    fetched = crew.repaired
    assert fetched["d"] == len(await depot.on("d"))
    for node in "abc":
        assert fetched[node] == len(depot.lying(node) - before[node])
    now = place("d", 16, 2, [Keeper(node) for node in "abcd"], cap=None)
    then = place("d", 16, 2, [Keeper(node) for node in "abc"], cap=None)
    optimum = 2 * sum(len(set(new) - set(old)) for new, old in zip(now, then, strict=True))
    assert sum(fetched.values()) <= optimum + 8  # the cap on a node's load costs some
    await emptied_trash(depot, "a", "b", "c", "d")


async def emptied_trash(depot: Depot, *nodes: str) -> None:
    async def is_so() -> bool:
        return not any(depot.lying(node, "segments.trash") for node in nodes)

    await until(is_so, 10.0, "the trash is empty")


async def test_a_lost_node_is_repaired_after_the_grace_and_not_before(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b", "c", "d", grace_s=3.0)
    await depot.ringed("a", "b", "c", "d")
    await depot.put(parts=16)
    await depot.settled("a", "b", "c", "d")
    lost = depot.lying("d")
    await crew.kill("d")
    await depot.ringed("a", "b", "c", "d", lost=("d",))  # suspect at once
    await asyncio.sleep(1.5)
    assert sum(crew.repaired.values()) == 0
    await depot.ringed("a", "b", "c")
    await depot.settled("a", "b", "c", is_tidy=False)
    assert sum(crew.repaired.values()) >= len(lost)


async def test_a_restart_moves_nothing(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b", "c", grace_s=10.0)
    await depot.ringed("a", "b", "c")
    await depot.put(parts=16)
    await depot.settled("a", "b", "c")
    before = {node: depot.lying(node) for node in "abc"}
    await crew.kill("c")
    await depot.ringed("a", "b", "c", lost=("c",))
    await crew.start("c", grace_s=10.0)
    await depot.ringed("a", "b", "c")
    await depot.settled("a", "b", "c", is_tidy=True)
    assert {node: depot.lying(node) for node in "abc"} == before
    assert not any(crew.repaired.values())


async def test_drain_empties_a_node_after_others_have_copies(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b", "c", "d")
    await depot.ringed("a", "b", "c", "d")
    await depot.put(parts=16)
    await depot.settled("a", "b", "c", "d")
    assert depot.lying("d")
    await crew.site.user.set_state("d", "draining")
    await depot.ringed("a", "b", "c")
    await depot.settled("a", "b", "c", "d", is_tidy=True)
    assert depot.lying("d") == set()
    await emptied_trash(depot, "d")
    await crew.site.user.gone(crew.site.user.paths.holding("d", "d"))
    await crew.site.user.set_state("d", "active")
    await depot.ringed("a", "b", "c", "d")
    await depot.settled("a", "b", "c", "d", is_tidy=True)


async def test_what_a_single_node_was_given_is_copied_when_another_comes(crew: Crew, depot: Depot) -> None:
    await crew.start("a")
    await depot.ringed("a")
    async with Client(crew.site.settings("a", 1).zookeeper.hosts, depot.user.paths.root) as client:
        dataset = await client.datasets.put("d", {"x": np.arange(1000)}, parts=4)

        async def has(health: str, copies: int) -> bool:
            stat = await dataset.stat()
            return (stat.health, stat.copies) == (health, [copies] * 4)

        await until(lambda: has("degraded", 1), 30.0, "the only node says what it holds")
        await crew.start("b")
        await until(lambda: has("full", 2), 30.0, "both copies of all parts")
    assert depot.lying("b") == depot.lying("a") == {ref.id for part in dataset.segments for ref in part}


async def test_drain_keeps_what_no_r_others_can_hold(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b")
    await depot.ringed("a", "b")
    await depot.put()
    await depot.settled("a", "b")
    await crew.site.user.set_state("b", "draining")
    await depot.ringed("a")
    await asyncio.sleep(4 * GRACE_S)
    assert depot.lying("b") == set(depot.made)  # two copies were promised


async def test_rot_is_found_by_scrubbing_and_mended(crew: Crew, depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubber, "ROUND_S", 0.5)
    daemons = await crew.start("a", "b", "c")
    await depot.ringed("a", "b", "c")
    await depot.put()
    await depot.settled("a", "b", "c")
    rotten = sorted(depot.lying("a"))[:3]
    for segment_id in rotten:
        flip(crew.site.directory / "a" / "segments" / segment_id / "0.npy", 5_000)
    assert not any("a" in depot.copies(each, "a") for each in rotten)
    await depot.settled("a", "b", "c", is_tidy=True)
    assert daemons["a"].keeping.scrubber.found == 3
    assert depot.lying("a", "segments.bad") == set(rotten)


async def test_what_has_just_come_is_not_read_back_at_once(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    old, new = make(tmp_path / "old", seed=1), make(tmp_path / "new", seed=2)
    await put(store, old)
    scrub = scrubber.Scrubber(store, lambda: 10**9, "0", structlog.get_logger())
    assert scrub.due(1000.0) == old.id  # of a former life
    await put(store, new)
    assert scrub.due(1001.0) == old.id
    await store.trash(old.id)
    assert scrub.due(1002.0) is None
    assert scrub.due(1002.0 + scrubber.YOUNG_S) == new.id


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def test_a_disk_that_was_lost_is_filled_again(crew: Crew, depot: Depot) -> None:
    import shutil

    await crew.start("a", "b", "c", grace_s=10.0)
    await depot.ringed("a", "b", "c")
    await depot.put()
    await depot.settled("a", "b", "c")
    await crew.kill("b")
    shutil.rmtree(crew.site.directory / "b")
    await crew.start("b", grace_s=10.0)
    await depot.ringed("a", "b", "c")
    await depot.settled("a", "b", "c", is_tidy=True)


async def test_a_removed_dataset_is_collected_with_its_holdings_after_its_time(
    crew: Crew, depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "ORPHAN_S", 1.0)
    await crew.start("a", "b")
    await depot.ringed("a", "b")
    await depot.put("kept", parts=2)
    await depot.put("gone", parts=4)
    await depot.settled("a", "b")
    gone = {made.id for part in depot.parts.pop(("gone", 1)) for made in part}
    await remove(crew.site.user.session, crew.site.user.paths.dataset("gone"))
    await crew.site.user.gone(f"{crew.site.user.paths.holdings}/gone")

    async def is_collected() -> bool:
        return not any(depot.lying(node, where) & gone for node in "ab" for where in ("segments", "segments.trash"))

    began = time.monotonic()
    await until(is_collected, 15.0, "what was removed is collected")
    assert time.monotonic() - began > 1.0 + GRACE_S
    await depot.settled("a", "b", is_tidy=True)


async def test_what_a_writer_is_sending_is_kept_and_what_he_left_goes(
    crew: Crew, depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "ORPHAN_S", 0.5)
    await crew.start("a", "b")
    await depot.ringed("a", "b")
    await depot.put(parts=2)
    writer = f"{crew.site.user.paths.writers('d')}/w"
    await crew.site.user.session.create(writer, ephemeral=True)
    made = depot._make(100)
    from zkd.net.fetch import session
    from zkd.net.segments import push

    async with session() as http:
        await push(http, await depot.address("a"), await depot.token(), made.directory, made.ref)
    await asyncio.sleep(0.5 + 3 * GRACE_S)
    assert made.id in depot.lying("a")
    await crew.site.user.session.delete(writer, -1)

    async def is_gone() -> bool:
        return made.id not in depot.lying("a") | depot.lying("a", "segments.trash")

    await until(is_gone, 10.0, "what the writer left is collected")
    await depot.settled("a", "b", is_tidy=True)


async def test_a_manifest_that_lies_costs_nobody_a_byte(
    crew: Crew, depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "ORPHAN_S", 0.2)
    await crew.start("a", "b")
    await depot.ringed("a", "b")
    await depot.put(parts=4)
    await depot.settled("a", "b")
    path = crew.site.user.paths.version("d", 1)
    text = (await crew.site.user.session.get(path)).data
    await crew.site.user.session.delete(path, -1)
    await crew.site.user.session.create(path, json.dumps(json.loads(text) | {"parts": 3}).encode())
    await asyncio.sleep(4 * GRACE_S)
    assert depot.lying("a") | depot.lying("a", "segments.trash") == set(depot.made)
    await crew.site.user.session.set(path, text, -1)
    await depot.settled("a", "b", is_tidy=True)


async def test_another_tree_makes_nobody_throw_anything_away(
    crew: Crew, depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "ORPHAN_S", 0.2)
    await crew.start("a", "b")
    await depot.ringed("a", "b")
    await depot.put(parts=4)
    await depot.settled("a", "b")
    for name in "ab":
        await crew.kill(name)
    await remove(crew.site.user.session, crew.site.root)  # the ensemble has lost everything
    (crew.site.directory / "b" / "segments.tree").unlink()  # somebody says that this is right
    await crew.start("a", "b")
    await depot.ringed("a", "b")

    async def is_empty() -> bool:
        return depot.lying("b") == set()

    await until(is_empty, 10.0, "what no manifest names is collected")
    await asyncio.sleep(2 * GRACE_S)
    assert depot.lying("a") == set(depot.made)


async def test_repair_keeps_to_its_budget(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b")
    await depot.ringed("a", "b")
    await depot.put(parts=8, rows=30_000, replicas=2)
    total = sum(made.ref.size for made in depot.made.values())
    await crew.start("c", data__repair_bytes_s=total // 8)
    await depot.ringed("a", "b", "c")
    began = time.monotonic()
    await depot.settled("a", "b", "c", within_s=30.0)
    mine = sum(depot.made[each].ref.size for each in await depot.on("c"))
    assert time.monotonic() - began >= mine / (total // 8) - 1.5  # a second's worth is saved up


async def test_a_holding_that_somebody_deleted_or_changed_is_written_again(crew: Crew, depot: Depot) -> None:
    await crew.start("a", "b")
    await depot.ringed("a", "b")
    await depot.put(parts=2)
    await depot.settled("a", "b")
    path = crew.site.user.paths.holding("d", "a")
    await crew.site.user.session.delete(path, -1)
    await depot.settled("a", "b")
    await crew.site.user.session.set(path, b"{}", -1)
    await depot.settled("a", "b")


async def test_a_lost_connection_throws_nothing_away_and_work_goes_on_after(
    cut_site: Site, embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    depot = Depot(cut_site.user, cut_site.directory, lambda node: cut_site.directory / node)
    crew = Crew(cut_site)
    daemons = await crew.start("a", "b", "c", data__repair_bytes_s=200_000)
    await depot.ringed("a", "b", "c")
    await depot.put(parts=8, rows=5_000)
    await depot.settled("a", "b", "c")
    await crew.start("d", data__repair_bytes_s=200_000)
    await depot.ringed("a", "b", "c", "d")
    for _ in range(5):
        embedded.drop_connections()
        await asyncio.sleep(0.3)
    embedded.expire(daemons["a"].session.session_id)
    await depot.settled("a", "b", "c", "d", is_tidy=True, within_s=30.0)
    for name in "abcd":
        await crew.kill(name)


async def test_holdings_of_who_is_gone_for_good_are_swept(
    crew: Crew, depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zkd.node import holdings

    monkeypatch.setattr(holdings, "SWEEP_S", 0.5)
    await crew.start("a", "b", "c")
    await depot.ringed("a", "b", "c")
    await depot.put(parts=4)
    await depot.settled("a", "b", "c")
    await crew.kill("c")
    await depot.ringed("a", "b")
    await crew.site.user.gone(crew.site.user.paths.holding("d", "c"))
    await depot.settled("a", "b")
    with pytest.raises(NoNode):
        await crew.site.user.session.get(crew.site.user.paths.holding("d", "c"))


async def test_what_a_removal_left_when_its_node_died_goes_with_the_next_start(cut_site: Site) -> None:
    rest = cut_site.directory / "a" / "segments.trash" / f"{'0' * 64}.going"
    rest.mkdir(parents=True)
    (rest / "0.npy").touch()
    await cut_site.node("a", 1)

    async def is_gone() -> bool:
        return not rest.exists()

    await until(is_gone, 5.0, "the rest is gone")
