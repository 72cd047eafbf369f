"""What a predictor promises: the first good answer within the deadline, from whichever node gives it, and clear words
when there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from tests.client.oracles import (
    TOKEN,
    Oracle,
    Temple,
    answer,
    be_silent,
    fail,
    know_nothing,
    refuse,
    shed,
    talk_nonsense,
)
from zkd.client import Client
from zkd.client.predictor import Predictor
from zkd.codec import encode
from zkd.errors import BadModel, BadRows, ModelNotFound, NotPredicted
from zkd.paths import Paths
from zkd.registry import Alias, Canary, Feature, ModelFile, ModelHead, ModelVersion
from zkd.zk import Session, ensure_path
from zkd.zk.server import EmbeddedServer

X = np.array([[1.0, 2.0], [0.1, 0.2], [1e300, -1.0]])
SUMS = X.sum(axis=1)
PATIENT_S = 30.0  # a deadline that is not what the test is about


@pytest.fixture
async def temple(embedded: EmbeddedServer) -> AsyncIterator[Temple]:
    async with Session(embedded.connect_string) as session:
        await session.connected(10)
        temple = Temple(session, Paths("/zkd"))
        await temple.open()
        yield temple
        await temple.close()


@pytest.fixture
async def client(embedded: EmbeddedServer, temple: Temple) -> AsyncIterator[Client]:
    async with Client(embedded.connect_string, connect_timeout_s=10) as client:
        yield client


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    give_up = time.monotonic() + 30.0
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < give_up, f"not within 30 s: {what}"
        await asyncio.sleep(0.005)


async def knows_what_is_late(predictor: Predictor) -> None:
    for _ in range(25):
        await predictor(X)


# --- Rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [X, X.tolist(), {"a": X[:, 0], "b": X[:, 1]}, [{"a": row[0], "b": row[1]} for row in X.tolist()]],
    ids=["matrix", "lists", "columns", "objects"],
)
async def test_rows_may_come_in_any_form_and_no_bit_is_another(client: Client, temple: Temple, rows: object) -> None:
    await temple.add("a")
    async with client.predictor("sums@live", deadline_s=PATIENT_S) as predictor:
        np.testing.assert_array_equal(await predictor(rows), SUMS, strict=True)
    assert temple.oracles["a"].asked[0]["ref"] == "sums@live"


async def test_large_arrays_travel_as_bytes_and_small_ones_as_text(client: Client, temple: Temple) -> None:
    oracle = await temple.add("a")
    many = np.random.default_rng(1).normal(size=(5000, 3))
    async with client.predictor("sums", deadline_s=PATIENT_S, missing="propagate") as predictor:
        np.testing.assert_array_equal(await predictor(many), many.sum(axis=1), strict=True)
        np.testing.assert_array_equal(await predictor(many[:3]), many[:3].sum(axis=1), strict=True)
    large, small = oracle.asked
    assert isinstance(large["rows"], np.ndarray)
    assert isinstance(small["rows"], list)
    for asked in oracle.asked:
        assert (asked["missing"], asked["want"]) == ("propagate", ["prediction"])
        assert 0 < asked["deadline_ms"] <= 1000 * PATIENT_S


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"a": [1.0, 2.0], "b": [1.0]}, "columns of one length"),
        ([[1.0], [1.0, 2.0]], "one length"),
        ([1.0, 2.0], "got the shape"),
        ({}, "columns by name"),
        (np.array([["2020-01-01"]], "M8[D]"), "expected numbers"),
        ([{"a": object()}], "expected numbers"),
    ],
    ids=["uneven columns", "uneven rows", "a vector", "nothing", "dates", "objects"],
)
async def test_rows_that_cannot_be_sent_are_an_error_of_this_line(
    client: Client, temple: Temple, rows: object, words: str
) -> None:
    oracle = await temple.add("a")
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        with pytest.raises(BadRows, match=words):
            await predictor(rows)
    assert not oracle.asked


async def test_what_a_model_refuses_is_told_in_its_words_and_asked_once(client: Client, temple: Temple) -> None:
    oracles = [await temple.add(name, refuse) for name in "abc"]
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        with pytest.raises(BadRows, match="rows: expected 4 numbers, got 3"):
            await predictor(X)
    assert sum(len(oracle.asked) for oracle in oracles) == 1


def test_options_that_contradict_each_other_are_refused(client_of_nobody: Client) -> None:
    for options, words in [
        ({"model": "no/name"}, "expected NAME"),
        ({"model": "a", "combine": "vote"}, "of several models"),
        ({"model": ["a", "b"], "combine": "best"}, "mean, weighted, vote"),
        ({"model": ["a", "b"], "weights": [1.0]}, "one for each of 2"),
        ({"model": ["a", "b"], "quorum": 3}, "expected 1 to 2"),
    ]:
        with pytest.raises(BadModel, match=words):
            client_of_nobody.predictor(**options)  # type: ignore[arg-type]
    with pytest.raises(BadRows, match="deadline_s"):
        client_of_nobody.predictor("a", deadline_s=0.0)
    with pytest.raises(BadRows, match="want"):
        client_of_nobody.predictor("a", want=["reasons"])


@pytest.fixture
def client_of_nobody() -> Client:
    return Client("127.0.0.1:1")


# --- Whoever answers ------------------------------------------------------------------------------------------


async def test_a_silent_node_is_overtaken_before_the_deadline(client: Client, temple: Temple) -> None:
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        good = await temple.add("good")
        await until(lambda: "good" in predictor._view.nodes, "it is known")
        await knows_what_is_late(predictor)
        silent = await temple.add("silent", be_silent)
        await until(lambda: "silent" in predictor._view.nodes, "it is known")
        while (told := await predictor.ask(X)).asked[0] != "silent":
            pass
        assert told.asked == ("silent", "good")
        assert told.node == "good"
        assert told.seconds < PATIENT_S * 0.4, "long before it would be in danger"
        await until(lambda: silent.hung_up == len(silent.asked), "the one that is too late is hung up on")
        assert good.asked


async def test_a_silent_node_is_passed_over_after_a_while(client: Client, temple: Temple) -> None:
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        await temple.add("good")
        await until(lambda: "good" in predictor._view.nodes, "it is known")
        await knows_what_is_late(predictor)
        await temple.add("silent", be_silent)
        await until(lambda: "silent" in predictor._view.nodes, "it is known")
        asked = [(await predictor.ask(X)).asked for _ in range(60)]
        assert 1 <= sum("silent" in nodes for nodes in asked) <= 10, "of 60, half of which it would have had"


async def test_without_hedging_nobody_is_asked_twice_for_what_is_merely_late(client: Client, temple: Temple) -> None:
    silent, other = await temple.add("silent", be_silent), await temple.add("other", be_silent)
    async with client.predictor("sums", deadline_s=PATIENT_S, hedge=False) as predictor:
        predictor._choice.took(0.001)
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(predictor(X))
            await until(lambda: bool(silent.asked or other.asked), "one was asked")
            for oracle in (silent, other):
                oracle.go_on.set()
            np.testing.assert_array_equal(await asked, SUMS)
    assert len(silent.asked) + len(other.asked) == 1


async def test_in_danger_another_node_is_asked_though_nothing_is_known_yet(client: Client, temple: Temple) -> None:
    async def the_second(oracle: Oracle, request: object, asked: object) -> object:
        how = be_silent if sum(len(each.asked) for each in temple.oracles.values()) == 1 else answer
        return await how(oracle, request, asked)  # type: ignore[arg-type]

    for name in ("a", "b"):
        await temple.add(name, the_second)  # type: ignore[arg-type]
    async with client.predictor("sums", deadline_s=6.0, hedge=False) as predictor:
        told = await predictor.ask(X)
        np.testing.assert_array_equal(told.prediction, SUMS)
        assert len(told.asked) == 2


async def test_a_node_that_leaves_the_tree_is_not_waited_for(client: Client, temple: Temple) -> None:
    silent = await temple.add("silent", be_silent)
    async with client.predictor("sums", deadline_s=1000.0) as predictor, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(predictor.ask(X))
        await silent.came.wait()
        await temple.leave("silent")
        await temple.add("heir")
        told = await asyncio.wait_for(asked, 30.0)
        assert (told.node, told.asked) == ("heir", ("silent", "heir"))


@pytest.mark.parametrize("how", [fail, talk_nonsense, shed], ids=["fails", "nonsense", "sheds"])
async def test_another_node_answers_for_one_that_does_not(
    client: Client, temple: Temple, how: Callable[..., Awaitable[object]]
) -> None:
    bad, good = await temple.add("bad", how), await temple.add("good")  # type: ignore[arg-type]
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        for _ in range(20):
            np.testing.assert_array_equal(await predictor(X), SUMS)
    assert len(good.asked) == 20
    assert len(bad.asked) <= 10, "it is passed over"


async def test_a_killed_node_costs_no_answer(client: Client, temple: Temple) -> None:
    for name in ("a", "b", "c"):
        await temple.add(name, be_silent)
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(predictor(X + number)) for number in range(30)]
        await until(lambda: sum(len(each.asked) for each in temple.oracles.values()) == 30, "all were asked")
        victim = max(temple.oracles.values(), key=lambda oracle: len(oracle.asked))
        others = [oracle for oracle in temple.oracles.values() if oracle is not victim]
        await victim.stop()
        for oracle in others:
            oracle.go_on.set()
        for number, each in enumerate(asked):
            np.testing.assert_array_equal(await each, (X + number).sum(axis=1))


async def test_a_full_cluster_is_told_at_once_and_when_to_come_back(client: Client, temple: Temple) -> None:
    for name in ("a", "b"):
        await temple.add(name, shed)
    async with client.predictor("sums", deadline_s=5.0) as predictor:
        with pytest.raises(NotPredicted, match=r"no node takes more; .*the queue is full") as caught:
            await predictor(X)
    assert (caught.value.kind, caught.value.retry_after_s) == ("full", 7.0)
    assert sum(len(oracle.asked) for oracle in temple.oracles.values()) == 2, "each once"


async def test_the_deadline_holds_whatever_nodes_do(client: Client, temple: Temple) -> None:
    silent = await temple.add("silent", be_silent)
    await temple.add("failing", fail)
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        with pytest.raises(
            NotPredicted, match=r"no answer within 0.2 s; .*it fell over.*silent did not answer"
        ) as caught:
            await predictor(X, deadline_s=0.2)
        assert caught.value.kind == "deadline"
        await until(lambda: silent.hung_up == len(silent.asked), "nobody is left waiting")


async def test_a_model_is_unknown_when_every_node_says_so(client: Client, temple: Temple) -> None:
    late = await temple.add("late", know_nothing)
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        with pytest.raises(ModelNotFound, match="there is no model sums"):
            await predictor(X)
        await temple.add("quick")
        await until(lambda: len(predictor._view.nodes) == 2, "it is known")
        for _ in range(5):
            np.testing.assert_array_equal(await predictor(X), SUMS)
    assert late.asked


async def test_a_model_that_nodes_do_not_know_yet_is_waited_for(client: Client, temple: Temple) -> None:
    node = await temple.add("a", know_nothing)
    await registered(temple)
    async with client.predictor("sums@live", deadline_s=PATIENT_S) as predictor, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(predictor(X))
        await until(lambda: len(node.asked) > 2, "it was asked again")
        node.how = answer
        np.testing.assert_array_equal(await asked, SUMS)


async def registered(temple: Temple) -> str:
    """Versions 3 and 4 of sums, of which live is the first; the path of that alias."""
    session, paths = temple.session, temple.paths
    await ensure_path(session, paths.model_versions("sums"))
    await ensure_path(session, f"{paths.model('sums')}/aliases")
    await session.set(paths.model("sums"), encode(ModelHead(4)), version=-1)
    for number in (3, 4):
        version = ModelVersion(file=ModelFile("0" * 64, 1), kind="linear", features=[Feature("a"), Feature("b")])
        await session.create(paths.model_version("sums", number), encode(version))
    alias = f"{paths.model('sums')}/aliases/live"
    await session.create(alias, encode(Alias(3)))
    return alias


async def test_nodes_that_drain_are_asked_only_when_there_are_no_others(client: Client, temple: Temple) -> None:
    draining = await temple.add("draining")
    await temple.leave("draining")
    await temple.enter("draining", draining=True)
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        await predictor(X)
        await temple.add("fresh")
        await until(lambda: list(predictor._view.nodes) == ["fresh"], "it is known")
        for _ in range(10):
            await predictor(X)
    assert len(draining.asked) == 1


async def test_a_token_that_was_changed_is_read_again(client: Client, temple: Temple) -> None:
    oracle = await temple.add("a")
    await temple.session.set(temple.paths.token, b"another", version=-1)
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        assert predictor._view.token == "another"
        await temple.session.set(temple.paths.token, TOKEN.encode(), version=-1)
        np.testing.assert_array_equal(await predictor(X), SUMS)
    assert oracle.asked


async def test_while_zookeeper_is_away_answers_come_as_before(
    client: Client, temple: Temple, embedded: EmbeddedServer
) -> None:
    await temple.add("a")
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        await predictor(X)
        embedded.faults.partition(())
        for _ in range(5):
            np.testing.assert_array_equal(await predictor(X), SUMS)
        embedded.faults.heal()


async def test_a_node_that_says_it_is_busy_is_spared(client: Client, temple: Temple) -> None:
    busy, idle = await temple.add("busy"), await temple.add("idle")
    busy.queued = 100
    async with client.predictor("sums", deadline_s=PATIENT_S, hedge=False) as predictor:
        for _ in range(60):
            await predictor(X)
    assert len(busy.asked) < 20 < len(idle.asked)


async def test_a_remembered_answer_asks_nobody_until_the_alias_moves(client: Client, temple: Temple) -> None:
    oracle = await temple.add("a")
    session, alias = temple.session, await registered(temple)
    async with client.predictor("sums@live", deadline_s=PATIENT_S, cache_bytes=10_000) as predictor:
        first = await predictor.ask(X)
        again = await predictor.ask(X.copy())
        assert (first.is_remembered, again.is_remembered, again.asked) == (False, True, ())
        np.testing.assert_array_equal(again.prediction, SUMS)
        assert not (await predictor.ask(X + 1)).is_remembered
        assert not (await predictor.ask(X, want=["prediction"])).is_remembered, "another question"
        assert len(oracle.asked) == 3
        for number in range(40):  # of some 1,000 bytes each
            await predictor(X + 2 + number)
        assert len(predictor._cache._kept) < 10  # type: ignore[union-attr]
        await predictor.ask(X)
        oracle.version = 4
        await session.set(alias, encode(Alias(4)), version=-1)
        await until(lambda: predictor._view.version == 4, "it is known")
        moved = await predictor.ask(X)
        assert (moved.is_remembered, moved.version) == (False, 4)
        await session.set(alias, encode(Alias(4, Canary(version=3, percent=10.0, since_ms=0))), version=-1)
        await until(lambda: predictor._view.version is None, "there are two now")
        await until(lambda: not predictor._view._changed.is_set(), "it was read")
        assert not (await predictor.ask(X)).is_remembered, "a canary gets its share"


# --- More than one --------------------------------------------------------------------------------------------


async def test_many_answers_come_in_order_and_some_at_a_time(client: Client, temple: Temple) -> None:
    oracle = await temple.add("a", be_silent)
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor, asyncio.TaskGroup() as tasks:

        async def all_of_them() -> list[float]:
            batches = ([[float(number), 1.0]] for number in range(40))
            return [float(told.prediction[0]) async for told in predictor.many(batches, at_once=4)]  # type: ignore[index]

        asked = tasks.create_task(all_of_them())
        await until(lambda: len(oracle.asked) == 4, "four are on their way")
        oracle.go_on.set()
        assert await asked == [number + 1.0 for number in range(40)]


async def test_one_bad_batch_of_many_is_raised_in_its_turn(client: Client, temple: Temple) -> None:
    await temple.add("a")
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        came = []
        with pytest.raises(BadRows):  # noqa: PT012 - what came before is kept
            async for told in predictor.many([X, X, [1.0], X]):
                came.append(told.rows)
        assert came == [3, 3]
        np.testing.assert_array_equal(await predictor(X), SUMS)


async def test_no_more_are_on_their_way_than_were_allowed(client: Client, temple: Temple) -> None:
    oracle = await temple.add("a", be_silent)
    async with client.predictor("sums", deadline_s=PATIENT_S, at_once=3) as predictor, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(predictor(X)) for _ in range(9)]
        await until(lambda: len(oracle.asked) == 3, "three were asked")
        with pytest.raises(NotPredicted):
            await predictor(X, deadline_s=0.05)
        assert len(oracle.asked) == 3
        oracle.go_on.set()
        await asyncio.gather(*asked)


async def test_the_tries_of_one_request_have_one_key_and_others_another(client: Client, temple: Temple) -> None:
    await temple.add("a", fail)
    await temple.add("b", fail)
    async with client.predictor("sums", deadline_s=PATIENT_S) as predictor:
        for key in (None, None, "user-17"):
            with pytest.raises(NotPredicted):
                await predictor(X, key=key, deadline_s=0.1)
    keys = [asked["key"] for oracle in temple.oracles.values() for asked in oracle.asked]
    assert len(keys) > 3
    assert len(set(keys)) == 3
    assert "user-17" in keys


async def test_an_ensemble_is_asked_for_as_one(client: Client, temple: Temple) -> None:
    oracle = await temple.add("a")
    members = ["sums@live", "other@3"]
    async with client.predictor(members, weights=[2, 1], quorum=1, deadline_s=PATIENT_S) as predictor:
        np.testing.assert_array_equal(await predictor(X), SUMS)
    asked = oracle.asked[0]
    assert asked["ref"] is None
    assert [asked[name] for name in ("members", "combine", "weights", "quorum")] == [members, "weighted", [2.0, 1.0], 1]
