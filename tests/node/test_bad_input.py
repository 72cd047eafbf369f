"""Whatever is dropped gets an answer within a second that says what was expected, and harms nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.node.conftest import Site
from zkd.errors import ZooKeeperError
from zkd.node import dispatcher
from zkd.records import Result
from zkd.zk import Acl, Create, Perms

HIDDEN = [Acl(Perms.CREATE | Perms.WRITE | Perms.DELETE | Perms.ADMIN, "world", "anyone")]
NOBODY = ("digest", "nobody:AAAAAAAAAAAAAAAAAAAAAAAAAAA=")
SEALED = [Acl(Perms.ALL, *NOBODY)]
SEALED_BUT_CREATE = [Acl(Perms.CREATE, "world", "anyone")]
STICKY = [Acl(Perms.CREATE | Perms.READ, "world", "anyone")]  # what is below it stays

GOOD = {"kernel": "numpy.sum", "args": [[1, 2, 3]]}


def with_fields(**fields: Any) -> bytes:
    return json.dumps({"kernel": "echo", **fields}).encode()


def nested(depth: int, inside: bytes = b"") -> bytes:
    return b'{"kernel":"echo","args":[%b%b%b]}' % (b"[" * depth, inside, b"]" * depth)


# what is dropped, and what the answer has to speak of: its place, and a word of the expectation
BAD: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "$", "expected a JSON object"),
    "blank": (b" \n\t ", "$", "expected a JSON object"),
    "a megabyte": (b'{"kernel":"echo","args":["' + b"x" * 1_000_000 + b'"]}', "$", "at most 524288 bytes"),
    "a byte too large": (b'{"kernel":"echo"}' + b" " * (524_289 - 17), "$", "at most 524288 bytes"),
    "not utf-8": (b'{"kernel":"\xff\xfe"}', "$", "expected UTF-8"),
    "utf-16": ('{"kernel":"echo"}'.encode("utf-16"), "$", "expected"),
    "not json": (b"kernel=echo", "$", "expected JSON"),
    "two values": (b'{"kernel":"echo"}{"kernel":"echo"}', "$", "expected JSON"),
    "cut short": (b'{"kernel":"ec', "$", "expected JSON"),
    "a list": (b'["echo"]', "$", "object"),
    "null": (b"null", "$", "object"),
    "nested too deeply": (nested(100_000), "$", "depth"),
    "never closed": (b"[" * 100_000, "$", "expected"),
    "objects nested too deeply": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "$", "expected"),
    "a name twice": (b'{"kernel":"echo","kernel":"nap"}', "$..kernel", "once"),
    "a name twice below": (b'{"kernel":"echo","args":[{"a":1,"a":2}]}', "$..a", "once"),
    "a name twice, escaped": (b'{"kernel":"echo","args":[{"a":1,"\\u0061":2}]}', "$..a", "once"),
    "nan": (b'{"kernel":"echo","args":[NaN]}', "$", "expected JSON"),
    "infinity": (b'{"kernel":"echo","priority":1e999}', "$.priority", "out of range"),
    "no kernel": (b"{}", "$", "kernel"),
    "kernel is a number": (with_fields(kernel=5), "$.kernel", "str"),
    "kernel is empty": (with_fields(kernel=""), "$.kernel", "length"),
    "kernel is too long": (with_fields(kernel="k" * 257), "$.kernel", "length"),
    "kernel is a lone surrogate": (b'{"kernel":"\\ud800"}', "$", "expected"),
    "kernel is unknown": (with_fields(kernel="numpy.summ"), "$.kernel", "did you mean 'numpy.sum'"),
    "kernel is a path": (with_fields(kernel="os.system", args=["true"]), "$.kernel", "no node has a kernel"),
    "kernel is a dunder": (with_fields(kernel="__import__"), "$.kernel", "no node has a kernel"),
    "unknown field": (with_fields(prio=1), "$.prio", "expected one of kernel, args"),
    "args is an object": (with_fields(args={}), "$.args", "array"),
    "args is null": (with_fields(args=None), "$.args", "array"),
    "kwargs is a list": (with_fields(kwargs=[]), "$.kwargs", "object"),
    "items is a number": (with_fields(items=5), "$.items", "array"),
    "priority is text": (with_fields(priority="high"), "$.priority", "int"),
    "priority is huge": (b'{"kernel":"echo","priority":' + b"9" * 100_000 + b"}", "$.priority", "out of range"),
    "priority is out of range": (with_fields(priority=1001), "$.priority", "1000"),
    "retries is negative": (with_fields(retries=-1), "$.retries", "0"),
    "retries is true": (with_fields(retries=True), "$.retries", "int"),
    "timeout is nothing": (with_fields(timeout_s=0), "$.timeout_s", "0"),
    "timeout is a century": (with_fields(timeout_s=3.2e9), "$.timeout_s", "expected"),
    "delay is negative": (with_fields(delay_s=-1), "$.delay_s", "0"),
    "labels is a list": (with_fields(labels=["a"]), "$.labels", "object"),
    "label is a number": (with_fields(labels={"a": 1}), "$.labels", "str"),
    "slots is nought": (with_fields(slots=0), "$.slots", "1"),
    "memory is text": (with_fields(memory="1GB"), "$.memory", "int"),
    "memory is more than there is": (with_fields(memory=2**63), "$.memory", "<= 4611686018427387904"),
    "no such dataset": (with_fields(dataset="d"), "$.dataset", "dataset"),
    "partition alone": (with_fields(partition=1), "$.partition", "dataset"),
    "columns alone": (with_fields(columns=["x"]), "$.columns", "dataset"),
    "combine alone": (with_fields(combine="echo"), "$.combine", "dataset"),
    "dataset is a path": (with_fields(dataset="../d"), "$.dataset", "regex"),
    "dataset of version nought": (with_fields(dataset="d@0"), "$.dataset", "regex"),
    "dataset of a named version": (with_fields(dataset="d@latest"), "$.dataset", "regex"),
    "dataset is too long": (with_fields(dataset="d" * 129), "$.dataset", "regex"),
    "partition is negative": (with_fields(dataset="d", partition=-1), "$.partition", "0"),
    "parts alone": (with_fields(parts=[1]), "$.parts", "dataset"),
    "parts twice": (with_fields(dataset="d", parts=[1, 2, 1]), "$.parts", "once"),
    "parts of one part": (with_fields(dataset="d", parts=[1], partition=1), "$.parts", "partition"),
    "items beside a dataset": (with_fields(dataset="d", items=[1]), "$.items", "columns"),
    "combine of one part": (with_fields(dataset="d", partition=0, combine="echo"), "$.combine", "partition"),
    "attempts that are none": (with_fields(attempts=[1]), "$.attempts", "object"),
}


async def rejected(site: Site, task_id: str, where: str, what: str, within_s: float = 3.0) -> Result:
    result = await site.user.result(task_id, within_s)
    assert result.status == "rejected", result
    assert result.error is not None
    assert (result.error.path or "").startswith(where), result.error
    assert what in result.error.message, result.error
    return result


async def still_works(site: Site) -> None:
    result = await site.user.result(await site.user.drop(GOOD))
    assert (result.status, bytes(result.value)) == ("done", b"6")


async def test_bad_tasks_are_rejected_with_the_place_and_the_expectation(site: Site) -> None:
    await site.node()
    await still_works(site)
    loop = asyncio.get_running_loop()
    faults = []
    for n, (name, (data, where, what)) in enumerate(BAD.items()):
        started = loop.time()
        task_id = await site.user.drop(data, f"bad-{n}")
        try:
            await rejected(site, task_id, where, what)
        except AssertionError as error:
            faults.append(f"{name}: {error}")
            continue
        took_s = loop.time() - started
        if took_s > 1.0:
            faults.append(f"{name}: took {took_s:.2f} s")
        if await site.user.is_there(site.user.paths.task(task_id)):
            faults.append(f"{name}: its znode is still there")
    assert faults == []
    await still_works(site)


async def test_many_bad_tasks_at_once_keep_no_good_one_waiting(site: Site) -> None:
    daemon = await site.node()
    ids = [f"bad-{n}" for n in range(len(BAD) * 3)]
    data = [what for what, _, _ in BAD.values()] * 3
    await asyncio.gather(*(site.user.drop(what, task_id) for what, task_id in zip(data, ids, strict=True)))
    await still_works(site)
    assert {result.status for result in await site.user.results(ids)} == {"rejected"}
    assert daemon.phase.value == "serving"


@pytest.mark.parametrize("inside", [b'{"a":1,"a":2}', b'{"blob":"x"}', b'{"blob":1,"a":{"a":1}}'])
async def test_no_depth_of_nesting_brings_a_node_down(site: Site, inside: bytes) -> None:
    """Each parser on the way gives up at a depth of its own, and in between lie those that only some survive."""
    await site.node()
    depths = [*range(1, 3000, 149), *range(470, 520, 7), *range(930, 1000, 3), 992, 993, 994, 995]
    ids = [await site.user.drop(nested(depth, inside), f"deep-{n}") for n, depth in enumerate(depths)]
    results = await site.user.results(ids)
    assert {result.status for result in results} <= {"rejected", "failed", "done"}
    await still_works(site)


BAD_IDS = [
    ".hidden",
    "-dash",
    "sp ace",
    "ünï",
    "\u202etxt",
    "{braces}",
    "%2e%2e",
    "x" * 129,
    "y" * 5_000,
]


async def test_ids_that_are_no_names_are_rejected(site: Site) -> None:
    await site.node()
    ids = [await site.user.drop(GOOD, task_id) for task_id in BAD_IDS]
    for task_id in ids:
        await rejected(site, task_id, "id", "expected 1 to 128 letters")
        assert not await site.user.is_there(site.user.paths.task(task_id))
    await still_works(site)


async def test_an_id_as_large_as_a_packet_brings_nobody_down(site: Site) -> None:
    """Its result would not fit into a transaction, for the path would be in it twice."""
    daemon = await site.node()
    task_id = "z" * 700_000
    await site.user.drop(GOOD, task_id)
    await still_works(site)
    await site.user.gone(site.user.paths.task(task_id))
    assert daemon.phase.value == "serving"


async def test_an_id_of_128_letters_is_fine(site: Site) -> None:
    await site.node()
    task_id = await site.user.drop(GOOD, "Z" + "." * 126 + "z")
    assert (await site.user.result(task_id)).status == "done"


async def test_children_below_a_task_do_not_keep_it(site: Site) -> None:
    await site.node(slots=1)
    gate = await site.user.drop({"kernel": "nap", "args": [0.5]}, "gate")
    paths = site.user.paths
    for task_id, data in (("good", GOOD), ("bad", b"junk"), ("gone", with_fields(kernel="gone"))):
        await site.user.drop(data, task_id)
        try:
            for below in ("/child", "/child/grandchild", "/child/grandchild/x"):
                await site.user.session.create(f"{paths.task(task_id)}{below}")
        except ZooKeeperError:
            assert task_id == "bad"  # it may be refused before we are done
    statuses = [result.status for result in await site.user.results(["gate", "good", "bad", "gone"])]
    assert statuses == ["done", "done", "rejected", "rejected"]
    for task_id in (gate, "good", "bad", "gone"):
        await site.user.gone(paths.task(task_id))
    await still_works(site)


async def test_a_task_that_zkd_may_not_read_is_rejected(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server keeps its events from us, so it is found by looking: in idle times, and in busy ones too."""
    monkeypatch.setattr(dispatcher, "RECONCILE_S", 0.3)
    await site.node()
    for n, acl in enumerate((HIDDEN, SEALED)):
        task_id = await site.user.drop(GOOD, f"hidden-{n}", acl=acl)
        waiting = asyncio.create_task(rejected(site, task_id, "$", "may read"))
        while n and not waiting.done():
            await still_works(site)
        assert "ACL" in ((await waiting).error or GOOD).message  # type: ignore[union-attr]
        await site.user.gone(site.user.paths.task(task_id))
    await still_works(site)


