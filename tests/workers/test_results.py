"""Values come back as JSON text, or as a file when they are large; never as half of one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from pathlib import Path

import numpy

from tests.workers.running import call, open_pool, run
from zkd.workers import Call, Failed, Finished, Pool, Rejected


async def test_a_value_is_json_text(pool: Pool) -> None:
    outcome = await run(pool, "plus", 1, 2)
    assert isinstance(outcome, Finished)
    assert (outcome.value, outcome.blob) == (b"3", None)
    assert 0 < outcome.run_s < 1


async def test_named_arguments_and_items(pool: Pool) -> None:
    named = await pool.run(Call(kernel="plus", args=b"[1]", kwargs=b'{"b": 10}'), timeout_s=10)
    assert isinstance(named, Finished)
    assert named.value == b"11"
    many = await pool.run(Call(kernel="plus", items=b"[1,2,3]", args=b"[10]"), timeout_s=10)
    assert isinstance(many, Finished)
    assert many.value == b"[11,12,13]"
    none = await pool.run(Call(kernel="plus", items=b"[]"), timeout_s=10)
    assert isinstance(none, Finished)
    assert none.value == b"[]"


async def test_a_large_array_becomes_an_npy_file(pool: Pool, tmp_path: Path) -> None:
    outcome = await run(pool, "zeros", 100_000)
    assert isinstance(outcome, Finished)
    assert outcome.value is None
    assert outcome.blob is not None
    data = outcome.blob.path.read_bytes()
    assert outcome.blob.format == "npy"
    assert outcome.blob.size == len(data)
    assert outcome.blob.sha256 == hashlib.sha256(data).hexdigest()
    assert numpy.array_equal(numpy.load(outcome.blob.path), numpy.zeros(100_000))
    assert os.listdir(tmp_path) == [outcome.blob.path.name]


async def test_another_large_value_becomes_a_json_file(pool: Pool) -> None:
    outcome = await run(pool, "many_words", 100, inline_max=200)
    assert isinstance(outcome, Finished)
    assert outcome.blob is not None
    assert outcome.blob.format == "json"
    assert json.loads(outcome.blob.path.read_text()) == ["word"] * 100


async def test_equal_large_results_have_files_of_their_own(pool: Pool) -> None:
    first, second = await asyncio.gather(run(pool, "zeros", 100_000), run(pool, "zeros", 100_000))
    assert isinstance(first, Finished)
    assert isinstance(second, Finished)
    assert first.blob is not None
    assert second.blob is not None
    assert first.blob.sha256 == second.blob.sha256
    assert first.blob.path != second.blob.path


async def test_a_result_up_to_the_limit_travels_in_the_frame(pool: Pool) -> None:
    size = len(json.dumps(["word"] * 30_000, separators=(",", ":")))
    inline = await run(pool, "many_words", 30_000, inline_max=size)
    assert isinstance(inline, Finished)
    assert inline.value is not None
    assert len(inline.value) == size


async def test_a_run_that_was_killed_leaves_no_file(tmp_path: Path) -> None:
    async with open_pool(tmp_path, 1) as pool:
        for _ in range(5):
            running = asyncio.ensure_future(run(pool, "zeros", 20_000_000))
            await asyncio.sleep(0.1)
            running.cancel()
            await asyncio.wait([running])
            assert isinstance(await run(pool, "plus", 1), Finished)
    assert os.listdir(tmp_path) == []


async def test_what_cannot_be_sent_fails_with_advice(pool: Pool) -> None:
    outcome = await run(pool, "unsendable")
    assert isinstance(outcome, Failed)
    assert outcome.kind == "NotData"
    assert outcome.message.startswith("$.a: the kernel's result cannot be sent: a value of type set is not plain data")


async def test_wrong_calls_are_rejected_with_their_place(pool: Pool) -> None:
    unknown = await run(pool, "no_such_kernel")
    assert isinstance(unknown, Rejected)
    assert unknown.path == "$.kernel"
    wrong = await run(pool, "nap", "soon")
    assert isinstance(wrong, Rejected)
    assert wrong.path == "$.args[0]"
    hostile = await pool.run(Call(kernel="plus", args=b'[1, {"'), timeout_s=10)
    assert isinstance(hostile, Rejected)
    deep = await pool.run(Call(kernel="plus", args=b"[" * 100_000), timeout_s=10)
    assert isinstance(deep, Rejected)


async def test_large_arguments_go_through_whole_and_endless_ones_are_rejected(pool: Pool) -> None:
    numbers = list(range(500_000))
    outcome = await run(pool, "total", numbers)
    assert isinstance(outcome, Finished)
    assert json.loads(outcome.value or b"") == sum(numbers)
    endless = await pool.run(Call(kernel="plus", args=b"[" + b" " * 65 * 2**20 + b"]"))
    assert isinstance(endless, Rejected)


async def test_a_kernel_knows_its_task(pool: Pool) -> None:
    outcome = await pool.run(call("who", task_id="t-9", attempt=3, fence="7"), timeout_s=10)
    assert isinstance(outcome, Finished)
    assert json.loads(outcome.value or b"") == ["t-9", 3, "7"]


async def test_a_kernel_may_run_a_loop_of_its_own(pool: Pool) -> None:
    outcome = await run(pool, "run_a_loop")
    assert isinstance(outcome, Finished)
    assert outcome.value == b"5"
