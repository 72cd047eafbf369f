"""Jobs from the drop to the model, on real nodes that are killed and frozen: each bit as in quiet times."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.node.submitter import until
from tests.training.conftest import LONG, SHORT, School, X, Y
from zkd.errors import JobFailed
from zkd.jobs import JobState
from zkd.registry import Feature

pytestmark = pytest.mark.asyncio(loop_scope="module")
calm: list[str] = []  # the digest of what comes of LONG when nobody disturbs it


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


async def test_what_cannot_be_trained_fails_with_words(school: School) -> None:
    for name, terms, fault in (
        ("nowhere", {"dataset": "nowhere"}, "there is no dataset nowhere"),
        ("late", {"dataset": "digits@7"}, "there is no version 7 of dataset digits"),
        ("column", {"target": "z"}, "has no column 'z'"),
        ("kind", {"model": "poisson", "l1": 1.0, "optimizer": "lbfgs"}, "l1"),
    ):
        await school.drop(name, **SHORT | terms)
        failed = await school.phase(name, "failed")
        assert fault in (failed.error or ""), failed.error


async def test_what_a_job_ends_with_is_registered_and_outlives_it(school: School) -> None:
    models = school.client.models
    await school.drop("short", **SHORT | {"model": "softmax", "optimizer": "lbfgs", "tol": 1e-3})
    entry = await models.register("short", "digits", note="the first")
    done = await school.phase("short", "done")
    assert done.model is not None
    assert done.summary is not None
    version = entry.version
    assert (str(entry), version.kind, version.outputs) == ("digits@1", "softmax", 10)
    assert (version.features, version.classes) == ([Feature("x", 64)], list(range(10)))
    assert (version.lineage.dataset, version.lineage.job, version.lineage.terms) == ("digits@1", "short", done.terms)
    assert version.metrics["loss"] == done.summary.loss
    assert version.file.id == done.model.id
    await school.delete("short")
    model = await models.load("digits")
    assert (model.predict({"x": X}) == Y).mean() > 0.95
    await school.drop("failing", **SHORT | {"target": "z"})
    with pytest.raises(JobFailed, match="has no column 'z'"):
        await models.register("failing", "other")


async def same(school: School, job_id: str) -> JobState:
    """Wait for its end; the model is that of quiet times to the last bit, and so is all that it tells of its rounds."""
    if not calm:
        await school.drop("calm", **LONG)
        model = (await school.phase("calm", "done")).model
        assert model is not None
        calm.append(model.id)
    done = await school.phase(job_id, "done")
    assert done.model is not None
    assert done.model.id == calm[0]
    return done


async def test_a_killed_brain_changes_no_bit(school: School) -> None:
    await school.drop("brain", **LONG)
    for number in (5, 60, 120):
        assert school.kill_brains(await school.rounds("brain", number)) == 1
    assert (await same(school, "brain")).fence == 1


async def test_a_killed_coordinator_changes_no_bit(school: School) -> None:
    await school.drop("coordinator", **LONG)
    for number in (30, 90):
        node = await school.rounds("coordinator", number)
        school.grid.nodes[node].kill()
        await school.coordinator("coordinator", other_than=node)
    await school.heal()  # not between them: rounds go on meanwhile, and the job may be over
    assert (await same(school, "coordinator")).fence >= 3


async def test_a_frozen_coordinator_is_deposed_and_changes_no_bit(school: School) -> None:
    await school.drop("frozen", **LONG)
    node = await school.rounds("frozen", 30)
    school.grid.nodes[node].signal(signal.SIGSTOP)
    await school.coordinator("frozen", other_than=node)
    school.grid.nodes[node].signal(signal.SIGCONT)
    assert (await same(school, "frozen")).fence >= 2
    await school.heal()


async def test_killed_and_frozen_nodes_change_no_bit(school: School) -> None:
    await school.drop("workers", **LONG)
    node = await school.rounds("workers", 30)
    one, other = [name for name in school.grid.nodes if name != node]
    school.grid.nodes[one].kill()
    await school.rounds("workers", 60)
    await school.heal()
    school.grid.nodes[other].signal(signal.SIGSTOP)
    await school.rounds("workers", 90)
    school.grid.nodes[other].signal(signal.SIGCONT)
    await same(school, "workers")
    await school.heal()


async def test_a_coordinator_that_leaves_in_order_hands_over_at_once(school: School) -> None:
    await school.drop("drained", **LONG)
    node = await school.rounds("drained", 60)
    school.grid.nodes[node].signal(signal.SIGTERM)
    other = await school.coordinator("drained", other_than=node)
    state = await school.state("drained")
    assert other != node
    assert state is not None
    assert state.checkpoint is not None
    assert state.checkpoint.round >= 60, "it was saved as it was handed over"
    await same(school, "drained")
    assert school.grid.nodes[node].wait(15.0) == 0
    await school.heal()


async def test_a_state_that_somebody_removes_costs_the_job_nothing_but_time(school: School) -> None:
    await school.drop("removed", **LONG)
    await school.rounds("removed", 60)
    await school.client.session.delete(school.client.paths.job_state("removed"), -1)
    await same(school, "removed")


async def test_a_job_is_paused_resumed_and_stopped(school: School) -> None:
    await school.drop("p", **LONG)
    await school.rounds("p", 30)
    await school.want("p", "pause")
    paused = await school.phase("p", "paused", 5.0)
    assert paused.checkpoint is not None
    assert paused.checkpoint.round >= 30
    assert len(paused.checkpoint.nodes) == 2
    assert await school.holder("p") is None

    async def no_brain_is_left() -> bool:
        return not any(school.children(node, "zkd-brain") for node in school.grid.nodes)

    await until(no_brain_is_left, 3.0, "a paused job has no brain")
    await school.want("p", "run")
    await school.rounds("p", paused.checkpoint.round + 30)
    await school.want("p", "stop")
    done = await school.phase("p", "done", 10.0)
    assert done.fence == 2
    assert done.summary is not None
    assert done.summary.reason == "stopped"
    assert paused.checkpoint.round + 30 <= done.summary.rounds < LONG["max_rounds"]  # type: ignore[operator]
    assert done.model is not None

    await school.drop("later", **LONG)
    await school.rounds("later", 30)
    await school.want("later", "pause")
    paused = await school.phase("later", "paused", 5.0)
    await school.want("later", "stop")
    done = await school.phase("later", "done", 10.0)
    assert done.summary is not None
    assert paused.checkpoint is not None
    assert done.summary.rounds == paused.checkpoint.round, "it ends with what there is"


async def test_deleting_a_job_ends_and_removes_all_of_it(school: School) -> None:
    await school.drop("over", **SHORT)
    await school.phase("over", "done")
    await school.drop("running", **LONG)
    await school.rounds("running", 60)
    for job_id in ("over", "running"):
        await school.delete(job_id)

        async def is_gone(job_id: str = job_id) -> bool:
            found = await school.state(job_id), await school.holder(job_id), await school.files(job_id)
            return found == (None, None, {})

        await until(is_gone, 5.0, f"all of {job_id} is gone")
    assert not any(school.children(node, "zkd-brain") for node in school.grid.nodes)


async def test_a_dataset_that_is_removed_fails_its_job_with_words(school: School) -> None:
    await school.client.datasets.put("gone", {"x": X, "y": Y}, parts=4, replicas=1)
    await school.drop("homeless", **LONG | {"dataset": "gone", "max_rounds": 100_000})
    await school.rounds("homeless", 30)
    await school.client.datasets.rm("gone")
    failed = await school.phase("homeless", "failed", 40.0)
    assert "gone@1 was removed" in (failed.error or ""), failed.error


async def test_a_job_waits_for_the_node_that_has_the_only_copy(school: School) -> None:
    await school.client.datasets.put("single", {"x": X, "y": Y}, parts=8, replicas=1)
    await school.drop("waits", **LONG | {"dataset": "single"})
    node = await school.rounds("waits", 30)
    other = next(name for name in school.grid.nodes if name != node)
    school.grid.nodes[other].kill()

    async def says_so() -> bool:
        state = await school.state("waits")
        return state is not None and any("no live node holds it" in line for line in state.progress.waits_for)

    await until(says_so, 15.0, "it says what it waits for")
    await school.heal()
    done = await school.phase("waits", "done")
    assert done.progress.waits_for == []


async def test_two_jobs_share_the_nodes(school: School) -> None:
    await asyncio.gather(*(school.drop(job_id, **LONG) for job_id in ("left", "right")))
    for job_id in ("left", "right"):
        await same(school, job_id)
