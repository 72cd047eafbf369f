"""For the tests of people who write kernels and programs on zkd.

    from zkd.testing import LocalCluster, as_task

    def test_it_says_what_was_wrong() -> None:
        assert as_task(clipped_mean, [1.0, 2.0, 60.0], limit=1.0) == 1.5    # no processes, as a node would call it

    def test_it_survives_a_kill() -> None:
        with LocalCluster("a", "b", modules=["stats"]) as cluster:         # a ZooKeeper, and two nodes as processes
            asked = cluster.submit("slow_mean", [1.0, 2.0])
            cluster.kill("a")
            assert cluster.result(asked) == 1.5

`pytest_plugins = ["zkd.testing.plugin"]` in a conftest.py gives the fixture `zkd_cluster`.
"""

from zkd.testing.calling import as_task
from zkd.testing.cluster import ClusterFailed, LocalCluster

__all__ = ["ClusterFailed", "LocalCluster", "as_task"]
