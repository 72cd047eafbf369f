"""Nodes inside the test's own loop, on the embedded ZooKeeper and on the real one."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.node.submitter import Submitter, submitting
from zkd.daemon import Daemon
from zkd.settings import Settings, load
from zkd.zk.server import EmbeddedServer

MODULES = Path(__file__).parent / "modules"


@dataclass
class Site:
    """A tree of one's own, a submitter, and daemons as they are asked for. They stop with the test."""

    hosts: str
    root: str
    directory: Path
    user: Submitter
    stack: AsyncExitStack

    def settings(self, name: str = "a", slots: int = 2, **overrides: Any) -> Settings:
        given = {
            "zookeeper.hosts": self.hosts,
            "zookeeper.root": self.root,
            "zookeeper.session_timeout_s": 5.0,
            "node.name": name,
            "node.slots": slots,
            "node.data_dir": str(self.directory / name),
            "node.drain_timeout_s": 2.0,
            "workers.modules": ["mischief"],
        }
        return load(None, {}, given | {key.replace("__", "."): value for key, value in overrides.items()})

    async def node(self, name: str = "a", slots: int = 2, **overrides: Any) -> Daemon:
        return await self.stack.enter_async_context(Daemon(self.settings(name, slots, **overrides)))

    def trace(self, name: str = "trace") -> Path:
        """A file for kernels to write to."""
        path = self.directory / name
        path.touch()
        return path


@pytest.fixture
async def site(
    zookeeper: str,
    zk_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Site]:
    monkeypatch.syspath_prepend(MODULES)
    caplog.set_level(logging.INFO, "zkd")
    async with submitting(zookeeper, zk_root) as user, AsyncExitStack() as stack:
        yield Site(zookeeper, zk_root, tmp_path, user, stack)


@pytest.fixture
async def cut_site(
    embedded: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Site]:
    """A site on a server of the test's own, whose faults are at hand."""
    monkeypatch.syspath_prepend(MODULES)
    caplog.set_level(logging.INFO, "zkd")
    async with submitting(embedded.connect_string, "/zkd") as user, AsyncExitStack() as stack:
        yield Site(embedded.connect_string, "/zkd", tmp_path, user, stack)