def sealed_children(path: str, data: bytes, acl: list[Acl] | None) -> list[Create]:
    """A task with a grandchild that nobody but an administrator can remove."""
    return [Create(path, data, acl=acl), Create(f"{path}/child", acl=STICKY), Create(f"{path}/child/x")]


async def test_a_task_that_zkd_may_neither_read_nor_remove_is_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RECONCILE_S", 0.3)
    await site.node()
    for n, data in enumerate((b"junk", json.dumps(GOOD).encode())):
        path = site.user.paths.task(f"sealed-{n}")
        await site.user.session.multi(sealed_children(path, data, SEALED_BUT_CREATE))
        assert (await site.user.result(f"sealed-{n}")).status == "rejected"
        await still_works(site)


async def test_a_task_that_cannot_be_removed_is_answered_and_keeps_no_slot(site: Site) -> None:
    trace = site.trace()
    await site.node(slots=1)
    for n in range(3):
        path = site.user.paths.task(f"kept-{n}")
        task = json.dumps({"kernel": "note", "args": [str(trace), f"kept-{n}"]}).encode()
        await site.user.session.multi(sealed_children(path, task, None))
        assert (await site.user.result(f"kept-{n}")).status == "done"
    await still_works(site)
    assert trace.read_text().split() == ["kept-0", "kept-1", "kept-2"]


async def test_a_task_that_is_hidden_after_it_was_read_keeps_no_slot(site: Site) -> None:
    """A change of an ACL is no event: whoever reads next finds out."""
    await site.node("a", slots=1)
    await site.node("b", slots=1)
    ids = []
    for n in range(6):
        task_id = await site.user.drop({"kernel": "nap", "args": [0.3], "retries": 1}, f"t-{n}")
        await site.user.session.set_acl(site.user.paths.task(task_id), SEALED, -1)
        ids.append(task_id)
    assert {result.status for result in await site.user.results(ids)} <= {"done", "rejected"}
    await still_works(site)
