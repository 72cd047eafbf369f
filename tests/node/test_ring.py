"""The ring that real daemons keep in the tree, as they come, go, are drained and change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.cluster.conftest import Grid
from tests.cluster.conftest import grid as grid
from tests.node.conftest import Site
from tests.node.submitter import Submitter, until
from tests.node.test_operators import SEALED
from tests.node.test_scheduler import metrics_of
from zkd import codec
from zkd.daemon import Daemon
from zkd.errors import BadRecord, NoNode
from zkd.manifests import Keeper, Ring


async def ring_of(user: Submitter) -> Ring | None:
    try:
        return codec.decode((await user.session.get(user.paths.ring)).data, Ring)
    except (NoNode, BadRecord):
        return None


def told(ring: Ring) -> str:
    """The nodes in it, the lost ones in brackets."""
    return " ".join(f"({k.node})" if k.node in ring.lost else k.node for k in ring.keepers)


async def stands(user: Submitter, what: str | Callable[[Ring], bool], within_s: float = 8.0) -> Ring:
    async def there() -> Ring | None:
        ring = await ring_of(user)
        is_so = ring is not None and (told(ring) == what if isinstance(what, str) else what(ring))
        return ring if is_so else None

    try:
        return await until(there, within_s, f"the ring is {what}")
    except AssertionError:
        ring = await ring_of(user)
        raise AssertionError(f"expected the ring {what}, it is {ring and told(ring)}") from None


async def version(user: Submitter) -> int:
    return (await user.session.get(user.paths.ring)).stat.version


async def test_nodes_come_into_the_ring_and_leave_it_after_their_time_of_grace(site: Site) -> None:
    first = await site.node("a", data__grace_s=2.0, data__weight=2.5, node__zone="r1")
    ring = await stands(site.user, "a")
    assert ring.keepers == [Keeper("a", weight=2.5, zone="r1")]
    assert first.election.reign is not None
    assert ring.epoch == first.election.reign.epoch
    await site.node("c", data__grace_s=2.0, data__weight=0.0)
    async with Daemon(site.settings("b", data__grace_s=2.0)):
        await stands(site.user, "a b")
    await stands(site.user, "a (b)")
    assert list((await stands(site.user, "a")).lost) == []


async def test_a_restart_within_the_time_of_grace_changes_no_keeper(site: Site) -> None:
    await site.node("a", data__grace_s=30.0)
    async with Daemon(site.settings("b", data__grace_s=30.0)):
        before = await stands(site.user, "a b")
    await stands(site.user, "a (b)")
    async with Daemon(site.settings("b", data__grace_s=30.0)):
        after = await stands(site.user, "a b")
    assert after.keepers == before.keepers


async def test_a_new_leader_goes_on_from_the_ring(site: Site) -> None:
    async with Daemon(site.settings("a", data__grace_s=3.0)) as first:
        await site.node("b", data__grace_s=3.0)
        before = await stands(site.user, "a b")
        assert first.election.reign is not None
        epoch = first.election.reign.epoch
    lost = await stands(site.user, "(a) b")
    assert lost.epoch > epoch
    assert lost.keepers == before.keepers
    await stands(site.user, "b")


async def test_draining_takes_a_node_out_at_once_and_back(site: Site) -> None:
    await site.node("a")
    await site.node("b")
    await stands(site.user, "a b")
    await site.user.set_state("b", "draining")
    await stands(site.user, "a")
    await site.user.set_state("a", "draining")
    await asyncio.sleep(1.5)
    await stands(site.user, "a")  # somebody has to keep what there is
    await site.user.set_state("b", "active")
    await stands(site.user, "b")
    await site.user.session.delete(site.user.paths.node_state("a"), -1)
    await stands(site.user, "a b")
    await site.user.set_state("a", "cordoned")
    await asyncio.sleep(1.5)
    await stands(site.user, "a b")


async def test_a_ring_that_is_deleted_or_spoiled_is_written_again(site: Site) -> None:
    await site.node("a")
    await site.node("b")
    before = await stands(site.user, "a b")
    user = site.user
    await user.session.delete(user.paths.ring, -1)
    assert await stands(user, "a b") == before
    for junk in (b"", b"junk", b'{"epoch": "x"}', b"[" * 100_000):
        await user.session.set(user.paths.ring, junk, -1)
        assert await stands(user, "a b") == before
    await user.session.set(user.paths.ring, codec.encode(Ring(99, [Keeper("mallory")])), -1)
    await stands(user, lambda ring: [k.node for k in ring.keepers] == ["a", "b", "mallory"])  # as one that was lost


async def test_foreign_entries_do_not_come_into_the_ring(site: Site) -> None:
    user = site.user
    await site.node("a")
    await stands(user, "a")
    good = (await user.session.get(user.paths.node("a"))).data
    for name, data in {
        "junk": b"junk",
        "liar": good,
        "heavy": good.replace(b'"node":"a"', b'"node":"heavy","weight":1e999'),
        "deep": b"[" * 100_000,
    }.items():
        await user.session.create(user.paths.node(name), data, ephemeral=True)
    persistent = good.replace(b'"node":"a"', b'"node":"ghost"')
    await user.session.create(user.paths.node("ghost"), persistent)
    await user.session.create(user.paths.node("sealed"), b"x", acl=SEALED)
    for name in ("junk", "a"):
        await user.session.create(user.paths.node_state(name), b"junk")
    await site.node("b")
    await stands(user, "a b")
    before = await version(user)
    await asyncio.sleep(1.5)
    assert await version(user) == before


async def test_the_ring_shows_in_the_metrics_of_the_leader(site: Site) -> None:
    await site.node("a")
    async with Daemon(site.settings("b", data__grace_s=30.0)):
        await stands(site.user, "a b")
        metrics = await metrics_of(site, "a")
        assert '\nzkd_ring_keepers{state="here"} 2\n' in metrics
        assert "zkd_ring_keepers" not in await metrics_of(site, "b")
    await stands(site.user, "a (b)")
    metrics = await metrics_of(site, "a")
    assert '\nzkd_ring_keepers{state="here"} 1\nzkd_ring_keepers{state="lost"} 1\n' in metrics


async def test_a_leader_that_slept_does_not_give_up_those_who_came_back(grid: Grid) -> None:
    """It wakes after the time of grace of a node whose return it has not heard of yet."""
    grace = {"ZKD_DATA__GRACE_S": "3"}
    await grid.start("a", timeout_s=20.0, **grace)
    await grid.start("b", timeout_s=2.0, **grace)
    await stands(grid.user, "a b")
    assert await grid.leader() == "a"
    grid.nodes["b"].kill()
    await stands(grid.user, "a (b)")
    entry = await grid.user.session.exists(grid.user.paths.leader)
    assert entry is not None
    grid.nodes["a"].pause()
    grid.nodes["b"].start()
    await grid.joined("b", after=entry.czxid)
    await asyncio.sleep(3.0)
    seen: list[str] = []
    watching = asyncio.create_task(_collect(grid.user, seen))
    grid.nodes["a"].resume()
    await stands(grid.user, "a b")
    watching.cancel()
    assert await grid.leader() == "a"
    assert "a" not in seen  # it would take a second to let b in again


async def _collect(user: Submitter, seen: list[str]) -> None:
    while True:
        ring = await ring_of(user)
        if ring is not None and told(ring) not in seen[-1:]:
            seen.append(told(ring))
        await asyncio.sleep(0.005)
