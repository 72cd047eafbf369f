"""What an operator relies on: zkd.service under a real systemd, from start to stop, and when things go wrong."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.systemd.machine import REPOSITORY, Machine, wait_until

ZOOKEEPER = ("/opt/zkd/bin/python", "-m", "zkd.zk.server")

CLIENT = """
import asyncio, json, sys, zkd
root, call, arguments = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
async def main():
    async with zkd.Client(root=root) as client:
        if call == "result":
            return await client.handle(arguments[0]).result(timeout=30)
        if call == "state":
            return (await client.handle(arguments[0]).status()).state
        if call == "submit":
            return (await client.submit(*arguments)).id
        return await asyncio.wait_for(client.run(*arguments), 30)
print(json.dumps(asyncio.run(main())))
"""

NODES = """
import asyncio, json, sys, zkd
async def main():
    async with zkd.Client(root=sys.argv[1]) as client:
        return sorted(await client.session.children(client.paths.nodes))
print(json.dumps(asyncio.run(main())))
"""


class Service:
    """zkd.service (or another unit) with settings of the test's own, in a cluster of the test's own."""

    numbers = itertools.count(1)

    def __init__(self, machine: Machine, *units: str) -> None:
        self.machine = machine
        self.units = units
        self.name = units[0]
        self.root = f"/test-{next(self.numbers)}"

    def configure(self, settings: str = "", drop_in: str = "") -> None:
        head = f'[zookeeper]\nroot = "{self.root}"\nsession_timeout_s = 2.0\n'
        self.machine.write("/etc/zkd/zkd.toml", head + (settings or "[node]\nslots = 1\n"))
        for unit in ("zkd.service", "zkd@.service"):
            self.machine.write(f"/etc/systemd/system/{unit}", (REPOSITORY / "systemd" / unit).read_text())
            self.machine.write(f"/etc/systemd/system/{unit}.d/test.conf", f"[Service]\n{drop_in}")
        self.machine.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, *options: str, check: bool = True) -> str:
        return self.machine.run("systemctl", verb, *options, *self.units, check=check)

    def show(self, name: str) -> str:
        return self.machine.show(self.name, name)[name]

    def client(self, call: str, *arguments: Any) -> Any:
        return self.machine.python(CLIENT, self.root, call, json.dumps(arguments))

    def nodes(self) -> list[str]:
        nodes: list[str] = self.machine.python(NODES, self.root)
        return nodes

    def kill(self, signal: str) -> None:
        self.systemctl("kill", "--kill-whom=main", f"--signal={signal}")

    def was_logged(self, event: str, **fields: str) -> bool:
        found = self.machine.journal("-u", self.name, f"ZKD_EVENT={event}")
        return any(all(entry.get(f"ZKD_{key.upper()}") == value for key, value in fields.items()) for entry in found)


@pytest.fixture
def start_zookeeper(machine: Machine) -> Iterator[Callable[[], str]]:
    """Starts a server at the usual port, once; gives the name of its unit, new each time."""
    unit = f"ensemble-{uuid.uuid4().hex}"

    def start() -> str:
        machine.run("systemd-run", f"--unit={unit}", "--collect", *ZOOKEEPER)
        return unit

    yield start
    machine.run("systemctl", "stop", unit, check=False)


@pytest.fixture
def zookeeper(start_zookeeper: Callable[[], str]) -> str:
    return start_zookeeper()


@pytest.fixture
def make_service(machine: Machine) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(*units: str) -> Service:
        made.append(Service(machine, *(units or ("zkd.service",))))
        return made[-1]

    yield make
    for service in made:
        # Seen where a test fails: pytest shows what was printed.
        print(machine.run("journalctl", "--no-pager", "-n", "80", *(f"--unit={unit}" for unit in service.units)))
        service.systemctl("stop")
        service.systemctl("reset-failed", check=False)
    machine.run("journalctl", "--rotate", check=False)
    machine.run("journalctl", "--vacuum-time=1s", check=False)


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


def test_start_returns_when_the_node_serves(service: Service, zookeeper: str) -> None:
    service.configure()
    service.systemctl("start")
    assert service.nodes() == [service.machine.run("uname", "-n").strip()]
    assert service.client("run", "numpy.sum", [1, 2, 3]) == 6
    assert "slots" in service.show("StatusText")
    assert service.was_logged("daemon.ready", slots="1")


def test_start_waits_for_zookeeper_and_says_so(service: Service, start_zookeeper: Callable[[], str]) -> None:
    service.configure(drop_in="TimeoutStartSec=6s\n")
    service.systemctl("start", "--no-block")
    wait_until(lambda: "waiting for ZooKeeper" in service.show("StatusText"), "the status says what it waits for")
    # Longer than TimeoutStartSec: the daemon asked for more.
    wait_until(lambda: "(6 s)" in service.show("StatusText"), "it has waited for 6 s")
    assert service.show("ActiveState") == "activating"
    start_zookeeper()
    wait_until(lambda: service.show("ActiveState") == "active", "it serves when ZooKeeper is there")
    assert service.show("NRestarts") == "0"


def test_a_daemon_that_stands_still_is_restarted(service: Service, zookeeper: str) -> None:
    service.configure(drop_in="WatchdogSec=2s\n")
    service.systemctl("start")
    before = service.show("MainPID")
    service.kill("SIGSTOP")
    wait_until(lambda: service.show("NRestarts") == "1", "the watchdog restarted it")
    wait_until(lambda: service.show("ActiveState") == "active", "it serves again")
    assert service.show("MainPID") != before
    assert service.client("run", "numpy.sum", [1, 2]) == 3


def test_a_daemon_without_zookeeper_is_not_restarted(service: Service, zookeeper: str) -> None:
    service.configure(drop_in="WatchdogSec=2s\n")
    service.systemctl("start")
    service.machine.run("systemctl", "kill", "--signal=SIGSTOP", zookeeper)

    def fed_at_s() -> float:
        return int(service.show("WatchdogTimestampMonotonic")) / 1e6

    cut_at_s = fed_at_s()
    wait_until(lambda: fed_at_s() > cut_at_s + 4, "it feeds the watchdog although ZooKeeper is silent")
    assert service.was_logged("session.changed", state="unknown")
    service.machine.run("systemctl", "kill", "--signal=SIGCONT", zookeeper)
    assert service.client("run", "numpy.sum", [1, 2]) == 3
    assert (service.show("NRestarts"), service.show("ActiveState")) == ("0", "active")


def test_reload_applies_what_is_live_and_names_the_rest(service: Service, zookeeper: str) -> None:
    service.configure()
    service.systemctl("start")
    pid = service.show("MainPID")
    service.configure('[node]\nslots = 2\n[log]\nlevel = "debug"\n')
    service.systemctl("reload")
    wait_until(lambda: service.show("StatusText") == "restart needed for node.slots", "the status names the rest")
    assert service.was_logged("settings.reloaded")
    service.configure("[node]\nslots = 0\n")
    service.systemctl("reload")
    wait_until(lambda: "node.slots: Expected `int` >= 1" in service.show("StatusText"), "the status says what is wrong")
    assert service.show("MainPID") == pid
    assert service.client("run", "numpy.sum", [1, 2]) == 3


def test_settings_that_cannot_be_used_end_it_for_good(service: Service) -> None:
    service.configure("[node]\nslots = 0\n")
    service.systemctl("start", check=False)
    assert (service.show("ActiveState"), service.show("NRestarts")) == ("failed", "0")
    assert service.show("ExecMainStatus") == "78"
    told = service.machine.run("journalctl", "--no-pager", "-u", service.name)
    assert "/etc/zkd/zkd.toml:5: node.slots: Expected `int` >= 1 (is 0)" in told


def test_stop_lets_a_running_task_end(service: Service, zookeeper: str) -> None:
    service.configure(drop_in="TimeoutStopSec=1s\n")
    service.systemctl("start")
    task = service.client("submit", "sleep", 4)
    wait_until(lambda: service.client("state", task) == "running", "the task runs")
    service.systemctl("stop")
    assert service.client("result", task) == 4
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    assert service.nodes() == []


def test_stop_hands_back_what_takes_too_long(service: Service, zookeeper: str) -> None:
    service.configure("[node]\nslots = 1\ndrain_timeout_s = 0.5\n")
    service.systemctl("start")
    task = service.client("submit", "sleep", 3)
    wait_until(lambda: service.client("state", task) == "running", "the task runs")
    service.systemctl("stop")
    assert service.show("Result") == "success"
    service.systemctl("start")
    assert service.client("result", task) == 3


def test_a_killed_daemon_is_back_and_takes_up_its_task(service: Service, zookeeper: str) -> None:
    service.configure()
    service.systemctl("start")
    task = service.client("submit", "sleep", 2)
    wait_until(lambda: service.client("state", task) == "running", "the task runs")
    service.kill("SIGKILL")
    assert service.client("result", task) == 2
    assert (service.show("NRestarts"), service.show("ActiveState")) == ("1", "active")
    assert service.client("run", "numpy.sum", [1, 2]) == 3


def test_two_instances_share_a_machine(make_service: Callable[..., Service], zookeeper: str) -> None:
    service = make_service("zkd@a.service", "zkd@b.service")
    service.configure()
    service.systemctl("start")
    host = service.machine.run("uname", "-n").strip()
    assert service.nodes() == [f"{host}-a", f"{host}-b"]
    assert service.client("run", "numpy.sum", [1, 2]) == 3


def test_a_secret_reaches_the_daemon_and_nobody_else(service: Service, zookeeper: str) -> None:
    service.machine.write("/etc/zkd/zk-auth", "digest:zkd:hunter2\n")
    service.machine.run("chmod", "600", "/etc/zkd/zk-auth")
    drop_in = (REPOSITORY / "systemd/drop-ins/credentials.conf").read_text().replace("[Service]", "")
    service.configure('auth_file = "credential:zk-auth"\n[node]\nslots = 1\n', drop_in)
    service.systemctl("start")
    assert service.client("run", "numpy.sum", [1, 2]) == 3
    assert "hunter2" not in service.machine.run("journalctl", "--no-pager", "-o", "json", "-u", service.name)
