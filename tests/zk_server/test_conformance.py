"""The embedded server answers every request as Apache ZooKeeper 3.8 does: same scripts, same replies."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.zk_server.raw_client import Step, encode
from tests.zk_server.scripts import Run, Zxid
from zkd.zk.apache import ApacheServer, Flags
from zkd.zk.server import EmbeddedServer, serve_in_thread
from zkd.zk.server.acl import digest
from zkd.zk.server.wire import INT, MAX_FRAME, OPEN_ACL, Acl, Op

if TYPE_CHECKING:
    from collections.abc import Iterator

# Nobody but the script may use up a zxid: no reaper, and servers of these tests' own.
NEVER_S = 3600


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Ports of a real server and of an embedded one, with the same ticks and limits."""
    flags = Flags(tick_ms=200, container_check_ms=NEVER_S * 1000)
    with (
        ApacheServer(tmp_path_factory.mktemp("conformance"), flags=flags) as apache,
        serve_in_thread(EmbeddedServer(tick_s=0.2, reap_s=NEVER_S)) as embedded,
    ):
        yield apache.port, embedded.port


def assert_same(servers: tuple[int, int], script: list[Step]) -> list[Any]:
    expected, got = (Run(port).play(script) for port in servers)
    for number, (theirs, ours) in enumerate(zip(expected, got, strict=True)):
        assert ours == theirs, f"step {number} of {len(script)}: {theirs[0]}"
    return expected


READER = Acl(1, "world", "anyone")
ALICE, BOB = ("digest", b"alice:secret"), ("digest", b"bob:pw")
ALICES = Acl(31, "digest", digest(b"alice:secret"))
LONG_NAME = "n" * 200

WITH_BODIES = set(Op) - {
    Op.NOTIFICATION,
    Op.CHECK,  # alone, it ends Apache's server
    Op.DELETE_CONTAINER,
    Op.RECONFIG,
    *(Op.PING, Op.AUTH, Op.SASL, Op.GET_EPHEMERALS, Op.WHO_AM_I, Op.CREATE_SESSION, Op.CLOSE_SESSION, Op.ERROR),
}

