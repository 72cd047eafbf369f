"""What we read in ZooKeeper's log is what its own tool reads there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.txnlog import Damaged, Op, abandoned, committed, logs_of
from tests.cluster.processes import transactions
from zkd.errors import MultiFailed
from zkd.zk import Check, Create, Delete, Session, SetData
from zkd.zk.apache import ApacheServer


@pytest.fixture
def server(tmp_path: Path) -> ApacheServer:
    with ApacheServer(tmp_path) as server:
        yield server  # type: ignore[misc]


async def write_some(server: ApacheServer) -> int:
    """Something of every kind; the id of the session."""
    async with Session(server.connect_string) as session:
        await session.connected(20.0)
        await session.create("/a", b"one")
        await session.create("/a/e", b"", ephemeral=True)
        await session.create("/a/s-", b"", sequential=True)
        await session.set("/a", b"two", 0)
        await session.multi([Check("/a", 1), Create("/b", b"in a multi"), SetData("/a", b"three", 1), Delete("/b", -1)])
        with pytest.raises(MultiFailed):
            await session.multi([Create("/c", b""), Check("/a", 7), Delete("/a", -1)])
        return session.session_id


async def test_the_log_is_read_as_zookeepers_own_tool_reads_it(server: ApacheServer) -> None:
    session_id = await write_some(server)
    server.stop()
    data_dir = server.directory / "data"
    ours = [one for one in committed([data_dir]) if one.session == session_id]
    assert [(one.kind, one.error, one.ops) for one in ours] == [
        ("session", 0, ()),
        ("write", 0, (Op("create", "/a", b"one", 0),)),
        ("write", 0, (Op("create", "/a/e", b"", 0, is_ephemeral=True),)),
        ("write", 0, (Op("create", "/a/s-0000000001", b"", 0),)),
        ("write", 0, (Op("set", "/a", b"two", 1),)),
        (
            "write",
            0,
            (
                Op("check", "/a", version=1),
                Op("create", "/b", b"in a multi", 0),
                Op("set", "/a", b"three", 2),
                Op("delete", "/b"),
            ),
        ),
        ("error", -103, ()),
        ("close", 0, ()),
    ]
    theirs = [kind for session, kind, _ in transactions(data_dir) if int(session, 16) == session_id]
    assert [kind.rstrip("2") for kind in theirs] == [
        "createSession", "create", "create", "create", "setData", "multi", "multi", "closeSession",
    ]  # fmt: skip


async def test_a_torn_end_is_left_out_and_a_damaged_record_is_told(server: ApacheServer) -> None:
    await write_some(server)
    server.stop()
    data_dir = server.directory / "data"
    log = logs_of(data_dir)[-1]
    whole = list(committed([data_dir]))
    data = log.read_bytes()
    end = data.rindex(b"B") + 1
    log.write_bytes(data[: end - 3])
    assert list(committed([data_dir])) == whole[:-1]
    at = data.index(b"in a multi")
    log.write_bytes(data[:at] + b"X" + data[at + 1 :])
    with pytest.raises(Damaged):
        list(committed([data_dir]))


def test_what_a_cut_off_leader_had_proposed_was_never_committed(tmp_path: Path) -> None:
    account = tmp_path / "zookeeper.log"
    account.write_text(
        "Snapshotting: 0x0 to data/snapshot.0\n"
        "LEADING - LEADER ELECTION TOOK - 9 MS\n"  # without a quorum: it never reigned
        "Snapshotting: 0x100000009 to data/snapshot.100000009\n"
        "LEADING - LEADER ELECTION TOOK - 9 MS\n"
        "Snapshotting: 0x100000007 to data/snapshot.100000007\n"
        "Have quorum of supporters, sids: [[1, 2]]; starting up and setting last processed zxid: 0x200000000\n"
        "Snapshotting: 0x20000a000 to data/snapshot.20000a000\n"
    )
    assert list(abandoned(account)) == [(0x100000007, 0x200000000)]
