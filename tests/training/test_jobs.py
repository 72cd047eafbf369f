"""Jobs from the drop to the model, on real nodes that are killed and frozen: each bit as in quiet times."""

from __future__ import annotations

import asyncio
import signal

from tests.node.submitter import until
from tests.training.conftest import LONG, SHORT, School


async def test_a_dropped_job_becomes_a_model_on_several_nodes(school: School) -> None:
    await school.drop("j", **SHORT)
    done = await school.phase("j", "done")
    assert done.summary is not None
    assert done.summary.reason == "tolerance"
    assert done.dataset == "digits@1"
    assert done.started_ms is not None
    assert done.ended_ms is not None
    assert 0 <= done.ended_ms - done.started_ms < 60_000
    assert done.model is not None
    assert done.checkpoint is None
    assert len(done.model.nodes) == 2
    assert await school.holder("j") is None
    files = await school.files("j")
    assert all(done.model.id in files[node] for node in done.model.nodes)
    for word, fault in (("nowhere", "no dataset"), ("digits@7", "no version 7"), ("digits", "has no column")):
        bad = SHORT | {"dataset": word} | ({"target": "z"} if word == "digits" else {})
        await school.drop(f"bad-{word[-1]}", **bad)
        failed = await school.phase(f"bad-{word[-1]}", "failed")
        assert fault in (failed.error or ""), failed.error


async def test_whoever_is_lost_the_model_is_the_same_to_the_last_bit(school: School) -> None:
    await school.drop("calm", **LONG)
    calm = (await school.phase("calm", "done")).model
    assert calm is not None

    async def same(job_id: str, fences: int) -> None:
        done = await school.phase(job_id, "done")
        assert done.model is not None
        assert done.model.id == calm.id
        assert done.fence >= fences

    await school.drop("brain", **LONG)
    for number in (5, 100, 200):
        node = (await school.reached("brain", number)).coordinator
        assert node is not None
        assert school.kill_brains(node) == 1
    await same("brain", 1)

    await school.drop("coordinator", **LONG)
    for number in (30, 150):
        await school.reached("coordinator", number)
        node = await school.coordinator("coordinator")
        school.grid.nodes[node].kill()
        await school.coordinator("coordinator", other_than=node)
        school.grid.nodes[node].start()
        await school.grid.joined(node)
    await same("coordinator", 3)

    await school.drop("frozen", **LONG)
    await school.reached("frozen", 30)
    node = await school.coordinator("frozen")
    school.grid.nodes[node].signal(signal.SIGSTOP)
    await school.coordinator("frozen", other_than=node)
    school.grid.nodes[node].signal(signal.SIGCONT)
    await same("frozen", 2)

    await school.drop("worker", **LONG)
    await school.reached("worker", 30)
    node = await school.coordinator("worker")
    other = next(name for name in school.grid.nodes if name != node)
    school.grid.nodes[other].kill()
    await school.reached("worker", 60)
    school.grid.nodes[other].start()
    await same("worker", 1)


async def test_a_job_is_paused_resumed_stopped_and_removed(school: School) -> None:
    await school.drop("j", **LONG)
    state = await school.reached("j", 30)
    await school.want("j", "pause")
    paused = await school.phase("j", "paused", 5.0)
    assert paused.checkpoint is not None
    assert paused.checkpoint.round >= state.progress.round
    assert len(paused.checkpoint.nodes) == 2
    assert await school.holder("j") is None

    async def no_brain_is_left() -> bool:
        return not any(school.children(node, "zkd-brain") for node in school.grid.nodes)

    await until(no_brain_is_left, 3.0, "a paused job has no brain")
    await school.want("j", "run")
    resumed = await school.reached("j", paused.checkpoint.round + 30)
    assert resumed.fence == 2
    await school.want("j", "stop")
    done = await school.phase("j", "done", 10.0)
    assert done.summary is not None
    assert done.summary.reason == "stopped"
    assert resumed.progress.round <= done.summary.rounds < LONG["max_rounds"]  # type: ignore[operator]
    assert done.model is not None
    await school.delete("j")

    async def is_gone() -> bool:
        return await school.state("j") is None and await school.files("j") == {}

    await until(is_gone, 5.0, "its state and its files are gone")

    await school.drop("k", **LONG)
    await school.reached("k", 30)
    await school.delete("k")

    async def all_is_gone() -> bool:
        return await school.state("k") is None and await school.holder("k") is None and await school.files("k") == {}

    await until(all_is_gone, 5.0, "all of a running job is gone")
    await until(no_brain_is_left, 3.0, "and its brain")


async def test_two_jobs_share_the_nodes(school: School) -> None:
    await asyncio.gather(*(school.drop(job_id, **LONG) for job_id in ("j", "k")))
    for job_id in ("j", "k"):
        await school.reached(job_id, 10)
    first, second = [(await school.phase(job_id, "done")).model for job_id in ("j", "k")]
    assert first is not None
    assert second is not None
    assert first.id == second.id
