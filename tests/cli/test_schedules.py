"""`zkd schedule`, `zkd limit` and what is seen of them, on a cluster of two nodes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

import zkd as library
from tests.cli.conftest import wait_until
from zkd.errors import BadRecord, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.cli.conftest import Dev, Ran

    Zkd = Callable[..., Ran]


@pytest.fixture(autouse=True)
def clean(zkd: Zkd) -> Iterator[None]:
    """No schedule outlives its test."""
    yield
    for name in zkd("get", "schedules", "-o", "name").out.split():
        zkd("schedule", "delete", name)
    for kernel in zkd("get", "limits", "-o", "name").out.split():
        zkd("limit", kernel, "--none")


def row(zkd: Zkd, name: str) -> dict[str, object]:
    found: dict[str, object] = zkd("get", "schedules", name, "-o", "json").json[0]
    return found


def test_a_schedule_is_set_fires_and_is_deleted(zkd: Zkd) -> None:
    ran = zkd("schedule", "every", "1", "tick", "numpy.sum", "[1, 2, 3]", "--retries", "1", "-k", "axis=0")
    assert ran.code == 0, ran.err
    assert re.fullmatch(r"tick set, next at 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ\n", ran.out)
    wait_until(lambda: row(zkd, "tick")["fired"] >= 2)  # type: ignore[operator]
    found = row(zkd, "tick")
    assert (found["timing"], found["kernel"], found["state"], found["error"]) == (
        "every 1 s",
        "numpy.sum",
        "active",
        None,
    )
    assert zkd("result", str(found["task"]), "--wait").out == "6\n"
    heading, line = zkd("get", "schedules").out.splitlines()
    assert heading.split() == ["NAME", "TIMING", "KERNEL", "STATE", "NEXT", "LAST", "FIRED", "SKIPPED", "ERROR"]
    assert line.startswith("tick  every 1 s  numpy.sum  active")
    described = zkd("describe", "schedule", "tick", "-o", "json").json
    assert described["schedule"]["task"] == {
        "kernel": "numpy.sum",
        "args": [[1, 2, 3]],
        "kwargs": {"axis": 0},
        "retries": 1,
    }
    assert described["noted"]["timing"] == "every 1 s"
    assert re.search(r"^  every_s: 1$", zkd("describe", "schedule", "tick").out, re.MULTILINE)
    ran = zkd("schedule", "delete", "ti")
    assert (ran.code, ran.out) == (0, "tick deleted\n")
    assert zkd("get", "schedules", "-o", "name").out == ""
    assert zkd("schedule", "delete", "tick").code == 3


def test_why_tells_when_a_schedule_fires(zkd: Zkd) -> None:
    zkd("schedule", "set", "s", "--cron", "0 3 1 1 *", "--timezone", "Europe/Berlin", "numpy.sum", "[1]")
    text = zkd("why", "s").out
    assert re.search(
        r"^It is a schedule \(0 3 1 1 \* Europe/Berlin\): it fires next at 20\d\d-01-01 02:00:00 UTC, in ", text
    )
    assert zkd("schedule", "pause", "s").out == "s paused\n"
    assert "paused: `zkd schedule resume s` lets it fire again" in zkd("why", "s").out
    assert row(zkd, "s")["state"] == "paused"
    assert zkd("schedule", "resume", "s").out == "s resumed\n"
    assert "fires next" in zkd("describe", "schedule", "s").out


def test_skipped_slots_are_counted_and_told(zkd: Zkd) -> None:
    ran = zkd("schedule", "every", "1s", "slow", "test.nap", "30", "--overlap", "skip")
    assert ran.code == 0, ran.err
    wait_until(lambda: row(zkd, "slow")["skipped"] >= 2)  # type: ignore[operator]
    task = str(row(zkd, "slow")["task"])
    assert f"It skips slots while {task} is not finished. It fired once so far and skipped" in zkd("why", "slow").out
    zkd("schedule", "delete", "slow")
    zkd("cancel", task)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", "s", "--cron", "61 * * * *", "numpy.sum"], "$.cron: expected a minute"),
        (["set", "s", "--cron", "* * * * *", "--timezone", "Mars", "numpy.sum"], "$.timezone: expected a time zone"),
        (["set", "s", "numpy.sum"], "--cron"),
        (["set", "a b", "--cron", "* * * * *", "numpy.sum"], "name: expected 1 to 111"),
        (["every", "0", "s", "numpy.sum"], "expected whole seconds"),
        (["every", "1.5s", "s", "numpy.sum"], "expected whole seconds"),
        (["every", "1", "s", "numpy.sum", "[1,"], "expected JSON"),
        (["every", "1", "s", "numpy.sum", "--priority", "9999"], "priority"),
    ],
)
def test_what_is_no_schedule_is_refused_before_it_is_written(zkd: Zkd, arguments: list[str], words: str) -> None:
    ran = zkd("schedule", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err
    assert "zkd schema task" not in ran.err
    assert zkd("get", "schedules", "-o", "name").out == ""


async def test_a_malformed_schedule_of_another_client_is_told(zkd_client: library.Client, zkd: Zkd) -> None:
    path = zkd_client.paths.schedule("bad")
    await zkd_client.session.create(path, b'{"every_s": 10, "cron": "* * * * *", "task": {"kernel": "k"}}')
    import asyncio

    found = await asyncio.to_thread(row, zkd, "bad")
    assert (found["state"], found["error"]) == ("malformed", "$: expected `cron` or `every_s`, got both")
    text = (await asyncio.to_thread(zkd, "why", "bad")).out
    assert text == "It is a schedule and nothing fires: $: expected `cron` or `every_s`, got both.\n"


# --- limits ---------------------------------------------------------------------------------------------


def test_a_limit_is_set_listed_and_lifted(zkd: Zkd) -> None:
    ran = zkd("limit", "test.nap", "--per-second", "10", "--burst", "20", "--at-once", "4", "--reason", "the disk")
    assert (ran.code, ran.out, ran.err) == (0, "test.nap limited\n", "")
    (found,) = zkd("get", "limits", "-o", "json").json
    assert (found["kernel"], found["per_s"], found["burst"], found["at_once"]) == ("test.nap", 10, 20, 4)
    assert "@" in found["by"]
    assert zkd("get", "limits").out.splitlines()[0].split() == [
        "KERNEL",
        "PER",
        "S",
        "BURST",
        "AT",
        "ONCE",
        "BY",
        "REASON",
    ]
    assert zkd("limit", "test.nap", "--at-once", "0").code == 0
    assert zkd("get", "limits", "test.nap", "-o", "json").json[0]["per_s"] is None
    assert zkd("limit", "test.nap", "--none").out == "test.nap unlimited\n"
    assert zkd("get", "limits", "-o", "json").json == []
    assert zkd("limit", "test.nap", "--none").code == 3


@pytest.mark.parametrize(
    "arguments", [["k"], ["a/b", "--at-once", "1"], ["k", "--none", "--at-once", "1"], ["k", "--per-second", "0"]]
)
def test_a_limit_that_makes_no_sense_exits_2(zkd: Zkd, arguments: list[str]) -> None:
    assert zkd("limit", *arguments).code == 2


def test_a_limit_of_an_unknown_kernel_is_set_and_told(zkd: Zkd) -> None:
    ran = zkd("limit", "no.such", "--at-once", "1")
    assert ran.code == 0
    assert "no node has the kernel no.such now" in ran.err


# --- from a program -------------------------------------------------------------------------------------


@pytest.fixture
async def zkd_client(dev: Dev) -> AsyncIterator[library.Client]:
    async with library.Client(dev.hosts) as client:
        yield client


async def test_a_program_writes_and_reads_schedules(zkd_client: library.Client) -> None:
    client = zkd_client
    daily = library.Cron("0 3 * * *", "Europe/Berlin", overlap="skip")
    await client.options(retries=2).schedule("daily", daily, "numpy.sum", [1, 2], axis=0)
    await client.schedule("often", library.Every(3600), "numpy.sum", [1])
    seen = await client.schedules()
    assert list(seen) == ["daily", "often"]
    assert seen["daily"].timing == "0 3 * * * Europe/Berlin"
    assert seen["often"].next is not None
    assert seen["often"].next.timestamp() % 3600 == 0
    await client.pause_schedule("daily")
    paused = await client.scheduled("daily")
    assert paused is not None
    assert (paused.next, paused.schedule is not None and paused.schedule.paused) == (None, True)
    await client.pause_schedule("daily", is_paused=False)
    assert await client.unschedule("daily")
    assert not await client.unschedule("daily")
    with pytest.raises(BadRecord, match=r"\$\.every_s"):
        await client.schedule("x", library.Every(0), "numpy.sum")
    with pytest.raises(BadRecord, match="ephemeral"):
        await client.options(ephemeral=True).schedule("x", daily, "numpy.sum")
    with pytest.raises(TooLarge):
        await client.schedule("x", daily, "numpy.sum", list(range(300_000)))
    assert list(await client.schedules()) == ["often"]
