"""Models on daemons as processes of their own: nodes lose files and die, new ones join, and every model stays whole."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import zkd
from tests.cluster.conftest import Grid
from tests.node.depot import Depot
from tests.node.submitter import until
from zkd.core.registry import order
from zkd.errors import DataUnavailable
from zkd.manifests import Keeper
from zkd.models.from_sklearn import trained_of
from zkd.models.trained import Trained

X, Y = load_digits(return_X_y=True)


def trained(rows: int) -> Trained:
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5)).fit(X[:rows], Y[:rows])
    return trained_of(fitted, features="pixels")


def lying(grid: Grid, node: str) -> set[str]:
    directory = grid.directory / f"{node}-data" / "models"
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


async def held(grid: Grid, file_id: str, *names: str, within_s: float = 15.0) -> None:
    async def is_so() -> bool:
        return {name for name in grid.nodes if file_id in lying(grid, name)} >= set(names)

    await until(is_so, within_s, f"{file_id[:8]} is on {names}")


@pytest.mark.filterwarnings("ignore")
async def test_models_outlive_lost_files_killed_nodes_and_a_frozen_one(grid: Grid) -> None:
    depot = Depot(grid.user, grid.directory, lambda node: grid.directory / f"{node}-data")
    await grid.start("a", "b", "c", "d", slots=1, ZKD_DATA__GRACE_S="2")
    await depot.ringed("a", "b", "c", "d")
    model = trained(300)
    async with zkd.Client(grid.hosts, grid.root) as client:
        entry = await client.models.push("digits", model)
        file_id = entry.version.file.id
        homes = set(order(file_id, [Keeper(name) for name in "abcd"])[:3])
        await held(grid, file_id, *homes)  # two of them when it was pushed, the third one perhaps later
        # A file that is taken from a node comes back from another one.
        victim, other, _ = sorted(homes)
        (grid.directory / f"{victim}-data" / "models" / file_id).unlink()
        await held(grid, file_id, victim)
        # A node that is killed is replaced by the one that did not have the file.
        grid.nodes[other].kill()
        (spare,) = set("abcd") - homes
        await held(grid, file_id, spare)
        # One that comes back with another's bytes under that name finds out.
        path = grid.directory / f"{other}-data" / "models" / file_id
        path.write_bytes(bytes(entry.version.file.size))
        await grid.start(other, slots=1, ZKD_DATA__GRACE_S="2")
        await until(lambda: _is_good(path, entry.version.file.size), 15.0, "the file is good again")
        # A new node pulls what aliases point to.
        await client.models.alias("digits@live", 1)
        await grid.start("e", slots=1, ZKD_DATA__GRACE_S="2")
        await held(grid, file_id, *"abcde")
        await depot.ringed(*"abcde")
        # A frozen node that should have the file holds up neither a push nor a read for long.
        later = trained(600)
        first = order(blake3(later.write()).hexdigest(), [Keeper(name) for name in "abcde"])[0]
        grid.nodes[first].pause()
        began = time.monotonic()
        second = await client.models.push("digits", later)
        took_s = time.monotonic() - began
        print(f"a push beside a frozen node took {took_s:.2f} s")
        assert second.number == 2
        assert 1.0 < took_s < 10.0  # it was asked, and passed over
        began = time.monotonic()
        found = await client.models.load("digits@2")
        assert time.monotonic() - began < 10.0
        assert found.predict({"pixels": X}).tolist() == later.predict(X).tolist()
        grid.nodes[first].resume()
        # All that are here are killed but one, and the model can still be read.
        await client.models.alias("digits@live", 2)
        await held(grid, second.version.file.id, *"abcde")
        for name in "bcde":
            grid.nodes[name].kill()
        assert np.array_equal((await client.models.load("digits@live")).w, found.w)
        grid.nodes["a"].kill()
        with pytest.raises(DataUnavailable, match="cannot be fetched"):
            await client.models.load("digits@live")


async def _is_good(path: Path, size: int) -> bool:
    return await asyncio.to_thread(lambda: path.exists() and path.read_bytes() != bytes(size))
