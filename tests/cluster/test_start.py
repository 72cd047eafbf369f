"""A daemon that has not yet found its ZooKeeper listens to its signals."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.cluster.processes import DaemonProcess
from tests.node.submitter import until


async def test_a_daemon_that_is_starting_reloads_nothing_and_stops_when_told(tmp_path: Path) -> None:
    """It would have told its supervisor that it is ready."""
    node = DaemonProcess("127.0.0.1:1", "/zkd", "a", tmp_path, slots=1, timeout_s=2.0)
    node.start()

    async def says(what: str) -> bool:
        return what in node.log()

    try:
        await until(lambda: says("zookeeper.awaited"), 20.0, "it waits")
        node.signal(signal.SIGHUP)
        await until(lambda: says("settings.not_reloaded"), 5.0, "it says that this is too early")
        node.signal(signal.SIGTERM)
        node.signal(signal.SIGTERM)
        assert node.wait(10.0) == 0, node.log()
        assert "Traceback" not in node.log()
    finally:
        node.kill()
