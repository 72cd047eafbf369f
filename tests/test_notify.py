"""Promises of zkd.notify."""

from __future__ import annotations

import os
import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from zkd.notify import Notify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["file", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The receiving end, and its address as systemd writes it."""
    address = str(tmp_path / "notify") if request.param == "file" else f"@zkd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0") if request.param == "abstract" else address)
        receiver.settimeout(5)
        yield receiver, address


def test_says_what_systemd_understands(supervisor: tuple[socket.socket, str]) -> None:
    receiver, address = supervisor
    notify = Notify(address)
    notify.ready("node a,\n2 slots")
    assert receiver.recv(999) == b"READY=1\nSTATUS=node a, 2 slots"
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.reloading("again")
    match = re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=(\d+)\nSTATUS=again", receiver.recv(999))
    assert match is not None
    assert before <= int(match[1]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify.alive()
    assert receiver.recv(999) == b"WATCHDOG=1"
    notify.extend(1.5, "draining")
    assert receiver.recv(999) == b"EXTEND_TIMEOUT_USEC=1500000\nSTATUS=draining"
    notify.stopping("bye")
    assert receiver.recv(999) == b"STOPPING=1\nSTATUS=bye"
    notify.status("waiting for ZooKeeper")
    assert receiver.recv(999) == b"STATUS=waiting for ZooKeeper"
    notify.close()
    notify.alive()


def test_the_environment_is_taken_so_that_workers_cannot_speak_for_the_daemon() -> None:
    env = {"NOTIFY_SOCKET": "@x", "WATCHDOG_PID": str(os.getpid()), "WATCHDOG_USEC": "20000000", "HOME": "/"}
    notify = Notify.from_env(env)
    assert notify.is_supervised
    assert notify.watchdog_s == 20
    assert env == {"HOME": "/"}
    notify.close()


@pytest.mark.parametrize(
    ("env", "watchdog_s"),
    [
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "5000000"}, 5.0),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "5000000"}, None),
    ],
)
def test_the_watchdog_counts_only_when_it_is_ours(env: dict[str, str], watchdog_s: float | None) -> None:
    notify = Notify.from_env(env)
    assert notify.watchdog_s == watchdog_s
    notify.close()


def test_without_a_supervisor_nothing_happens() -> None:
    for env in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:9999"}):
        notify = Notify.from_env(env)
        assert not notify.is_supervised
        notify.ready()


def test_a_supervisor_that_is_gone_or_full_does_not_hold_up_the_work(supervisor: tuple[socket.socket, str]) -> None:
    gone = Notify("/nonexistent/notify")
    gone.ready()
    gone.close()
    full = Notify(supervisor[1])
    for _ in range(5000):
        full.alive()
    full.close()
