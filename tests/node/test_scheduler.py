"""Recurring tasks on real nodes: what users write at schedules/, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import urllib.request
from collections import Counter
from typing import Any

import pytest
from kazoo.client import KazooClient

from tests.node.conftest import Site
from tests.node.submitter import Witness, until
from zkd.core.schedules import slot_name, slot_of
from zkd.errors import NoNode
from zkd.zk import Acl, Perms
from zkd.zk.apache import JVM_FLAGS
from zkd.zk.jvm import class_path, java
from zkd.zk.server import EmbeddedServer
from zkd.zk.server.wire import Op

SUM = {"kernel": "numpy.sum", "args": [[1, 2, 3]]}


async def write(site: Site, name: str, **fields: Any) -> None:
    await site.user.session.create(site.user.paths.schedule(name), json.dumps({"task": SUM, **fields}).encode())


async def edit(site: Site, name: str, **fields: Any) -> None:
    await site.user.session.set(site.user.paths.schedule(name), json.dumps({"task": SUM, **fields}).encode(), -1)


async def state(site: Site, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((await site.user.session.get(site.user.paths.schedule_state(name))).data)
    except NoNode:
        return {}
    return found


async def fired(site: Site, name: str, count: int, within_s: float = 20.0) -> dict[str, Any]:
    """Wait until so many slots have fired; the state."""

    async def enough() -> dict[str, Any] | None:
        found = await state(site, name)
        return found if found.get("fired", 0) >= count else None

    return await until(enough, within_s, f"{name} fired {count} times")


async def slots(site: Site, name: str) -> list[int]:
    """Those whose results are there."""
    results = await site.user.session.children(site.user.paths.results)
    return sorted(slot_of(task_id.rpartition(".")[2]) for task_id in results if task_id.startswith(f"{name}."))


async def metrics_of(site: Site, node: str) -> str:
    entry = (await site.user.session.get(site.user.paths.node(node))).data
    url = f"{json.loads(entry)['address']}/metrics"

    def read() -> str:
        with urllib.request.urlopen(url, timeout=5) as reply:
            text: str = reply.read().decode()
        return text

    return await asyncio.to_thread(read)


async def test_a_schedule_drops_its_task_at_each_slot(site: Site) -> None:
    await site.node()
    await write(site, "tick", every_s=1)
    found = await fired(site, "tick", 3)
    result = await site.user.result(found["task"])
    assert (result.status, bytes(result.value)) == ("done", b"6")  # type: ignore[arg-type]
    assert found["task"] == f"tick.{found['slot']}"
    created = (await site.user.session.get(site.user.paths.schedule("tick"))).stat
    times = await slots(site, "tick")
    assert times[0] - created.ctime / 1000 <= 1.0
    assert times == list(range(times[0], times[-1] + 1))
    stat = await site.user.session.exists(site.user.paths.result(f"tick.{found['slot']}"))
    assert stat is not None
    assert stat.ctime / 1000 >= slot_of(found["slot"])  # never early, by the server's own clock


async def test_an_edit_a_pause_and_a_deletion_take_effect_at_once(site: Site) -> None:
    await site.node()
    await write(site, "s", cron="0 0 1 1 *", timezone="Europe/Berlin")

    async def noted(timing: str) -> bool:
        return (await state(site, "s")).get("timing") == timing

    await until(lambda: noted("0 0 1 1 * Europe/Berlin"), 8.0, "it is noted")
    await edit(site, "s", every_s=1)
    await fired(site, "s", 2)
    await edit(site, "s", every_s=1, paused=True)
    await until(lambda: noted("paused"), 8.0, "it is paused")
    before = (await state(site, "s"))["fired"]
    await edit(site, "s", every_s=1)
    found = await fired(site, "s", before + 1)
    assert found["skipped"] == 0
    await site.user.session.delete(site.user.paths.schedule("s"), -1)
    await site.user.gone(site.user.paths.schedule_state("s"))

    async def all_ended() -> bool:
        return not await site.user.session.children(site.user.paths.tasks)

    await until(all_ended, 4.0, "what was dropped has ended")
    results = await slots(site, "s")
    await asyncio.sleep(1.5)
    assert await slots(site, "s") == results
    await write(site, "s", every_s=1)
    assert (await fired(site, "s", 1))["czxid"] > found["czxid"]


async def test_what_is_no_schedule_is_told_and_harms_no_other(site: Site) -> None:
    closed = [Acl(Perms.ALL & ~Perms.READ, "world", "anyone")]
    paths = site.user.paths
    await site.node()
    await site.user.session.create(paths.schedule("hidden"), b"{}", acl=closed)
    await site.user.session.create(paths.schedule("ünfit"), b'{"every_s": 1, "task": {"kernel": "k"}}')
    await site.user.session.create(paths.schedule("n" * 400), b'{"every_s": 1, "task": {"kernel": "k"}}')
    await site.user.session.create(paths.schedule("junk"), b"\xff\x00")
    await write(site, "never", cron="* * 31 * * 7")
    await write(site, "nowhere", cron="* * * * *", timezone="Mars/Olympus")
    await write(site, "good", every_s=1)
    await site.user.session.create(paths.schedule("good") + "/child", b"")
    await fired(site, "good", 2)
    metrics = await metrics_of(site, "a")
    assert "\nzkd_schedules 6\n" in metrics
    assert "\nzkd_schedules_malformed 5\n" in metrics
    assert int(metrics.partition('zkd_schedule_slots_total{outcome="fired"} ')[2].partition("\n")[0]) >= 2
    for name, words in {
        "ünfit": "name: expected 1 to 111 letters",
        "junk": "$: expected UTF-8, got byte 0xff at offset 0",
        "never": "$.cron: expected minute, hour",
        "nowhere": "$.timezone: expected a time zone",
    }.items():
        found = await state(site, name)
        assert words in found["error"], name
        assert found["timing"] == ""
    assert await state(site, "n" * 400) == {}
    await edit(site, "never", every_s=1)
    assert "error" not in await fired(site, "never", 1)


async def test_a_slot_is_skipped_while_the_former_task_is_not_finished(site: Site) -> None:
    await site.node()
    await write(site, "slow", every_s=1, overlap="skip", task={"kernel": "nap", "args": [2.5]})
    found = await fired(site, "slow", 2)
    assert found["skipped"] >= 1
    first, second = (await slots(site, "slow"))[0], slot_of(found["slot"])
    assert second - first >= 3


async def test_a_new_leader_goes_on_where_the_former_stopped(site: Site) -> None:
    first = await site.node("a")
    await write(site, "s", every_s=1)
    before = await fired(site, "s", 1)
    await first.drain()
    await asyncio.sleep(3.2)  # nobody leads
    await site.node("b")
    found = await fired(site, "s", before["fired"] + 1)
    missed = slot_of(found["slot"]) - slot_of(before["slot"])
    assert missed >= 3
    assert found["fired"] + found["skipped"] == before["fired"] + missed


async def test_a_task_that_is_there_already_counts_as_fired(site: Site) -> None:
    """Of a former life of the name, or dropped by hand: the slot is not run a second time."""
    await site.node()
    here = await site.user.session.exists(site.user.paths.node("a"))
    assert here is not None
    now = here.ctime // 1000
    for second in range(now + 1, now + 20):
        await site.user.drop({"kernel": "numpy.sum", "labels": {"planet": "mars"}}, f"s.{slot_name(second)}")
    await write(site, "s", every_s=2)
    found = await fired(site, "s", 2)
    there = await site.user.session.get(site.user.paths.task(found["task"]))
    assert b"mars" in there.data
    assert await slots(site, "s") == []


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_cut_at_any_write_fires_no_slot_twice(embedded: EmbeddedServer, cut_site: Site, when: str) -> None:
    site, witness = cut_site, Witness()
    await witness.watch(site.user.session, site.user.paths)
    daemon = await site.node("a")
    await write(site, "s", every_s=1)
    await fired(site, "s", 1)
    connections = daemon.session.epoch
    for n in range(3):
        embedded.faults.cut(when, Op.MULTI, 1 + n, "/zkd/control/epoch")  # type: ignore[arg-type]
        await asyncio.sleep(1.2)
    embedded.faults.heal()
    assert daemon.session.epoch > connections, "nothing was cut"
    found = await fired(site, "s", (await state(site, "s"))["fired"] + 1)
    await site.user.result(found["task"])
    created = Counter(task_id for task_id in witness.created if task_id.startswith("s."))
    assert set(created.values()) == {1}
    assert len(created) == found["fired"]
    times = await slots(site, "s")
    assert len(times) + found["skipped"] == times[-1] - times[0] + 1


async def test_directories_that_somebody_deleted_are_made_again(site: Site) -> None:
    await site.node()
    await write(site, "s", every_s=1)
    await fired(site, "s", 1)
    session, paths = site.user.session, site.user.paths
    await session.delete(paths.schedule("s"), -1)
    await session.delete(paths.schedules, -1)
    await site.user.gone(paths.schedule_state("s"))
    await session.delete(paths.schedule_states, -1)

    async def written() -> bool:
        try:
            await write(site, "s", every_s=1)
        except NoNode:
            return False
        return True

    await until(written, 8.0, "schedules/ is there again")
    await fired(site, "s", 2)


async def test_many_schedules_fire_together(site: Site) -> None:
    await site.node()
    for number in range(60):
        await write(site, f"many-{number}", every_s=2)
    for number in range(60):
        await fired(site, f"many-{number}", 2)


# --- other clients --------------------------------------------------------------------------------------


async def test_kazoo_writes_a_schedule(site: Site) -> None:
    await site.node()

    def by_kazoo() -> None:
        zk = KazooClient(site.hosts)
        zk.start(20)
        try:
            zk.create(f"{site.root}/schedules/k", json.dumps({"every_s": 1, "task": SUM}).encode())
            there = threading.Event()
            path = f"{site.root}/control/schedules/k"

            @zk.DataWatch(path)  # type: ignore[untyped-decorator]
            def saw(data: bytes | None, _: object) -> bool:
                if data and json.loads(data).get("fired"):
                    there.set()
                return not there.is_set()

            assert there.wait(20)
        finally:
            zk.stop()
            zk.close()

    await asyncio.to_thread(by_kazoo)


@pytest.mark.parametrize("zookeeper", ["apache"], indirect=True)
async def test_zkcli_writes_a_schedule(site: Site) -> None:
    await site.node()
    text = '{"cron": "* * * * *", "overlap": "skip", "task": {"kernel": "numpy.sum", "args": [[1]]}}'
    line = f"create {site.root}/schedules/z '{text}'"  # in quotes, for the blanks in it
    flags = [*JVM_FLAGS, "-Dorg.slf4j.simpleLogger.defaultLogLevel=off", "-cp", class_path()]
    await asyncio.to_thread(
        subprocess.run,
        [java(), *flags, "org.apache.zookeeper.ZooKeeperMain", "-server", site.hosts],
        input=f"{line}\nquit\n".encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )

    async def noted() -> bool:
        return (await state(site, "z")).get("timing") == "* * * * * UTC"

    await until(noted, 10.0, "the leader has read it")