SCRIPTS: dict[str, list[Step]] = {
    "create and its errors": [
        ("a", "create", "~/a", b"data", 0),
        ("a", "create", "~/a", b"data", 0),
        ("a", "create", "~/none/b", b"", 0),
        ("a", "create", "~/a/b", None, 0),
        ("a", "create2", "~/a/c", b"\0\xff", 0),
        ("a", "create2", "~/a/c", b"", 0),
        ("a", "get", "~/a"),
        ("a", "get", "~/a/b"),
        ("a", "get", "~/a/c"),
        ("a", "create", "~/s-", b"", 2),
        ("a", "create2", "~/s-", b"", 2),
        ("a", "create", "~/", b"", 2),
        ("a", "create", "~/a/", b"", 0),
        ("a", "create", "~/f7", b"", 7),
        ("a", "create", "~/f-1", b"", -1),
        ("a", "create", "~/f4", b"", 4),
        ("a", "create", "~/f5", b"", 5),
        ("a", "exists", "~/f4"),
        ("a", "children2", "~"),
        ("a", "create", "~/e", b"", 1),
        ("a", "create", "~/e/child", b"", 0),
        ("a", "create2", "~/es", b"", 3),
        ("a", "exists", "~/e"),
        ("a", "children2", "~"),
        ("b", "get", "~/e"),
    ],
    "paths": [
        step
        for path in [
            "",
            "/",
            "nope",
            "nope/x",
            "//",
            "~//x",
            "~/.",
            "~/..",
            "~/./x",
            "~/../x",
            "~/...",
            "~/.x",
            "~/x.",
            "~/..x",
            "~/a\0b",
            "~/a\x01b",
            "~/a\x7fb",
            "~/a\x9fb",
            "~/\xa0",
            "~/é",
            "~/漢字",
            "~/\ue000",
            "~/\uf900",
            "~/\uffef",
            "~/\ufff0",
            "~/😀",
            "~/ ",
            "~/a b",
            "~/%",
            "~/-0000000001",
            f"~/{LONG_NAME}",
        ]
        for step in [
            ("a", "create", path, b"x", 0),
            ("a", "create", path, b"x", 2),
            ("a", "set", path if path not in ("", "/") else "~", b"y", 7),
            ("a", "delete", path, 7),
            ("a", "check_watches", path, 3),
            ("a", "get_acl", path if path not in ("", "/") else "~"),
            ("a", "exists", path if path not in ("", "/") else "~"),
            ("a", "multi", [("create", f"{path}/q", b"", 0)]),
            ("a", "sync", path if path.isascii() else "~"),
            ("a", "multi_read", [("children", path if path not in ("", "/") else "~")]),
        ]
    ],
    "protected znodes": [
        ("a", "delete", "/", -1),
        ("a", "delete", "/zookeeper", -1),
        ("a", "delete", "/zookeeper/quota", -1),
        ("a", "delete", "/zookeeper/config", -1),
        ("a", "get", "/zookeeper/config"),
        ("a", "get", "/zookeeper/quota"),
        ("a", "get", "/zookeeper"),
        ("a", "children2", "/zookeeper"),
        ("a", "get_acl", "/zookeeper/config"),
        ("a", "get_acl", "/zookeeper"),
        ("a", "get_acl", "/zookeeper/quota"),
        ("a", "set", "/zookeeper/config", b"", -1),
        ("a", "create", "/zookeeper/config/x", b"", 0),
        ("a", "reconfig", "server.1=x:1:1;1"),
    ],
    "quotas are counted": [
        ("a", "create", "~/q", b"12", 0),
        ("a", "create", "/zookeeper/quota~", b"", 0),
        ("a", "create", "/zookeeper/quota~/q", b"", 0),
        ("a", "create", "/zookeeper/quota~/q/zookeeper_limits", b"count=9,bytes=-1", 0),
        ("a", "create", "/zookeeper/quota~/q/zookeeper_stats", b"count=0,bytes=0", 0),
        ("a", "get", "/zookeeper/quota~/q/zookeeper_stats"),
        ("a", "create", "~/q/a", b"345", 0),
        ("a", "create", "~/q/b", None, 0),
        ("a", "set", "~/q/a", b"3456789", -1),
        ("a", "multi", [("create", "~/q/c", b"roll me back", 0), ("check", "~/q", 9)]),
        ("a", "get", "/zookeeper/quota~/q/zookeeper_stats"),
        ("a", "delete", "~/q/a", -1),
        ("a", "exists", "/zookeeper/quota~/q/zookeeper_stats"),
        ("a", "get", "/zookeeper/quota~/q/zookeeper_stats"),
        *[("a", "delete", f"/zookeeper/quota~{name}", -1) for name in ("/q/zookeeper_stats", "/q/zookeeper_limits")],
        *[("a", "delete", f"/zookeeper/quota~{name}", -1) for name in ("/q", "")],
    ],
    "set and delete": [
        ("a", "create", "~/a", b"0", 0),
        ("a", "set", "~/a", b"1", 0),
        ("a", "set", "~/a", b"2", 0),
        ("a", "set", "~/a", b"2", -1),
        ("a", "set", "~/a", None, 2),
        ("a", "get", "~/a"),
        ("a", "set", "~/a", b"", -2),
        ("a", "set", "~/none", b"", -1),
        ("a", "create", "~/a/b", b"", 0),
        ("a", "delete", "~/a", 3),
        ("a", "delete", "~/a", 9),
        ("a", "delete", "~/a/b", 1),
        ("a", "delete", "~/a/b", 0),
        ("a", "exists", "~/a"),
        ("a", "delete", "~/a", -1),
        ("a", "delete", "~/a", -1),
        ("a", "delete", "~/none/x", -1),
        ("a", "exists", "~"),
        ("a", "exists", "~/a"),
        ("a", "get", "~/a"),
        ("a", "children", "~/a"),
        ("a", "children2", "~/a"),
        ("a", "get_acl", "~/a"),
        ("a", "count", "~/a"),
    ],
    "containers and TTL nodes": [
        ("a", "container", "~/c", b"c", 4),
        ("a", "container", "~/c0", b"", 0),
        ("a", "container", "~/c1", b"", 1),
        ("a", "container", "~/c2-", b"", 2),
        ("a", "container", "~/c9", b"", 9),
        ("a", "exists", "~/c"),
        ("a", "exists", "~/c1"),
        ("a", "create", "~/c/x", b"", 0),
        ("a", "create", "~/c/e", b"", 1),
        ("a", "delete", "~/c/x", 0),
        ("a", "exists", "~/c"),
        ("a", "ttl", "~/t", b"t", 5, 100_000),
        ("a", "ttl", "~/t-", b"t", 6, 1),
        ("a", "ttl", "~/t0", b"t", 5, 0),
        ("a", "ttl", "~/t1", b"t", 5, -5),
        ("a", "ttl", "~/t2", b"t", 5, 0xFF_FFFF_FFFF),
        ("a", "ttl", "~/t3", b"t", 5, 0x100_0000_0000),
        ("a", "ttl", "~/t4", b"t", 0, 5),
        ("a", "ttl", "~/t5", b"t", 8, 5),
        ("a", "exists", "~/t"),
        ("a", "create", "~/t/x", b"", 0),
        ("a", "ephemerals", ""),
        ("a", "children2", "~"),
    ],
    "acls": [
        ("a", "who_am_i"),
        ("a", "create", "~/mine", b"", 0, [Acl(31, "auth", "")]),
        ("a", "auth", *ALICE),
        ("a", "auth", *ALICE),
        ("a", "auth", *BOB),
        ("a", "who_am_i"),
        ("b", "auth", *BOB),
        ("b", "auth", "ip", b"whatever"),
        ("a", "create", "~/mine", b"", 0, [Acl(31, "auth", "ignored")]),
        ("a", "get_acl", "~/mine"),
        ("a", "create", "~/alice", b"a", 0, [ALICES, READER, READER]),
        ("a", "get_acl", "~/alice"),
        ("b", "get_acl", "~/alice"),
        ("b", "get", "~/alice"),
        ("b", "set", "~/alice", b"", -1),
        ("b", "create", "~/alice/x", b"", 0),
        ("a", "create", "~/alice/x", b"", 0),
        ("b", "delete", "~/alice/x", -1),
        ("b", "children2", "~/alice"),
        ("c", "get_acl", "~/alice"),
        ("c", "create", "~/local", b"", 0, [Acl(31, "ip", "127.0.0.1")]),
        ("c", "create", "~/remote", b"", 0, [Acl(31, "ip", "10.0.0.0/8")]),
        ("c", "create", "~/net", b"", 0, [Acl(31, "ip", "127.0.0.0/8")]),
        ("c", "create", "~/net13", b"", 0, [Acl(31, "ip", "127.7.255.3/13")]),
        ("c", "create", "~/net0", b"", 0, [Acl(31, "ip", "9.9.9.9/0")]),
        *[("c", "get", f"~/{name}") for name in ("local", "remote", "net", "net13", "net0")],
        ("c", "set_acl", "~/remote", [READER], -1),
        ("c", "set_acl", "~/local", [READER], 1),
        ("c", "set_acl", "~/local", [READER], 0),
        ("c", "set_acl", "~/local", [READER], -1),
        ("c", "exists", "~/local"),
        ("c", "get_acl", "~/local"),
        ("c", "delete", "~/remote", -1),
        ("c", "set_acl", "~/none", [READER], -1),
        ("c", "set_acl", "~", [Acl(31, "auth", "")], -1),
        ("c", "create", "~/w", b"", 0, [Acl(2, "world", "anyone")]),
        ("c", "get", "~/w", True),
        ("c", "children", "~/w", True),
        ("c", "get_acl", "~/w"),
        ("c", "count", "~/w"),
        ("c", "exists", "~/w", True),
        ("c", "set", "~/w", b"", -1),
        ("c", "multi", [("check", "~/w", -1)]),
        ("c", "multi", [("create", "~/w/x", b"", 0)]),
        ("c", "multi_read", [("get", "~/w"), ("children", "~/w"), ("get", "~")]),
        *[
            ("c", "create", f"~/bad{number}", b"", 0, acl)
            for number, acl in enumerate(
                [
                    [],
                    [Acl(31, "world", "someone")],
                    [Acl(31, "nope", "x")],
                    [Acl(31, "digest", "nocolon")],
                    [Acl(31, "digest", "a:")],
                    [Acl(31, "digest", ":b")],
                    [Acl(31, "digest", "a:b:c")],
                    [Acl(31, "digest", "a:b:")],
                    [Acl(31, "ip", "300.1.1.1")],
                    [Acl(31, "ip", "1.2.3")],
                    [Acl(31, "ip", "1.2.3.4/33")],
                    [Acl(31, "ip", "1.2.3.4/x")],
                    [Acl(31, "ip", "1.2.3.4/")],
                    [Acl(31, "auth", "")],
                    [READER, Acl(31, "auth", "")],
                    [Acl(31, None, "x")],
                    [Acl(0, "world", "anyone")],
                    [Acl(99, "world", "anyone")],
                ]
            )
        ],
        ("c", "get_acl", "~/bad5"),
        ("c", "get", "~/bad16"),
        ("c", "get", "~/bad17"),
    ],
    "unknown auth scheme ends the connection": [
        ("a", "create", "~/a", b"", 1),
        ("b", "auth", "nope", b"x"),
        ("c", "auth", "auth", b"x"),
        ("d", "auth", "world", b"anyone"),
        ("e", "auth", "sasl", b""),
    ],
    "multi": [
        ("a", "multi", []),
        ("a", "multi", [("create", "~/a", b"1", 0), ("create", "~/a/b", b"2", 0), ("set", "~/a", b"3", 0)]),
        (
            "a",
            "multi",
            [("check", "~/a", 1), ("delete", "~/a/b", 0), ("delete", "~/a", 1), ("create", "~/a", b"", 0)],
        ),
        ("a", "exists", "~/a"),
        (
            "a",
            "multi",
            [("create", "~/x", b"", 0), ("set", "~/x", b"1", 0), ("check", "~/none", 0), ("delete", "~/x", 1)],
        ),
        ("a", "exists", "~/x"),
        ("a", "exists", "~"),
        ("a", "multi", [("create", "~/s-", b"", 2), ("create", "~/s-", b"", 3), ("create2", "~/s-", b"", 2)]),
        ("a", "children2", "~"),
        ("a", "ephemerals", "~"),
        ("a", "multi", [("container", "~/c", b"", 4), ("ttl", "~/t", b"", 5, 90_000), ("container", "~/c0", b"", 0)]),
        ("a", "multi", [("ttl", "~/t9", b"", 5, 0)]),
        ("a", "multi", [("create", "~/f", b"", 9)]),
        ("a", "multi", [("create", "~/f4", b"", 4)]),
        ("a", "exists", "~/f4"),
        ("a", "multi", [("delete", "~/a", 0), ("delete", "~/a", 0)]),
        ("a", "multi", [("delete", "~", -1)]),
        ("a", "multi", [("set", "~/a", b"", 3), ("set", "~/a", b"", 0)]),
        ("a", "multi", [("set", "~/a", b"", 0), ("set", "~/a", b"x", 0)]),
        ("a", "multi", [("set", "~/a", b"", 0), ("set", "~/a", b"x", 1), ("set", "~/a", None, 2), ("check", "~/a", 3)]),
        ("a", "get", "~/a"),
        ("a", "multi", [("create", "~/e", b"", 1), ("create", "~/e/x", b"", 0)]),
        ("a", "multi", [("create", "~/e", b"", 1), ("delete", "~/e", 0)]),
        ("a", "ephemerals", ""),
        ("a", "multi", [("get", "~/a")]),
        ("a", "multi", [("create", "~/g", b"", 0), ("get", "~/a")]),
        ("a", "multi", [("set_acl", "~/a", [READER], -1)]),
        ("a", "multi_read", []),
        ("a", "multi_read", [("get", "~/a"), ("get", "~/none"), ("children", "~"), ("children", "~/none")]),
        ("a", "multi_read", [("get", "~/a", True), ("children", "~", True)]),
        ("a", "set", "~/a", b"no watch was set", -1),
        ("a", "multi_read", [("get", "~/a"), ("delete", "~/a", -1)]),
        ("a", "exists", "~"),
    ],
    "rolled back multis fire no watches and leave no stat": [
        ("w", "add_watch", "~", 1),
        ("a", "create", "~/p", b"", 0),
        ("a", "create", "~/p/x", b"", 0),
        ("w", "children", "~/p", True),
        ("w", "get", "~/p/x", True),
        ("a", "multi", [("create", "~/p/y", b"", 0), ("delete", "~/p/x", 0), ("set", "~/p", b"", 5)]),
        ("a", "children2", "~/p"),
        ("a", "create", "~/p/s-", b"", 2),
        ("a", "multi", [("create", "~/p/s-", b"", 2), ("set", "~/p/x", b"q", 0), ("delete", "~/p/s-0000000001", 0)]),
        ("a", "multi", [("create", "~/p/s-", b"", 3), ("delete", "~/p/s-0000000003", 0), ("set", "~/p/x", b"", 1)]),
        ("a", "children2", "~/p"),
    ],
    "one-shot watches": [
        ("w", "exists", "~/a", True),
        ("w", "children", "~", True),
        ("a", "create", "~/a", b"", 0),
        ("a", "set", "~/a", b"1", -1),
        ("w", "get", "~/a", True),
        ("w", "get", "~/a", True),
        ("a", "set", "~/a", b"2", -1),
        ("a", "set", "~/a", b"3", -1),
        ("w", "get", "~/a", True),
        ("w", "children", "~/a", True),
        ("w", "children2", "~", True),
        ("a", "delete", "~/a", -1),
        ("w", "get", "~/a", True),
        ("w", "children", "~/a", True),
        ("a", "create", "~/a", b"", 0),
        ("w", "exists", "~/a", True),
        ("a", "set_acl", "~/a", [READER], -1),
        ("a", "delete", "~/a", -1),
        ("w", "exists", "bad path", True),
        ("w", "exists", "~/a\0b", True),
        ("a", "exists", "~/own", True),
        ("a", "create", "~/own", b"", 0),
        ("w", "children", "~/own", True),
        ("a", "multi", [("create", "~/own/1", b"", 0), ("create", "~/own/2", b"", 0), ("set", "~/own", b"", -1)]),
    ],
    "persistent watches": [
        ("w", "add_watch", "~/a", 0),
        ("r", "add_watch", "~/a", 1),
        ("a", "create", "~/a", b"", 0),
        ("a", "create", "~/a/b", b"", 0),
        ("a", "create", "~/a/b/c", b"", 0),
        ("a", "set", "~/a", b"1", -1),
        ("a", "set", "~/a/b", b"1", -1),
        ("a", "set", "~/a/b/c", b"1", -1),
        ("a", "multi", [("delete", "~/a/b/c", -1), ("delete", "~/a/b", -1), ("delete", "~/a", -1)]),
        ("a", "create", "~/ab", b"", 0),
        ("a", "create", "~/a", b"", 1),
        ("a", "close"),
        ("w", "add_watch", "~/a", 7),
        ("w", "add_watch", "relative", 0),
        ("w", "add_watch", "~/a", 1),
        ("b", "create", "~/a", b"", 0),
        ("b", "create", "~/a/b", b"", 0),
        ("r", "remove_watches", "~/a", 3),
        ("r", "remove_watches", "~/a", 3),
        ("b", "set", "~/a/b", b"", -1),
        ("r", "add_watch", "/", 1),
        ("b", "set", "~/a/b", b"", -1),
        ("r", "remove_watches", "/", 3),
        ("b", "set", "~/a/b", b"", -1),
    ],
    "kinds of watches on one path replace each other": [
        ("a", "create", "~/a", b"", 0),
        ("w", "add_watch", "~/a", 0),
        ("w", "get", "~/a", True),
        ("a", "set", "~/a", b"", -1),
        ("a", "set", "~/a", b"", -1),
        ("a", "create", "~/a/x", b"", 0),
        ("a", "create", "~/a/y", b"", 0),
        ("w", "add_watch", "~/a", 1),
        ("w", "children", "~/a", True),
        ("a", "create", "~/a/z", b"", 0),
        ("a", "delete", "~/a/z", -1),
        ("w", "get", "~/a", True),
        ("a", "set", "~/a/x", b"", -1),
        ("a", "set", "~/a", b"", -1),
        ("a", "set", "~/a", b"", -1),
        ("w", "add_watch", "~/a", 1),
        ("w", "add_watch", "~/a", 0),
        ("a", "set", "~/a/x", b"", -1),
        ("a", "set", "~/a", b"", -1),
    ],
    "checking and removing watches": [
        ("w", "check_watches", "~/a", 3),
        ("w", "exists", "~/a", True),
        *[("w", "check_watches", "~/a", kind) for kind in (1, 2, 3, 4, 0)],
        *[("b", "check_watches", "~/a", kind) for kind in (1, 2, 3)],
        ("b", "remove_watches", "~/a", 3),
        ("w", "remove_watches", "~/a", 1),
        ("w", "remove_watches", "~/a", 9),
        ("w", "remove_watches", "~/a", 2),
        ("w", "remove_watches", "~/a", 2),
        ("a", "create", "~/a", b"", 0),
        ("w", "children", "~/a", True),
        ("w", "get", "~/a", True),
        ("w", "remove_watches", "~/a", 1),
        ("a", "create", "~/a/x", b"", 0),
        ("a", "set", "~/a", b"", 0),
        ("w", "add_watch", "~/a", 1),
        *[("w", "check_watches", path, 3) for path in ("~/a", "~/a/x", "~")],
        ("w", "remove_watches", "~/a", 1),
        ("a", "set", "~/a/x", b"", 0),
        ("w", "remove_watches", "~/a", 2),
        ("a", "set", "~/a/x", b"", 1),
    ],
    "restored watches tell what was missed": [
        ("a", "create", "~/a", b"", 0),
        ("a", "create", "~/b", b"", 0),
        ("a", "create", "~/b/x", b"", 0),
        ("a", "set", "~/a", b"", -1),
        ("w", "set_watches", Zxid(0), ["~/a", "~/none"], ["~/a", "~/later"], ["~/b", "~/none"]),
        ("w", "set_watches", Zxid(99), ["~/a", "~/none"], ["~/b", "~/later"], ["~/b", "~/none"]),
        ("a", "set", "~/a", b"", -1),
        ("a", "create", "~/later", b"", 0),
        ("a", "create", "~/b/y", b"", 0),
        ("w", "set_watches", Zxid(99), ["~/a"], [], ["~"], ["~/p"], ["~/b"]),
        ("a", "create", "~/p", b"", 0),
        ("a", "set", "~/p", b"", 0),
        ("a", "create", "~/p/x", b"", 0),
        ("a", "set", "~/b/x", b"", 0),
        ("a", "set", "~/a", b"", -1),
        ("w", "set_watches", Zxid(0), [], [], [], [], []),
    ],
    "ephemerals go with their session": [
        ("a", "create", "~/d", b"", 0),
        ("a", "create", "~/d/1", b"", 1),
        ("a", "create", "~/d/2", b"", 3),
        ("a", "create", "~/d/3", b"", 1),
        ("b", "create", "~/d/b", b"", 1),
        ("a", "ephemerals", ""),
        ("a", "ephemerals", "/"),
        ("a", "ephemerals", "~/d/1"),
        ("a", "ephemerals", "~/x"),
        ("b", "ephemerals", "~/d"),
        ("c", "ephemerals", "~/d"),
        ("w", "add_watch", "~", 1),
        ("w", "exists", "~/d/1", True),
        ("b", "children", "~/d", True),
        ("a", "delete", "~/d/3", -1),
        ("a", "close"),
        ("w", "children2", "~/d"),
        ("b", "close"),
        ("w", "children2", "~/d"),
        ("w", "count", "~"),
        ("w", "count", "~/d"),
    ],
    "sessions": [
        ("a", "connect", {"timeout_ms": 1}),
        ("b", "connect", {"timeout_ms": 10_000_000}),
        ("c", "connect", {"timeout_ms": -5}),
        ("d", "connect", {"tail": b""}),
        ("e", "connect", {"seen_zxid": 1000}),
        ("f", "connect", {"seen_zxid": 1}),
        ("g", "connect", {"session_id": 12345}),
        ("b", "create", "~/e", b"", 1),
        ("b", "exists", "~/e", True),
        ("b", "cut"),
        ("f", "exists", "~/e"),
    ],
    "a session moves to another connection": [
        ("a", "create", "~/e", b"", 1),
        ("a", "get", "~/e", True),
        ("a", "take_over", "a2", {"timeout_ms": 3000}),
        ("a2", "ephemerals", ""),
        ("a2", "set", "~/e", b"", 0),
        ("a2", "who_am_i"),
        ("a2", "take_over", "x", {"password": b"x" * 16}),
        ("b", "exists", "~/e"),
        ("b", "take_over", "y", {"password": b""}),
    ],
    "unknown requests end the connection": [
        ("a", "create", "~/e", b"", 1),
        *[(f"u{op}", "raw", op, b"") for op in (10, 23, 99, 108, 1000, -3)],
        ("a", "exists", "~/e"),
    ],
    "malformed bodies": [
        ("a", "create", "~/a", b"", 0),
        *[
            ("a", "raw", op, body)
            for op in (
                Op.CREATE,
                Op.DELETE,
                Op.EXISTS,
                Op.GET_DATA,
                Op.SET_DATA,
                Op.GET_ACL,
                Op.SET_ACL,
                Op.GET_CHILDREN,
                Op.SYNC,
                Op.GET_CHILDREN2,
                Op.MULTI,
                Op.CREATE2,
                Op.CHECK_WATCHES,
                Op.REMOVE_WATCHES,
                Op.CREATE_CONTAINER,
                Op.CREATE_TTL,
                Op.MULTI_READ,
                Op.SET_WATCHES,
                Op.GET_ALL_CHILDREN_NUMBER,
                Op.SET_WATCHES2,
                Op.ADD_WATCH,
            )
            for body in (b"", b"\0\0\0\x05/", INT.pack(-2) + b"/abc", INT.pack(0x7FFFFFFF), INT.pack(2) + b"/a")
        ],
        *[("a", "raw", Op.MULTI, INT.pack(op) + b"\0" + INT.pack(-1) + b"xxxx") for op in (1, 2, 5, 13, 99, -1)],
        ("a", "raw", Op.GET_EPHEMERALS, INT.pack(-1)),
        ("a", "raw", Op.CREATE, INT.pack(-1) + INT.pack(0) + INT.pack(-1) + INT.pack(0)),
        ("a", "raw", Op.CREATE, b"\0\0\0\x02/q" + INT.pack(0) + INT.pack(-1) + INT.pack(0)),
        ("a", "raw", Op.CREATE, b"\0\0\0\x03/\xff\xfe" + INT.pack(0) + encode("set_acl", "", list(OPEN_ACL), 0)[1][4:]),
        ("a", "raw", Op.EXISTS, b"\0\0\0\x03/\xff\xfe\0"),
        ("a", "get", "~/a"),
    ],
    "big values": [
        ("a", "create", "~/big", b"x" * 1_000_000, 0),
        ("a", "get", "~/big"),
        ("a", "set", "~/big", b"y" * (MAX_FRAME - 300), -1),
        ("b", "set", "~/big", b"z" * (MAX_FRAME + 1), -1),
        ("a", "multi", [("create", f"~/m{number}", b"x" * 9_000, 0) for number in range(100)]),
        ("a", "children2", "~"),
        ("a", "multi_read", [("get", "~/big")] * 3),
        ("a", "exists", "~/big"),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_gets_the_same_replies(servers: tuple[int, int], name: str) -> None:
    assert_same(servers, SCRIPTS[name])


def random_script(seed: int, length: int = 120) -> list[Step]:
    """Requests of four clients on a few paths, so that they meet; about half of them fail."""
    rng = random.Random(seed)
    names = [
        "~/a",
        "~/b",
        "~/a/a",
        "~/a/b",
        "~/b/a",
        "~/a/a/a",
        *(f"~/a/s{n:010}" for n in range(3)),
        "~/s0000000002",
        "~",
    ]
    alive = ["p", "q", "r", "w"]
    acls = [list(OPEN_ACL)] * 8 + [[READER], [ALICES, READER], [Acl(15, "ip", "127.0.0.1")], [Acl(31, "auth", "")], []]

    def path() -> str:
        return rng.choice(names)

    def version() -> int:
        return rng.choice([-1, -1, -1, 0, 0, 1, 2])

    def data() -> bytes | None:
        return rng.choice([b"", b"x", b"yy", None])

    def write() -> Step:
        return rng.choice(
            [
                ("create", path(), data(), rng.choice([0, 0, 0, 1, 1]), rng.choice(acls)),
                ("create", rng.choice(["~/a/s", "~/s", "~/b/"]), data(), rng.choice([2, 3])),
                ("container", path(), data(), 4),
                ("ttl", path(), data(), 5, 1_000_000),
                ("delete", path(), version()),
                ("delete", path(), version()),
                ("set", path(), data(), version()),
                ("set", path(), data(), version()),
                ("check", path(), version()),
            ]
        )

    def alone() -> Step:
        step = write()
        return ("exists", path()) if step[0] == "check" else step

    def watch() -> Step:
        return rng.choice(
            [
                ("exists", path(), True),
                ("get", path(), True),
                ("children", path(), True),
                ("children2", path(), True),
                ("add_watch", path(), rng.choice([0, 1])),
                ("remove_watches", path(), rng.choice([1, 2, 3])),
                ("check_watches", path(), rng.choice([1, 2, 3])),
                ("set_watches", Zxid(rng.randrange(length)), [path()], [path()], [path()]),
                ("set_watches", Zxid(rng.randrange(length)), [], [path()], [path()], [path()], [path()]),
            ]
        )

    def read() -> Step:
        return rng.choice(
            [
                ("get", path()),
                ("exists", path()),
                ("children2", path()),
                ("get_acl", path()),
                ("count", path()),
                ("ephemerals", path()),
                ("multi_read", [(rng.choice(["get", "children"]), path()) for _ in range(rng.randrange(4))]),
                ("set_acl", path(), rng.choice(acls), version()),
            ]
        )

    def multi() -> Step:
        return ("multi", [write() for _ in range(rng.randrange(1, 5))])

    script: list[Step] = []
    for number in range(length):
        kind = rng.choices(["write", "multi", "watch", "read", "session", "auth"], [40, 20, 22, 14, 2, 1])[0]
        who = rng.choice(alive)
        if kind == "session":
            alive[alive.index(who)] = f"{who[0]}{number}"  # the next of this name
            script.append((who, "close"))
        elif kind == "auth":
            script.append((who, "auth", *ALICE))
        else:
            make = {"write": alone, "multi": multi, "watch": watch, "read": read}[kind]
            script.append((who, *make()))
    return script


@pytest.mark.parametrize("seed", range(int(os.environ.get("ZKD_CONFORMANCE_SEEDS", "24"))))
def test_random_script_gets_the_same_replies(servers: tuple[int, int], seed: int) -> None:
    assert_same(servers, random_script(seed))
