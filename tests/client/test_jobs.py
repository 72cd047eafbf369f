"""Training jobs as a program sees them: dropped, followed over coordinators that come and go, steered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.client.coordinators import Cluster, a_round, coordinators
from tests.client.models import model_of
from zkd.client import Client
from zkd.codec import decode
from zkd.errors import (
    BadTraining,
    DatasetNotFound,
    DataUnavailable,
    JobExists,
    JobFailed,
    JobNotFound,
    ResultTimeout,
)
from zkd.jobs import FileRef, Job, Round
from zkd.zk.server import EmbeddedServer
from zkd.zk.server.wire import Op


@pytest.fixture
async def cluster(embedded: EmbeddedServer) -> AsyncIterator[Cluster]:
    async with coordinators(embedded.connect_string, "n1", "n2", "n3") as cluster:
        await cluster.keep_iris()
        yield cluster


@pytest.fixture
async def client(embedded: EmbeddedServer, cluster: Cluster) -> AsyncIterator[Client]:
    async with Client(embedded.connect_string) as client, asyncio.timeout(20):
        yield client


async def numbers(rounds: AsyncIterator[Round], count: int) -> list[int]:
    return [(await anext(rounds)).number for _ in range(count)]


# --- Dropping ---------------------------------------------------------------------------------------------


async def test_a_job_is_dropped_as_it_was_asked_for(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris", l2=0.5, validation=0.2, name="first")
    found = decode((await cluster.session.get("/zkd/jobs/first")).data, Job)
    assert (found.model, found.dataset, found.l2, found.validation and found.validation.share) == (
        "softmax",
        "iris",
        0.5,
        0.2,
    )
    assert "@" in (found.by or "")
    assert (await job.status()).phase == "waiting"
    assert job.left_out == {"name": "text: encode it as numbers first, such as a column of 0 and 1 for each value"}
    assert list(await client.jobs.list()) == ["first"]
    assert (await client.train("softmax", "iris@1")).id.startswith("softmax-")


async def test_what_cannot_be_is_refused_and_nothing_is_dropped(client: Client, cluster: Cluster) -> None:
    for model, dataset, terms, error, said in [
        ("sofmax", "iris", {}, BadTraining, "did you mean softmax"),
        ("softmax", "iris", {"target": "spezies"}, BadTraining, "did you mean 'species'"),
        ("softmax", "iris@7", {}, DatasetNotFound, "version 7 of dataset iris below /zkd; there are the versions 1"),
        ("softmax", "iris", {"name": "a/b"}, BadTraining, "name: expected 1 to 128 letters"),
        ("softmax", "iriss", {}, DatasetNotFound, "did you mean 'iris'?"),
        ("softmax", "adult", {}, DatasetNotFound, "there are iris"),
        ("softmax", "../x", {}, Exception, "name: expected NAME or NAME@VERSION"),
    ]:
        with pytest.raises(error, match=said):
            await client.train(model, dataset, **terms)  # type: ignore[arg-type]
    assert await cluster.session.children("/zkd/jobs") == []


async def test_an_id_is_taken_once(client: Client, cluster: Cluster) -> None:
    await client.train("softmax", "iris", name="first")
    with pytest.raises(JobExists, match="first already"):
        await client.train("softmax", "iris", name="first")
    with pytest.raises(JobNotFound):
        await client.jobs.get("second")
    with pytest.raises(JobNotFound):
        await client.jobs.get("../first")


async def test_a_drop_whose_answer_is_lost_is_dropped_once(
    client: Client, cluster: Cluster, embedded: EmbeddedServer
) -> None:
    embedded.cut_after(Op.MULTI, path="/zkd/jobs/first")
    job = await client.train("softmax", "iris", name="first")
    assert (await job.status()).phase == "waiting"
    assert await cluster.session.children("/zkd/jobs") == ["first"]


async def test_a_drop_that_is_cancelled_leaves_no_job(
    client: Client, cluster: Cluster, embedded: EmbeddedServer
) -> None:
    checked = client.jobs.check
    about_to_drop = asyncio.Event()

    async def check(*args: Any, **terms: Any) -> Any:
        found = await checked(*args, **terms)
        embedded.delay(0.2)
        about_to_drop.set()
        return found

    client.jobs.check = check  # type: ignore[method-assign]
    dropping = asyncio.create_task(client.train("softmax", "iris"))
    await about_to_drop.wait()
    await asyncio.sleep(0.05)
    dropping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dropping
    embedded.heal()
    seen = await cluster.session.exists("/zkd/jobs")
    while seen is None or seen.cversion < 2:  # it was made, and taken back
        await asyncio.sleep(0.01)
        seen = await cluster.session.exists("/zkd/jobs")
    assert seen.num_children == 0


# --- Rounds -----------------------------------------------------------------------------------------------


async def test_every_round_comes_once_and_in_order_over_a_lost_coordinator(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    async with aclosing(job.rounds()) as rounds:
        first = asyncio.create_task(anext(rounds))
        office = await cluster.take(job.id, "n1", a_round(1))
        assert (await first).number == 1
        office.say(a_round(2), a_round(3), a_round(4))
        assert await numbers(rounds, 3) == [2, 3, 4]
        following = asyncio.create_task(anext(rounds))
        await cluster.lose(job.id)
        # Another one goes on from a checkpoint after round 2, does 3 and 4 again, and tells them, too.
        cluster.nodes["n2"].tells_all = True
        office = await cluster.take(job.id, "n2", a_round(1), a_round(2))
        office.say(a_round(3), a_round(4), a_round(5))
        assert (await following).number == 5
        await cluster.fail(job.id, "no more")
        assert [each.number async for each in rounds] == []


async def test_a_coordinator_that_hangs_is_left_when_it_is_deposed(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.following.ANSWER_S", 600.0)
    job = await client.train("softmax", "iris")
    cluster.nodes["n1"].is_silent = True
    await cluster.take(job.id, "n1", a_round(1))
    async with aclosing(job.rounds()) as rounds:
        first = asyncio.create_task(anext(rounds))
        while not cluster.nodes["n1"].asked:
            await asyncio.sleep(0.002)
        await cluster.session.delete(cluster.paths.coordinator(job.id), -1)
        await cluster.take(job.id, "n2", a_round(1), a_round(2))
        assert (await first).number == 1
        assert await numbers(rounds, 1) == [2]


async def test_rounds_go_on_when_zookeeper_was_away(client: Client, cluster: Cluster, embedded: EmbeddedServer) -> None:
    job = await client.train("softmax", "iris")
    office = await cluster.take(job.id, "n1", a_round(1))
    async with aclosing(job.rounds()) as rounds:
        assert await numbers(rounds, 1) == [1]
        embedded.drop_connections()
        office.say(a_round(2))
        assert await numbers(rounds, 1) == [2]
        following = asyncio.create_task(anext(rounds))
        await cluster.session.connected(5)
        await cluster.lose(job.id)
        await cluster.take(job.id, "n3", a_round(3))
        assert (await following).number == 3


async def test_what_happened_while_zookeeper_was_away_is_seen_when_it_is_back(
    client: Client, cluster: Cluster, embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.following.LOOK_AGAIN_S", 600.0)
    job = await client.train("softmax", "iris")
    async with aclosing(job.rounds()) as rounds:
        first = asyncio.create_task(anext(rounds))
        await asyncio.sleep(0.05)
        embedded.faults.is_refusing = True
        for connection in list(embedded.connections):
            if connection.peer.session is not None and connection.peer.session.session_id == client.session.session_id:
                connection.abort()
        await cluster.take(job.id, "n1", a_round(1))
        embedded.heal()
        assert (await first).number == 1


async def test_who_comes_late_hears_all_rounds(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    await cluster.take(job.id, "n1", *(a_round(number) for number in (1, 2, 3)))
    await cluster.fail(job.id, "no more")
    again = await client.jobs.get(job.id)
    assert [each.number async for each in again] == [1, 2, 3]
    assert [each.number async for each in again.rounds(after=2)] == [3]


async def test_rounds_that_nobody_tells_any_more_are_in_the_model(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    office = await cluster.take(job.id, "n1", a_round(1))
    async with aclosing(job.rounds()) as rounds:
        assert await numbers(rounds, 1) == [1]
        await cluster.end(job.id, model_of("softmax", "iris"), "n2")
        office.rounds.clear()
        await cluster.nodes["n1"].stop()
        rest = [each.number async for each in rounds]
    model = await job.model()
    assert [1, *rest] == [each.number for each in model.history]
    assert len(rest) > 3


async def test_leaving_early_leaves_the_job_alone_and_no_watch_behind(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    await cluster.take(job.id, "n1", a_round(1), a_round(2))
    before = len(client.session._watches)
    async with aclosing(job.rounds()) as rounds:
        async for each in rounds:
            assert each.number == 1
            break
    waiter = asyncio.create_task(job.wait())
    while len(client.session._watches) == before:
        await asyncio.sleep(0.002)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert len(client.session._watches) == before
    assert (await job.status()).desired == "run"


async def test_rounds_end_when_the_job_is_removed(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    rest = asyncio.create_task(_all(job.rounds()))
    await cluster.dropped(job.id)
    assert await job.cancel() is True
    assert await rest == []
    with pytest.raises(JobFailed, match="removed before it ended"):
        await job.wait()


async def _all(rounds: AsyncIterator[Round]) -> list[int]:
    return [each.number async for each in rounds]


# --- The end ----------------------------------------------------------------------------------------------


async def test_a_failed_job_raises_its_reason(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    waiter = asyncio.create_task(job.wait())
    await cluster.take(job.id, "n1")
    await cluster.fail(job.id, "features: NaN in length (3 rows)")
    with pytest.raises(JobFailed, match=rf"{job.id} failed: features: NaN in length \(3 rows\)"):
        await waiter


async def test_a_wait_is_bounded_by_its_caller(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    with pytest.raises(ResultTimeout, match="it goes on"):
        await job.wait(0.05)


async def test_a_model_is_taken_from_a_node_that_has_it_undamaged(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    await cluster.take(job.id, "n1")
    await cluster.end(job.id, b"a model", "n1", "n2", "n3")
    (digest,) = cluster.nodes["n1"].files
    cluster.nodes["n1"].files[digest] = b"another"
    cluster.nodes["n2"].files[digest] = b"a model and more"
    assert await job.model_file() == b"a model"


async def test_a_model_whose_nodes_are_lost_is_waited_for_until_others_have_it(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.training_job.FETCH_AGAIN_S", 0.01)
    job = await client.train("softmax", "iris")
    await cluster.take(job.id, "n1")
    await cluster.end(job.id, b"a model", "n1")
    (digest,) = cluster.nodes["n1"].files
    await cluster.nodes["n1"].stop()
    waiter = asyncio.create_task(job.model_file())
    await asyncio.sleep(0.05)
    cluster.nodes["n2"].files[digest] = b"a model"
    await cluster.change(job.id, model=FileRef(digest, 7, ["n1", "n2"], 3))
    assert await waiter == b"a model"


async def test_a_model_that_nobody_has_is_said_to_be_unavailable(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.client.training_job.FETCH_S", 0.0)
    job = await client.train("softmax", "iris")
    await cluster.take(job.id, "n1")
    await cluster.end(job.id, b"a model")
    await cluster.change(job.id, model=FileRef("0" * 64, 7, ["n1", "gone"], 3))
    with pytest.raises(DataUnavailable, match=r"n1 says HTTP 404.*gone is not here"):
        await job.model_file()


# --- Steering ---------------------------------------------------------------------------------------------


async def test_wishes_are_written_into_the_job_and_nothing_else_is_changed(client: Client, cluster: Cluster) -> None:
    text = b'{"model": "softmax", "dataset":"iris", "l2": 1.50}'
    await cluster.session.create("/zkd/jobs/typed", text)
    job = await client.jobs.get("typed")
    wishes = []
    for wish in (job.pause, job.pause, job.resume, job.stop):
        assert await wish() is True
        wishes.append(decode((await cluster.session.get("/zkd/jobs/typed")).data, Job).desired)
    assert wishes == ["pause", "pause", "run", "stop"]
    assert b'"l2":1.50' in (await cluster.session.get("/zkd/jobs/typed")).data


async def test_a_job_that_has_ended_hears_no_wish_and_is_not_cancelled(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris")
    await cluster.take(job.id, "n1")
    await cluster.end(job.id, b"a model", "n1")
    assert [await job.pause(), await job.resume(), await job.stop(), await job.cancel()] == [False] * 4
    assert await job.model_file() == b"a model"
    assert await job.remove() is True
    assert await job.remove() is False
    with pytest.raises(JobNotFound):
        await job.status()


async def test_a_job_that_ends_while_it_is_cancelled_keeps_its_model(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await client.train("softmax", "iris")
    await cluster.take(job.id, "n1")
    read = job._read

    async def read_and_end() -> list[Any]:
        before = await read()
        monkeypatch.setattr(job, "_read", read)
        await cluster.end(job.id, b"a model", "n1")
        return before

    monkeypatch.setattr(job, "_read", read_and_end)
    assert await job.cancel() is False
    assert await job.model_file() == b"a model"


async def test_another_job_of_the_same_id_is_another_job(client: Client, cluster: Cluster) -> None:
    job = await client.train("softmax", "iris", name="same")
    await cluster.take(job.id, "n1")
    await cluster.fail(job.id, "no")
    await job.remove()
    again = await client.train("softmax", "iris", name="same")
    assert (await again.status()).phase == "waiting"  # though the state of the first is still there
    assert await job.remove() is False
    with pytest.raises(JobFailed, match="was removed"):
        await job.wait()


async def test_what_is_no_job_is_listed_with_what_is_wrong(client: Client, cluster: Cluster) -> None:
    await cluster.session.create("/zkd/jobs/odd", b'{"model":"softmax","dataset":"iris","l3":1}')
    assert "l3" in ((await client.jobs.list())["odd"].error or "")
