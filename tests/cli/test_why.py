"""Every kind of waiting, as people are told of it: by the leader, and by the tree when there is no leader to ask."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import wait_until
from zkd.client import asking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Ran

    Zkd = Callable[..., Ran]
    Why = Callable[[str, str], None]


@pytest.fixture(params=["leader", "tree"])
def why(request: pytest.FixtureRequest, zkd: Zkd, monkeypatch: pytest.MonkeyPatch) -> Why:
    """Wait until `zkd why ID` says this, asking the leader, or with nobody to ask."""
    if request.param == "tree":

        async def nothing(*_: object) -> str:
            return ""

        monkeypatch.setattr(asking, "_leader_says", nothing)

    def says(task: str, words: str) -> None:
        heard = ""

        def is_said() -> bool:
            nonlocal heard
            ran = zkd("why", task)
            heard = ran.out + ran.err
            return re.search(words, heard) is not None

        try:
            wait_until(is_said, 15.0)
        except AssertionError:
            raise AssertionError(f"expected {words!r}, heard {heard!r}") from None

    return says


@pytest.fixture(autouse=True)
def clean(zkd: Zkd) -> Iterator[None]:
    """Nothing waits or is held back after a test."""
    yield
    for node in ("dev-1", "dev-2"):
        zkd("node", "uncordon", node)
    for kernel in zkd("get", "limits", "-o", "name").out.split():
        zkd("limit", kernel, "--none")
    tasks = zkd("get", "tasks", "-o", "name").out.split()
    if tasks:
        zkd("cancel", *tasks)
    wait_until(lambda: zkd("get", "tasks", "-o", "name").out == "")


def submit(zkd: Zkd, *arguments: str) -> str:
    ran = zkd("submit", *arguments)
    assert ran.code == 0, ran.err
    return ran.out.strip()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label", "planet=mars"], r"planet=mars"),
        (["--node", "mars"], r"node mars"),
        (["--slots", "3"], r"3 .*slots"),
        (["--delay", "600"], r"\d+ s of 600 s|600 s|59\d"),
    ],
)
def test_what_it_demands(zkd: Zkd, why: Why, options: list[str], words: str) -> None:
    why(submit(zkd, "numpy.sum", "[1]", *options), words)


def test_nodes_that_take_no_work(zkd: Zkd, why: Why) -> None:
    zkd("node", "cordon", "dev-1")
    zkd("node", "drain", "dev-2")
    why(submit(zkd, "numpy.sum", "[1]"), r"dev-1 is cordoned, dev-2 is draining|dev-2 is draining, dev-1 is cordoned")


def test_busy_slots(zkd: Zkd, why: Why) -> None:
    for _ in range(10):
        for _ in range(6):  # both slots, and what lies ready behind them; more if much has just ended there
            submit(zkd, "test.nap", "60")
        task = submit(zkd, "test.nap", "60", "--priority", "-5")
        why(task, r"of 1 free|is assigned|is held")
        if "of 1 free" in zkd("why", task).out:
            break
        zkd("cancel", task)
    why(task, r"dev-[12] has 0 of 1 free, dev-[12] has 0 of 1 free")


def test_what_runs_and_what_is_assigned(zkd: Zkd, why: Why) -> None:
    why(submit(zkd, "test.nap", "60", "--node", "dev-1"), r"It runs on dev-1, attempt 1, .*50%.*half asleep")


def test_between_two_attempts(zkd: Zkd, why: Why) -> None:
    why(
        submit(zkd, "test.fail", "not yet", "--retries", "50"),
        r"([4-9]|\d\d) attempts.*error: ValueError: not yet|pause",
    )


def test_a_kernel_that_is_held_back(zkd: Zkd, why: Why) -> None:
    assert zkd("limit", "test.nap", "--at-once", "0", "--reason", "the disk").code == 0
    why(submit(zkd, "test.nap", "0"), r"limit.*test\.nap|test\.nap.*limit")


def test_a_kernel_that_runs_often_enough(zkd: Zkd, why: Why) -> None:
    assert zkd("limit", "test.nap", "--at-once", "1").code == 0
    first = submit(zkd, "test.nap", "60", "--node", "dev-1")
    why(first, "It runs on dev-1")
    why(submit(zkd, "test.nap", "60"), r"limit.*test\.nap|test\.nap.*limit")


def test_a_kernel_that_starts_no_oftener(zkd: Zkd, why: Why) -> None:
    assert zkd("limit", "test.nap", "--per-second", "0.01", "--burst", "1").code == 0
    submit(zkd, "test.nap", "0")
    why(submit(zkd, "test.nap", "0"), r"limit.*test\.nap|test\.nap.*limit")


def test_tasks_that_come_before(zkd: Zkd, why: Why) -> None:
    before = submit(zkd, "numpy.sum", "[1]", "--label", "planet=mars")
    task = submit(zkd, "numpy.sum", "[1]", "--after", before, "--after", "promised", "--submitter", "me")
    why(task, rf"{before}.*promised|promised.*{before}")
    row = next(row for row in zkd("get", "tasks", "-o", "json").json if row["id"] == task)
    assert (row["submitter"], row["after"]) == ("me", [before, "promised"])


def test_a_second_copy_of_what_is_late(zkd: Zkd, why: Why) -> None:
    for _ in range(8):  # so that it is known how long the kernel takes
        assert zkd("run", "test.nap", "0.01", "--timeout", "20").code == 0
    task = submit(zkd, "test.nap", "60", "--speculative")
    why(task, r"It runs on dev-\d, attempt 1.* A second copy runs on dev-\d; the first to end counts\.")


def test_ends(zkd: Zkd, why: Why) -> None:
    done, failed = submit(zkd, "numpy.sum", "[1]"), submit(zkd, "test.fail", "so it goes")
    rejected, cancelled = submit(zkd, "no.such"), submit(zkd, "numpy.sum", "--label", "planet=mars")
    expired = submit(zkd, "numpy.sum", "--label", "planet=mars", "--not-after", "0.2")
    why(cancelled, "planet=mars")
    zkd("cancel", cancelled)
    why(done, r"^It is done: attempt 1 on dev-\d took ")
    why(failed, r"^It has ended, failed on dev-\d: ValueError: so it goes\.")
    why(rejected, r"^It has ended, rejected: .*no node has a kernel 'no\.such'")
    why(cancelled, r"^It has ended, cancelled: ")
    why(expired, r"^It has ended, expired: ")


def test_nobody_leads_and_nobody_is_here(zkd: Zkd, why: Why) -> None:
    task = submit(zkd, "--root", "/elsewhere", "numpy.sum", "[1]")
    ran = zkd("--root", "/elsewhere", "why", task)
    assert "waits for a leader: nobody leads now, no node is here. Start one: zkd daemon, or zkd dev." in ran.out
    zkd("--root", "/elsewhere", "cancel", task)


def test_programs_get_it_as_json(zkd: Zkd) -> None:
    task = submit(zkd, "numpy.sum", "--node", "mars")
    assert json.loads(zkd("why", task, "-o", "json").out)["id"] == task
