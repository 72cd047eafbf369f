"""Fixtures for pytest: ``pytest_plugins = ["zkd.testing.plugin"]`` in a conftest.py.

`zkd_cluster` is one `LocalCluster` for a whole run, which tests share: do not break it, make one of your own for that.
What it is made of is yours to say::

    @pytest.fixture(scope="session")
    def zkd_cluster_options() -> dict[str, object]:
        return {"names": ["a", "b"], "modules": ["stats"], "settings": {"node.slots": 2}}

The last words of its nodes stand in the report of a test that fails.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from zkd.testing.cluster import LocalCluster


@pytest.fixture(scope="session")
def zkd_cluster_options() -> dict[str, Any]:
    """Arguments of `LocalCluster` for `zkd_cluster`; `names` is a list."""
    return {}


@pytest.fixture(scope="session")
def zkd_cluster(zkd_cluster_options: dict[str, Any]) -> Iterator[LocalCluster]:
    """A ZooKeeper and nodes as processes, shared by all tests of the run."""
    options = dict(zkd_cluster_options)
    with LocalCluster(*options.pop("names", ()), **options) as cluster:
        yield cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, LocalCluster):
                for name in value.names:
                    report.sections.append((f"zkd node {name}", value.last_words(name)))
    return report
