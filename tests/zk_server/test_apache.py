"""A real ZooKeeper as a child process: it serves, can be killed, frozen and restarted, and is gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.certificates import Authority
from tests.zk_server.raw_client import Closed, RawClient, decode, encode
from zkd.zk import apache, jvm
from zkd.zk.apache import ApacheFailed, ApacheMissing, ApacheServer, Flags, ensemble

if TYPE_CHECKING:
    from pathlib import Path


def connected(port: int) -> RawClient:
    client = RawClient(port)
    client.connect()
    return client


def has_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_data_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    with ApacheServer(tmp_path) as server:
        client = connected(server.port)
        assert client.ask(*encode("create", "/kept", b"x", 0)).error == 0
        server.kill()
        client.await_close()
        client.close()
        assert not server.is_running
        assert server.mode() == ""
        server.start()
        server.wait_until_serving()
        server.restart()
        client = connected(server.port)
        assert decode("get", client.ask(*encode("get", "/kept")))[0][0] == b"x"
        client.close()
        pid = server.pid
        assert pid is not None
    assert not has_process(pid)
    assert (tmp_path / "zookeeper.log").exists()


def test_paused_server_is_silent_until_resumed(tmp_path: Path) -> None:
    with ApacheServer(tmp_path) as server:
        client = connected(server.port)
        server.pause()
        client.post(*encode("exists", "/"))
        client.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.reply()
        client.socket.settimeout(10)
        server.resume()
        assert client.reply().error == 0
        client.close()
        server.pause()  # and a paused one can be stopped
        server.stop(grace_s=0.5)


def test_flags_reach_the_server(tmp_path: Path) -> None:
    flags = Flags(tick_ms=300, max_session_ms=9000, jute_max_buffer=5000, extended_types=False, netty=True, heap="128m")
    with ApacheServer(tmp_path, flags=flags) as server:
        said = apache.ask(server.port, b"conf")
        assert "tickTime=300\n" in said
        assert "minSessionTimeout=600\n" in said
        assert "maxSessionTimeout=9000\n" in said
        client = connected(server.port)
        assert client.ask(*encode("ttl", "/t", b"", 5, 1000)).error == -6
        with pytest.raises(Closed):
            client.ask(*encode("create", "/big", b"x" * 6000, 0))
        client.close()


def test_ensemble_elects_another_leader(tmp_path: Path) -> None:
    with ensemble(3, tmp_path) as servers:
        assert servers.connect_string.count(",") == 2
        leader = servers.leader()
        assert len(servers.followers()) == 2
        client = connected(servers.followers()[0].port)
        assert client.ask(*encode("create", "/kept", b"x", 0)).error == 0
        client.close()
        leader.kill()
        second = servers.leader()
        assert second is not leader
        leader.start()
        leader.wait_until_serving()
        client = connected(leader.port)
        assert client.ask(*encode("sync", "/kept")).error == 0
        assert client.ask(*encode("get", "/kept")).error == 0
        client.close()


def test_tls_port_wants_a_client_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with ApacheServer(tmp_path, flags=Flags(tls=authority.server_stores())) as server:
        assert server.tls_port is not None
        client = RawClient(server.tls_port)
        client.socket = authority.client_context("ann").wrap_socket(client.socket, server_hostname="127.0.0.1")
        client.connect()
        assert ["x509", "CN=ann"] in [list(known) for known in decode("who_am_i", client.ask(*encode("who_am_i")))[0]]
        client.close()
        plain = RawClient(server.tls_port)
        with pytest.raises(Closed):
            plain.connect()
        plain.close()


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = ApacheServer(tmp_path, flags=Flags(config={"tickTime": "soon"}))
    with pytest.raises(ApacheFailed, match=r"(?s)ended by itself.*soon"), server:
        pytest.fail("it served")


def test_missing_java_and_jars_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ApacheMissing, match="apt-get install default-jre-headless"):
        jvm.java()
    monkeypatch.delenv("ZOOKEEPER_HOME", raising=False)
    monkeypatch.setattr(jvm, "DEBIAN_JAR", tmp_path / "zookeeper.jar")
    with pytest.raises(ApacheMissing, match="apt-get install zookeeper"):
        jvm.class_path()
    monkeypatch.setenv("ZOOKEEPER_HOME", str(tmp_path))
    with pytest.raises(ApacheMissing, match="ZOOKEEPER_HOME"):
        jvm.class_path()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "zookeeper-3.9.5.jar").touch()
    assert jvm.class_path() == str(tmp_path / "lib" / "zookeeper-3.9.5.jar")


def test_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from zkd.zk.apache import ApacheServer\n"
        f"s = ApacheServer({str(tmp_path)!r}); s.start(); print(s.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert has_process(pid)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    deadline = time.monotonic() + 10
    while has_process(pid) and not is_zombie(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_zombie(pid: int) -> bool:
    """Dead, and waiting for an init process that does not come where there is none."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
