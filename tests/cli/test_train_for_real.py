"""`zkd train` and `client.train` on a cluster of real daemons: from a file of rows to predictions."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import zkd as package
from tests.cli.conftest import Dev, Ran

X, Y = load_breast_cancer(return_X_y=True)
NAMES = [f"x{place}" for place in range(X.shape[1])]
LABELS = np.where(Y == 1, "benign", "malignant")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "cancer.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow([*NAMES, "diagnosis", "site"])
        writer.writerows([*row, label, "left"] for row, label in zip(X.tolist(), LABELS, strict=True))
    return file


async def test_rows_become_a_model_that_is_scikit_learns(
    dev: Dev, zkd: Callable[..., Ran], rows: Path, tmp_path: Path
) -> None:
    assert (await in_thread(zkd, "data", "put", str(rows), "--label", "diagnosis", "--parts", "4")).code == 0
    options = ["--name", "cancer", "--watch", "--plot", str(tmp_path / "loss.svg")]
    ran = await in_thread(zkd, "train", "start", "logistic", "cancer", *options)
    assert ran.code == 0, ran.err
    assert ran.err.startswith("not used: site, text")
    assert "tolerance: the optimum was reached within the tolerance" in ran.out
    assert "diagnosis = malignant:" in ran.out
    assert "polyline" in (tmp_path / "loss.svg").read_text()
    told = await in_thread(zkd, "train", "watch", "cancer", "--json")
    lines: list[dict[str, Any]] = [json.loads(line) for line in told.out.splitlines()]
    assert [line["number"] for line in lines[:-1]] == list(range(1, lines[-1]["summary"]["rounds"] + 1))

    async with package.Client(dev.hosts) as client:
        model = await (await client.jobs.get("cancer")).model()
    standard = (X - X.mean(axis=0)) / X.std(axis=0)
    best = LogisticRegression(C=1.0, tol=1e-12, max_iter=1000, solver="newton-cholesky").fit(standard, LABELS)
    found = {line.name: line.standard for line in model.coefficients()}
    assert np.abs([found[name] for name in NAMES] - best.coef_[0]).max() < 1e-6
    table = {name: X[:, place] for place, name in enumerate(NAMES)}
    assert np.array_equal(model.predict(table), best.predict(standard))
    assert (await in_thread(zkd, "train", "rm", "cancer")).code == 0


async def test_a_job_that_cannot_be_trained_says_why(dev: Dev, zkd: Callable[..., Ran], rows: Path) -> None:
    assert (await in_thread(zkd, "data", "put", str(rows), "--name", "again", "--label", "diagnosis")).code == 0
    async with package.Client(dev.hosts) as client:
        job = await client.train("softmax", "again", target="x0")
        with pytest.raises(package.JobFailed, match="target: expected labels, got fractions"):
            await job.model(30)
        assert await job.remove() is True
        with pytest.raises(package.BadTraining, match="site is text"):
            await client.train("linear", "again", target="site")


async def in_thread(command: Callable[..., Ran], *arguments: str) -> Ran:
    return await asyncio.to_thread(command, *arguments)
