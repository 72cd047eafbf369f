"""`zkd train` against coordinators that do as the test says, and models that were really trained."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from tests.cli.conftest import Ran
from tests.client.coordinators import Cluster, a_round, coordinators
from tests.client.models import model_of
from zkd.cli import run, train_options
from zkd.client.model import Model
from zkd.client.terms import KINDS, OPTIMIZERS, OPTIONS
from zkd.codec import decode
from zkd.jobs import Job, Progress, Summary, Validation
from zkd.zk.server import EmbeddedServer

Command = Callable[..., Awaitable[Ran]]
DONE = Summary("tolerance", 3, 12.5, 0.25, 0.31, 1e-9, 2e-9, 1.0, notes=["petal_length by itself tells setosa apart"])


@pytest.fixture
async def cluster(embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    for name in list(os.environ):
        if name.startswith("ZKD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ZKD_HOSTS", embedded.connect_string)
    async with asyncio.timeout(30), coordinators(embedded.connect_string, "n1", "n2", "n3") as cluster:
        await cluster.keep_iris()
        yield cluster


@pytest.fixture
def train(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> Command:
    async def command(*arguments: str) -> Ran:
        capfd.readouterr()
        code = await asyncio.to_thread(run, ["train", *arguments])
        return Ran(code, *capfd.readouterr())

    return command


async def started(cluster: Cluster, name: str = "first") -> None:
    await cluster.session.create(
        f"/zkd/jobs/{name}", b'{"model":"softmax","dataset":"iris","validation":{"share":0.2},"max_rounds":1000}'
    )


async def job_of(cluster: Cluster, name: str) -> Job:
    return decode((await cluster.session.get(f"/zkd/jobs/{name}")).data, Job)


START = """start mlp iris --name first --target species --features length,width --l2 10,1 --optimizer adam --tol 1e-6
--max-rounds 50 --validation 0.25 --validation-by features --patience 3 --hidden 8,4 --classes --learning-rate 0.01
--epochs 5 --batch-rows 32 --seed 7 --as-stored --importance"""


# --- Starting ---------------------------------------------------------------------------------------------


async def test_a_job_is_started_by_options(cluster: Cluster, train: Command) -> None:
    ran = await train(*START.split())
    assert (ran.code, ran.out, ran.err) == (0, "first\n", "")
    found = await job_of(cluster, "first")
    assert found.by is not None
    assert found == Job(
        model="mlp",
        dataset="iris",
        target="species",
        features=["length", "width"],
        l2=[10.0, 1.0],
        optimizer="adam",
        tol=1e-6,
        max_rounds=50,
        validation=Validation(0.25, "features"),
        patience=3,
        hidden=[8, 4],
        tells_classes=True,
        learning_rate=0.01,
        epochs=5,
        batch_rows=32,
        seed=7,
        standardise=False,
        importance=True,
        by=found.by,
    )


async def test_columns_that_are_not_used_are_named(train: Command) -> None:
    ran = await train("start", "softmax", "iris")
    assert re.fullmatch(r"softmax-[0-9a-f]{8}\n", ran.out)
    assert ran.err.startswith("not used: name, text: encode it as numbers first")


async def test_a_job_is_started_by_a_file_and_options_go_before(
    cluster: Cluster, train: Command, tmp_path: Path
) -> None:
    file = tmp_path / "job.json"
    file.write_text('{"model": "softmax", "dataset": "iris@1", "l2": 2.0, "validation": {"share": 0.1, "seed": 3}}')
    assert (await train("start", "--file", str(file), "--name", "a")).code == 0
    assert (
        await train("start", "--file", str(file), "--name", "b", "--l2", "3", "--validation-by", "features")
    ).code == 0
    first, second = await job_of(cluster, "a"), await job_of(cluster, "b")
    assert (first.l2, first.validation) == (2.0, Validation(0.1, seed=3))
    assert (second.l2, second.validation) == (3.0, Validation(0.1, "features", 3))
    file.write_text('{"model": "softmax", "model": "linear"}')
    assert "each name once" in (await train("start", "--file", str(file))).err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("start softmx iris", 2, "model: there is no model 'softmx'; did you mean softmax?"),
        ("start softmax iris --optimizer l-bfgs", 2, "did you mean lbfgs?"),
        ("start softmax iris --target spezies", 2, "did you mean 'species'?"),
        ("start softmax iris --l2 many", 2, "expected a number, or several with commas"),
        ("start softmax iris --hidden x", 2, "expected whole numbers"),
        ("start softmax iris --privacy clip=1,sigma=3", 2, "'sigma=3': expected clip=N,noise=N,delta=N"),
        ("start softmax iris --validation-by key", 2, "expected --validation beside it"),
        ("start softmax iris --watch --plot /none/a.svg", 2, "there is no directory /none"),
        ("start softmax iris --plot a.svg", 2, "expected --watch beside it"),
        ("start softmax", 2, "expected MODEL and DATASET"),
        ("start softmax iris@4", 3, "there are the versions 1"),
        ("start softmax irs", 3, "did you mean 'iris'?"),
        ("status none", 3, "`zkd train ls` lists what there is"),
    ],
)
async def test_what_is_wrong_is_said_with_what_would_be_right(
    train: Command, arguments: str, code: int, said: str
) -> None:
    ran = await train(*arguments.split())
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


def test_every_option_of_a_job_is_an_option_here_and_completes() -> None:
    assert {name for name in train_options._OPTIONS if name != "by"} == set(OPTIONS)
    assert (train_options.MODELS, train_options.OPTIMIZERS) == (KINDS, OPTIMIZERS)
    context, parameter = click.Context(click.Command("x")), click.Option(["--x"])
    assert train_options.completing(KINDS)(context, parameter, "l") == ["linear", "logistic"]


# --- Looking ----------------------------------------------------------------------------------------------


async def test_jobs_are_listed_and_shown(cluster: Cluster, train: Command) -> None:
    await started(cluster)
    assert "3 nodes are here, and none has taken it on yet: training.jobs_max" in (await train("status", "first")).out
    await cluster.session.create("/zkd/jobs/odd", b'{"model":"softmax","datset":"iris"}')
    await cluster.take("first", "n1")
    await cluster.progress("first", a_round(7, held_loss=0.5, rows_s=2e6, round_s=0.004))
    listed = {row["id"]: row for row in (await train("ls", "--json")).json}
    assert (listed["first"]["phase"], listed["first"]["round"], listed["first"]["coordinator"]) == ("training", 7, "n1")
    assert (listed["odd"]["phase"], "datset" in listed["odd"]["why"]) == ("malformed", True)
    assert "first  softmax" in (await train("ls")).out
    assert (await train("ls", "-o", "name")).out == "first\nodd\n"
    shown = await train("status", "fi")
    assert "softmax on iris@1" in shown.out
    assert "taken it on" not in shown.out
    assert re.search(r"held_loss: +0\.5\n", shown.out)
    status = (await train("status", "first", "--json")).json
    assert (status["state"]["fence"], status["job"]["model"]) == (1, "softmax")
    await cluster.fail("first", "features: NaN in length (3 rows)")
    shown = await train("status", "first")
    assert (shown.code, "NaN in length (3 rows)" in shown.out) == (1, True)


async def test_watching_tells_the_rounds_a_failover_and_what_came_of_it(
    cluster: Cluster, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zkd.cli.train_watch.SAY_S", 0.0)
    monkeypatch.setattr("zkd.cli.train_watch.PLOT_S", 0.0)
    await started(cluster)
    curve = tmp_path / "loss.svg"
    watching = asyncio.create_task(train("watch", "first", "--plot", str(curve)))
    await until(curve.exists)
    office = await cluster.take("first", "n1", a_round(1, held_loss=1.5))
    office.say(a_round(2, held_loss=0.8, rows_s=2.1e6, round_s=0.0042))
    await until(lambda: "polyline" in curve.read_text())
    await cluster.change("first", progress=Progress(2, waits_for=["n3: parts 4, 5"]))
    await cluster.lose("first")
    office = await cluster.take("first", "n2", a_round(1), a_round(2), a_round(3, held_loss=0.9))
    await until(lambda: len(cluster.nodes["n2"].asked) > 0)
    await cluster.end("first", model_of("softmax", "iris"), "n3", summary=DONE)
    ran = await watching
    assert ran.code == 0, ran.err
    assert re.search(r"^first waiting\n", ran.out)
    assert "first training, coordinated by n1\n" in ran.out
    assert "first training, coordinated by n2\n" in ran.out
    assert (
        "round 2 of at most 1,000   loss 0.5   held-out 0.8   |gradient| 1.0e-02   2.1M rows/s   4.2 ms a round"
        in ran.out
    )
    assert "first waits for n3: parts 4, 5\n" in ran.out
    assert "held-out 0.9, best 0.8 in round 2" in ran.out
    assert "tolerance: the optimum was reached within the tolerance, after 3 rounds" in ran.out
    assert "certificate: |v - v*| <= 2e-09" in ran.out
    assert "note: petal_length by itself tells setosa apart" in ran.out
    assert re.search(r"FEATURE +COEFFICIENT +STD ERROR +STANDARDISED +ODDS RATIO +.95 LOW +.95 HIGH", ran.out)
    assert "(intercept)" in ran.out
    shown = ElementTree.parse(curve).getroot()
    assert len(shown.findall(".//{http://www.w3.org/2000/svg}polyline")) == 3  # training, held-out, gradient
    assert "tolerance" in curve.read_text()


async def test_watching_as_json_gives_every_round_once(cluster: Cluster, train: Command) -> None:
    await started(cluster)
    watching = asyncio.create_task(train("watch", "first", "--json"))
    await cluster.take("first", "n1", a_round(1), a_round(2))
    await until(lambda: len(cluster.nodes["n1"].asked) > 0)
    await cluster.lose("first")
    await cluster.take("first", "n2", a_round(1), a_round(2), a_round(3))
    await until(lambda: len(cluster.nodes["n2"].asked) > 0)
    await cluster.end("first", b"", "n2", summary=DONE)
    ran = await watching
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["number"] for line in lines[:-1]] == [1, 2, 3]
    assert (lines[-1]["ended"], lines[-1]["summary"]["reason"]) == ("done", "tolerance")


async def test_watching_ends_with_why_a_job_failed_or_that_it_was_removed(cluster: Cluster, train: Command) -> None:
    await started(cluster)
    await cluster.take("first", "n1")
    watching = asyncio.create_task(train("watch", "first"))
    await until(lambda: len(cluster.nodes["n1"].asked) > 0)
    await cluster.fail("first", "target: all 150 rows have the one label 0")
    ran = await watching
    assert (ran.code, ran.err) == (1, "first failed: target: all 150 rows have the one label 0\n")
    await started(cluster, "second")
    await cluster.take("second", "n2")
    watching = asyncio.create_task(train("watch", "second"))
    await until(lambda: len(cluster.nodes["n2"].asked) > 0)
    await cluster.session.delete("/zkd/jobs/second", -1)
    ran = await watching
    assert (ran.code, ran.err) == (1, "second was removed\n")


async def test_a_terminal_gets_one_screen_and_ctrl_c_leaves_the_job_alone(cluster: Cluster) -> None:
    await started(cluster)
    office = await cluster.take("first", "n1", a_round(1, held_loss=1.5), a_round(2, held_loss=1.1))
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-m", "zkd", "train", "watch", "first"]
    process = await asyncio.create_subprocess_exec(*command, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = ""

    def has(*words: str) -> Callable[[], bool]:
        def look() -> bool:
            nonlocal shown
            with suppress(OSError):  # nothing new, or the end
                shown += os.read(ours, 65536).decode()
            return all(word in shown for word in words)

        return look

    try:
        await until(has("softmax on iris@1", "of at most 1,000", "coordinator", "n1", "█"))
        office.say(a_round(3, held_loss=1.2))
        await cluster.change("first", progress=Progress(3, waits_for=["n3: parts 4, 5"]))
        await until(has("best 1.1 in round 2", "waits for", "n3: parts 4, 5"))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        await until(has("first goes on", "interrupted"))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        os.close(ours)
    assert (await job_of(cluster, "first")).desired == "run"


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


# --- Steering ---------------------------------------------------------------------------------------------


async def test_jobs_are_paused_resumed_stopped_and_removed(cluster: Cluster, train: Command) -> None:
    await started(cluster)
    for words, desired in [("pause", "pause"), ("resume", "run"), ("stop", "stop")]:
        assert (await train(words, "first")).code == 0
        assert (await job_of(cluster, "first")).desired == desired
    assert "wanted: end with what there is" in re.sub(" +", " ", (await train("status", "first")).out)
    refused = await train("rm", "first")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    await cluster.take("first", "n1")
    await cluster.end("first", b"", "n1")
    ran = await train("pause", "first")
    assert (ran.code, ran.err) == (6, "first has ended before\n")
    assert (await train("rm", "first")).out == "first removed\n"
    assert await cluster.session.exists("/zkd/jobs/first") is None


# --- Models -----------------------------------------------------------------------------------------------


async def ended(cluster: Cluster, name: str, file: bytes) -> None:
    await started(cluster, name)
    await cluster.take(name, "n1")
    await cluster.end(name, file, "n1", summary=Model(file).summary)


async def test_a_model_is_shown_and_written(cluster: Cluster, train: Command, tmp_path: Path) -> None:
    await ended(cluster, "cancer", model_of("logistic", "breast_cancer", importance=True))
    shown = await train("model", "cancer", "-O", str(tmp_path / "m"), "--plot", str(tmp_path / "c.svg"))
    assert shown.code == 0, shown.err
    what, *table = shown.out.split("\n\n")[1].splitlines()
    assert what == "y = 1:"
    assert len(table) == 1 + 20 + 1 + 1  # heading, features, intercept, how many more
    assert table[-1].startswith("10 more have smaller")
    sizes = [abs(float(line.split()[3])) for line in table[1:21]]
    assert sizes == sorted(sizes, reverse=True)
    assert "LOSS RISES BY" in shown.out
    assert len((await train("model", "cancer", "--all")).out) > len(shown.out)
    model = Model.load(tmp_path / "m")
    assert model.job.model == "logistic"
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    as_json: Any = (await train("model", "cancer", "--json")).json
    assert len(as_json["coefficients"]) == 31
    assert as_json["coefficients"][0]["raw"] == model.coefficients()[0].raw
    assert set(as_json["importance"]) == set(model.names)


async def test_a_net_has_no_coefficients_and_says_so(cluster: Cluster, train: Command) -> None:
    await ended(cluster, "net", model_of("mlp", "iris", "adam"))
    shown = await train("model", "net")
    assert (shown.code, "approximate" in shown.out) == (0, True)
    assert "COEFFICIENT" not in shown.out
