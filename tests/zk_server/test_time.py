"""What happens by itself: sessions expire, TTL nodes and used containers go. On both servers, in real time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.zk_server.raw_client import RawClient, decode, encode
from zkd.zk.apache import ApacheServer, Flags
from zkd.zk.server import EmbeddedServer, serve_in_thread
from zkd.zk.server.core import Core
from zkd.zk.server.tree import Tree, Txn
from zkd.zk.server.wire import CONNECT, NULL, OPEN_ACL, Op, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

TICK_S = 0.2


@pytest.fixture(scope="module", params=["embedded", "apache"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    if request.param == "embedded":
        with serve_in_thread(EmbeddedServer(tick_s=TICK_S, reap_s=TICK_S)) as server:
            yield server.port
    else:
        flags = Flags(tick_ms=200, container_check_ms=200)
        with ApacheServer(tmp_path_factory.mktemp("time"), flags=flags) as apache:
            yield apache.port


def connected(port: int, timeout_ms: int = 10_000) -> RawClient:
    client = RawClient(port)
    client.connect(timeout_ms)
    return client


def test_silent_session_expires_within_a_tick_after_its_timeout(port: int, zk_root: str) -> None:
    silent, watcher = connected(port, 600), connected(port)
    assert silent.ask(*encode("create", zk_root, b"", 1)).error == 0
    watcher.ask(*encode("exists", zk_root, True))
    last_heard = time.monotonic()
    silent.ask(Op.PING)
    assert watcher.await_event().kind == 2
    lasted = time.monotonic() - last_heard
    assert lasted > 0.58
    assert lasted < 0.6 + TICK_S + 0.4  # the last part is for a busy machine
    silent.await_close()
    again = RawClient(port)
    again.connect(600, silent.session_id, silent.password)
    assert again.session_id == 0
    for client in (silent, watcher, again):
        client.close()


def test_pings_keep_a_session_alive(port: int, zk_root: str) -> None:
    client, reader = connected(port, 400), connected(port)
    client.ask(*encode("create", zk_root, b"", 1))
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        client.ask(Op.PING)
        assert reader.ask(*encode("exists", zk_root)).error == 0
    client.close()
    reader.close()


def test_cut_session_keeps_its_ephemerals_when_it_returns_in_time(port: int, zk_root: str) -> None:
    client = connected(port, 800)
    client.ask(*encode("create", zk_root, b"", 1))
    client.close()
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        again = RawClient(port)
        again.connect(800, client.session_id, client.password)
        assert again.session_id == client.session_id
        stat = decode("exists", again.ask(*encode("exists", zk_root)))[0]
        assert stat.ephemeral_owner == client.session_id
        again.close()
        time.sleep(0.1)  # it is away, several times for longer than nothing


def test_ttl_node_goes_after_its_ttl_and_not_while_it_has_children(port: int, zk_root: str) -> None:
    client = connected(port)
    made = time.monotonic()
    client.ask(*encode("ttl", zk_root, b"", 5, 300))
    client.ask(*encode("create", f"{zk_root}/child", b"", 0))
    client.ask(*encode("ttl", f"{zk_root}-empty", b"", 5, 300))
    client.ask(*encode("exists", f"{zk_root}-empty", True))
    client.ask(*encode("exists", zk_root, True))
    event = client.await_event()
    assert (event.kind, event.path) == (2, f"{zk_root}-empty")
    assert time.monotonic() - made >= 0.29
    assert client.ask(*encode("exists", zk_root)).error == 0
    client.ask(*encode("delete", f"{zk_root}/child", -1))
    assert client.await_event().path == zk_root
    client.close()


def test_container_goes_when_its_last_child_went(port: int, zk_root: str) -> None:
    client = connected(port)
    client.ask(*encode("container", zk_root, b"", 4))
    client.ask(*encode("container", f"{zk_root}-unused", b"", 4))
    client.ask(*encode("create", f"{zk_root}/child", b"", 0))
    client.ask(*encode("exists", zk_root, True))
    client.ask(*encode("delete", f"{zk_root}/child", -1))
    assert client.await_event().path == zk_root
    assert client.ask(*encode("exists", f"{zk_root}-unused")).error == 0
    client.close()


def test_time_is_only_what_the_given_clock_says() -> None:
    clock = [1000.0]
    core = Core(clock=lambda: clock[0], wall=lambda: clock[0], tick_s=1.0)
    peer = core.open("127.0.0.1")
    core.connect(peer, Reader(CONNECT.pack(0, 0, 5000, 0) + NULL))
    assert peer.session is not None
    for now, is_alive in ((1005.0, True), (1005.9, True), (1006.0, False)):
        clock[0] = now
        core.tick()
        assert bool(core.sessions.by_id) == is_alive
    assert peer.is_closing


def test_stats_show_the_given_time_and_a_rollback_restores_it() -> None:
    tree = Tree()

    def at(zxid: int) -> Txn:
        return Txn(zxid, 1000 * zxid, 7, ())

    node = tree.create(at(1), Op.CREATE, "/a", b"", OPEN_ACL, 0)
    tree.set_data(at(2), "/a", b"x", 0)
    tree.begin()
    tree.set_data(at(3), "/a", b"y", 1)
    assert (node.stat().mtime, node.stat().mzxid) == (3000, 3)
    tree.roll_back()
    assert (node.stat().ctime, node.stat().mtime, node.stat().mzxid) == (1000, 2000, 2)
