"""A flood is refused in words, costs little, and harms nobody who had been admitted."""

from __future__ import annotations

import asyncio

import pytest

from tests.node.conftest import Site
from zkd.core import admission
from zkd.daemon import Daemon
from zkd.node import reaper
from zkd.zk import Create


async def leading(site: Site, **settings: int) -> Daemon:
    """A node that leads and has looked around: what is dropped from here on is an arrival."""
    daemon = await site.node(slots=1, **settings)
    assert (await site.user.do("nap", 0)).status == "done"
    return daemon


async def flood(site: Site, count: int, task: bytes, prefix: str = "f") -> list[str]:
    """Drop so many as fast as a plain client can."""
    ids = [f"{prefix}-{number}" for number in range(count)]
    for start in range(0, count, 100):
        some = ids[start : start + 100]
        await site.user.session.multi([Create(site.user.paths.task(task_id), task) for task_id in some])
    return ids


async def test_what_is_too_much_is_refused_and_what_was_admitted_is_done(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    await leading(site, tasks__queue_max=100)
    ids = await flood(site, 400, b'{"kernel":"nap","args":[0.005]}')
    results = await site.user.results(ids, 30.0)
    by_status = {status: sum(result.status == status for result in results) for status in ("done", "rejected")}
    assert by_status["done"] >= 50
    assert by_status["rejected"] > 100
    assert sum(by_status.values()) == 400
    refused = next(result for result in results if result.status == "rejected")
    assert refused.error is not None
    assert refused.error.kind == "overloaded"
    assert "at most 100 tasks (tasks.queue_max)" in refused.error.message
    assert refused.ttl_s == admission.REFUSAL_TTL_S
    told = [record for record in caplog.records if "tasks.refused" in record.getMessage()]
    assert 1 <= len(told) <= 10
    await asyncio.sleep(0.1)
    assert (await site.user.do("nap", 0)).status == "done"


async def test_bytes_are_refused_like_tasks(site: Site) -> None:
    await leading(site, tasks__queue_bytes_max=100_000)
    large = b'{"kernel":"nap","args":[1.0,""],"kwargs":{},"labels":{"no":"where","x":"' + b"x" * 9_000 + b'"}}'
    ids = await flood(site, 10, large)
    results = await site.user.results(ids[6:], 10.0)
    assert {result.status for result in results} == {"rejected"}
    assert await site.user.is_there(site.user.paths.task(ids[0]))
    assert (await site.user.do("nap", 0)).status == "done"  # it still fits


async def test_the_limits_follow_the_settings_while_it_runs(site: Site) -> None:
    daemon = await leading(site, tasks__queue_max=4)
    first = await flood(site, 2, b'{"kernel":"nap","labels":{"no":"where"}}')
    assert (await site.user.do("nap", 0)).status == "rejected"
    daemon.apply(site.settings(slots=1, tasks__queue_max=40))
    assert (await site.user.do("nap", 0)).status == "done"
    assert await site.user.is_there(site.user.paths.task(first[0]))


async def test_one_that_cannot_be_refused_with_the_others_is_answered_by_itself(site: Site) -> None:
    """Cancelled in the very moment, or answered already: the others in its transaction must not suffer."""
    await leading(site, tasks__queue_max=2)
    paths = site.user.paths
    kept = await flood(site, 1, b'{"kernel":"nap","labels":{"no":"where"}}', "kept")
    for tries in range(5):
        names = [f"r-{tries}-{number}" for number in range(60)]
        await site.user.session.multi([Create(paths.task(name), b'{"kernel":"nap","args":[0]}') for name in names])
        await asyncio.gather(*(site.user.cancel(name) for name in names[::7]))
        results = await site.user.results(names)
        assert {result.status for result in results} <= {"rejected", "cancelled"}
        assert not set(names) & set(await site.user.session.children(paths.tasks))
    assert await site.user.is_there(paths.task(kept[0]))


@pytest.mark.parametrize("limit", [{"tasks__results_max": 5}, {"tasks__results_bytes_max": 5 * 1_200}])
async def test_results_that_are_too_many_go_before_their_time_the_next_to_end_first(
    site: Site, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]
) -> None:
    monkeypatch.setattr(reaper, "ROUND_S", 0.1)
    monkeypatch.setattr(reaper, "JUST_MET_S", 0.5)
    monkeypatch.setattr(reaper, "SAMPLED", 10)
    monkeypatch.setattr(reaper, "SAMPLED_FROM", 10)
    await leading(site, **limit)
    paths = site.user.paths
    task = {"kernel": "words", "args": [110]}  # about 1,000 bytes with what is around it
    ids = [await site.user.drop({**task, "ttl_s": 1000.0 + number}) for number in range(20)]
    met = asyncio.get_running_loop().time()
    assert {result.status for result in await site.user.results(ids)} == {"done"}
    for task_id in ids[:12]:
        await site.user.gone(paths.result(task_id))
    assert asyncio.get_running_loop().time() - met >= 0.5
    left = await site.user.session.children(paths.results)
    assert set(ids[-4:]) <= set(left)
