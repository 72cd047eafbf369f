"""What `zkd.testing` promises to those who test kernels and programs of their own with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

import zkd
from zkd.testing import ClusterFailed, LocalCluster, as_task

pytest_plugins = ["pytester"]

Limit = Annotated[float, msgspec.Meta(gt=0)]


@zkd.kernel("stats.clipped_mean")
def clipped_mean(x: npt.NDArray[np.float64], limit: Limit = 3.0) -> float:
    return float(np.clip(x, x.mean() - limit * x.std(), x.mean() + limit * x.std()).mean())


def pair(x: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], int]:
    return x * 2, len(x)


# --- Without a cluster ------------------------------------------------------------------------------------


def test_a_kernel_is_called_as_a_node_calls_it() -> None:
    assert as_task(clipped_mean, [1, 2, 3], limit=10) == 2.0
    assert as_task(pair, np.array([1.0, 2.0])) == [[2.0, 4.0], 2], "as it comes back to who asked for it"


def test_arguments_that_a_node_would_reject_are_rejected() -> None:
    with pytest.raises(zkd.BadRecord, match=r"\$\.args\[0\]\[1\]: expected float64, got the text 'a'"):
        as_task(clipped_mean, [1.0, "a"])
    with pytest.raises(zkd.BadRecord, match=r"\$\.kwargs\.limit"):
        as_task(clipped_mean, [1.0], limit=-1.0)


def test_what_is_no_kernel_or_no_result_is_said_to_be_none() -> None:
    async def late() -> int:
        return 1

    with pytest.raises(zkd.BadKernel, match="coroutine"):
        as_task(late)
    with pytest.raises(TypeError, match="set"):
        as_task(as_set, 1)


def as_set(x: int) -> set[int]:
    return {x}


# --- With one ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    modules = tmp_path_factory.mktemp("modules")
    (modules / "house.py").write_text(
        "import time\nimport zkd\n\n@zkd.kernel\ndef nap(s: float) -> str:\n    time.sleep(s)\n    return 'slept'\n"
    )
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(modules)
    try:
        with LocalCluster("a", "b", modules=["house"], session_timeout_s=3.0) as cluster:
            yield cluster
    finally:
        patch.undo()


def test_modules_beside_the_test_are_found_by_the_nodes(cluster: LocalCluster) -> None:
    assert cluster.run("nap", 0.0) == "slept"
    assert cluster.run("numpy.sum", [1, 2, 3]) == 6


def test_a_task_outlives_the_node_that_ran_it(cluster: LocalCluster) -> None:
    tasks = [cluster.submit("nap", 0.5) for _ in range(4)]
    cluster.kill("b")
    assert set(cluster.nodes()) <= {"a", "b"}
    assert [cluster.result(task) for task in tasks] == ["slept"] * 4
    cluster.start("b")
    assert set(cluster.nodes()) == {"a", "b"}


@pytest.mark.parametrize(
    "break_it",
    [
        LocalCluster.cut_connections,
        lambda cluster: cluster.expire("a"),
        lambda cluster: (cluster.keep_zookeeper_away(), cluster.let_zookeeper_back()),
        lambda cluster: (cluster.freeze("a"), cluster.thaw("a")),
        lambda cluster: (cluster.delay_zookeeper(0.01), cluster.run("numpy.add", 1, 1), cluster.delay_zookeeper(0)),
    ],
    ids=["cut", "expired", "away", "frozen", "slow"],
)
def test_whatever_is_broken_work_goes_on(cluster: LocalCluster, break_it: Callable[[LocalCluster], object]) -> None:
    task = cluster.submit("nap", 0.1)
    break_it(cluster)
    assert cluster.result(task) == "slept"
    assert cluster.run("numpy.add", 1, 2) == 3


async def test_a_program_of_ones_own_talks_to_it(cluster: LocalCluster) -> None:
    async with cluster.client() as client:
        assert await client.run("numpy.sum", [1, 2]) == 3


def test_a_switch_that_cannot_be_thrown_says_why(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterFailed, match="expected a node z that runs, got one that never did"):
        cluster.freeze("z")
    with pytest.raises(ClusterFailed, match="the node a runs already"):
        cluster.start("a")
    with pytest.raises(ClusterFailed, match="expected a node z, got a, b"):
        cluster.expire("z")


def test_a_node_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(ClusterFailed, match=r"(?s)a ended with 78.*node\.slots"),
        LocalCluster(settings={"node.slots": -1}),
    ):
        pytest.fail("it cannot be ready")


def test_nothing_is_left_behind() -> None:
    with LocalCluster() as cluster:
        directory = cluster.directory
        cluster.freeze("a")
    assert not directory.exists()
    assert not [entry for entry in Path("/proc").glob("[0-9]*") if str(directory) in environment_of(entry)]


def environment_of(process: Path) -> str:
    try:
        return (process / "environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""  # it has ended, or is another's


def test_tests_of_others_share_a_cluster_and_see_what_its_nodes_said(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["zkd.testing.plugin"]')
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="session")
        def zkd_cluster_options():
            return {"names": ["alone"]}

        def test_good(zkd_cluster):
            assert zkd_cluster.run("numpy.sum", [1, 2]) == 3

        def test_bad(zkd_cluster):
            assert zkd_cluster.names == ["another"]
        """
    )
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*zkd node alone*", "*daemon.ready*"])
