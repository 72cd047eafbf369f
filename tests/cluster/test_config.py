"""Real daemons keep the last good configuration over a kill -9, without ZooKeeper, and with one that forgot all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cluster.processes import DaemonProcess
from tests.node.submitter import submitting, until
from zkd.client import Client
from zkd.configs import ConfigStanding
from zkd.zk.server import EmbeddedServer


def node_at(hosts: str, directory: Path) -> DaemonProcess:
    node = DaemonProcess(hosts, "/zkd", "a", directory, slots=1, timeout_s=2.0)
    node.environment["ZKD_LOG__LEVEL"] = "info"
    return node


def events(node: DaemonProcess, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in node.log().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == name]


async def logged(node: DaemonProcess, name: str, count: int) -> dict[str, Any]:
    """Wait until the event was logged so often; the last one."""

    async def told() -> dict[str, Any] | None:
        found = events(node, name)
        return found[-1] if len(found) >= count else None

    return await until(told, 30.0, f"{count} times {name}")


async def standing(client: Client, revision: int, refused: int | None) -> ConfigStanding:
    async def told() -> ConfigStanding | None:
        found = (await client.settings.standings()).get("a")
        return found if found is not None and (found.revision, found.refused) == (revision, refused) else None

    return await until(told, 30.0, f"the node runs revision {revision} and refused {refused}")


async def test_the_last_good_revision_survives_a_kill_and_a_start_without_zookeeper(tmp_path: Path) -> None:
    async with EmbeddedServer() as server:
        port = server.port
        node = node_at(server.connect_string, tmp_path)
        try:
            node.start()
            async with Client(server.connect_string) as client:
                await logged(node, "daemon.ready", 1)
                await client.settings.set({"tasks.timeout_s": 0.5, "workers.recycle_tasks": 7})
                await standing(client, 1, None)
                path, text = client.paths.config_layer("cluster"), b'{"revision":2,"values":{"tasks.timeout_s":-1}}'
                await client.session.set(path, text, -1)
                await client.session.set(client.paths.config, b'{"revision":2}', -1)
                assert (await standing(client, 1, 2)).faults[0].startswith("config/cluster: tasks.timeout_s: Expected")
        finally:
            node.kill()
    try:
        node.start()
        begun = await logged(node, "config.begun", 1)
        assert (begun["revision"], begun["source"]) == (1, "disk")
        async with EmbeddedServer(port=port) as server, Client(server.connect_string) as client:
            found = await standing(client, 1, 0)  # a ZooKeeper that forgot everything does not take it away
            assert found.source == "disk"
            assert "it was removed" in found.faults[0]
            assert found.need_restart == []
            async with submitting(server.connect_string, "/zkd") as user:
                task = await user.drop({"kernel": "nap", "args": [60]})
                result = await user.result(task, within_s=30)
            assert result.error is not None
            assert result.error.kind == "timeout"
    finally:
        node.kill()
        print(node.log()[-8000:])
