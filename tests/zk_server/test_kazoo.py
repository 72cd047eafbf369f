"""kazoo, the common Python client, finds nothing amiss: its recipes and sessions work, as on a real server."""

from __future__ import annotations

import threading
import time
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest
from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import (
    BadVersionError,
    NoAuthError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
)
from kazoo.recipe.cache import TreeCache, TreeEvent
from kazoo.security import make_digest_acl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT_S = 15


class Clients:
    """Connected clients, closed at the end."""

    def __init__(self, hosts: str) -> None:
        self.hosts = hosts
        self._all: list[KazooClient] = []

    def __call__(self, **options: Any) -> KazooClient:
        client = KazooClient(self.hosts, timeout=10, **options)
        self._all.append(client)
        client.start(WAIT_S)
        return client

    def close(self) -> None:
        for client in self._all:
            client.stop()
            client.close()


@pytest.fixture
def connect(zookeeper: str) -> Iterator[Clients]:
    clients = Clients(zookeeper)
    yield clients
    clients.close()


def run_all(*functions: Callable[[], object]) -> None:
    """Run them at the same time, each in a thread; none may hang."""
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "it hangs"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_basic_calls_and_errors(connect: Clients, zk_root: str) -> None:
    zk = connect()
    assert zk.server_version() == (3, 8, 0)
    assert zk.create(f"{zk_root}/a/b", b"1", makepath=True) == f"{zk_root}/a/b"
    assert zk.create(f"{zk_root}/s-", sequence=True, ephemeral=True) == f"{zk_root}/s-0000000001"
    value, stat = zk.get(f"{zk_root}/a/b")
    assert (value, stat.version) == (b"1", 0)
    assert zk.set(f"{zk_root}/a/b", b"2", version=0).version == 1
    assert zk.create(f"{zk_root}/c", b"", include_data=True)[1].dataLength == 0
    with pytest.raises(BadVersionError):
        zk.set(f"{zk_root}/a/b", b"3", version=0)
    with pytest.raises(NodeExistsError):
        zk.create(f"{zk_root}/a")
    with pytest.raises(NoNodeError):
        zk.get(f"{zk_root}/none")
    with pytest.raises(NotEmptyError):
        zk.delete(f"{zk_root}/a")
    assert sorted(zk.get_children(zk_root)) == ["a", "c", "s-0000000001"]
    assert zk.sync(zk_root) == zk_root
    zk.delete(zk_root, recursive=True)
    assert zk.exists(zk_root) is None


def test_transactions_commit_and_roll_back(connect: Clients, zk_root: str) -> None:
    zk = connect()
    zk.create(zk_root)
    transaction = zk.transaction()
    transaction.check(zk_root, 0)
    transaction.create(f"{zk_root}/a", b"x")
    transaction.set_data(f"{zk_root}/a", b"y", 0)
    transaction.delete(f"{zk_root}/a", 1)
    transaction.create(f"{zk_root}/b-", sequence=True)
    results = transaction.commit()
    assert (results[0], results[1], results[3]) == (True, f"{zk_root}/a", True)
    assert results[2].version == 1
    assert results[4] == f"{zk_root}/b-0000000001"
    transaction = zk.transaction()
    transaction.create(f"{zk_root}/x")
    transaction.check(zk_root, 7)
    transaction.create(f"{zk_root}/y")
    kinds = [type(result) for result in transaction.commit()]
    assert kinds[:2] == [RolledBackError, BadVersionError]
    assert zk.get_children(zk_root) == ["b-0000000001"]


def test_lock_excludes(connect: Clients, zk_root: str) -> None:
    inside: list[str] = []

    def work(name: str, zk: KazooClient) -> Callable[[], None]:
        def run() -> None:
            for _ in range(3):
                with zk.Lock(zk_root, name):
                    inside.append(name)
                    assert len(inside) == 1
                    inside.pop()

        return run

    run_all(*(work(name, connect()) for name in ("a", "b", "c")))
    holder = connect()
    lock = holder.Lock(zk_root, "holder")
    assert lock.acquire(timeout=WAIT_S)
    assert connect().Lock(zk_root, "other").acquire(blocking=False) is False
    assert lock.contenders() == ["holder"]
    lock.release()


def test_read_and_write_locks(connect: Clients, zk_root: str) -> None:
    a, b = connect(), connect()
    first, second = a.ReadLock(zk_root, "a"), b.ReadLock(zk_root, "b")
    writer = b.WriteLock(zk_root, "w")
    assert first.acquire(timeout=WAIT_S)
    assert second.acquire(timeout=WAIT_S)
    assert writer.acquire(blocking=False) is False
    first.release()
    second.release()
    assert writer.acquire(timeout=WAIT_S)
    assert a.ReadLock(zk_root, "a").acquire(blocking=False) is False
    writer.release()


def test_semaphore_lets_in_as_many_as_it_has_leases(connect: Clients, zk_root: str) -> None:
    a, b, c = (connect().Semaphore(zk_root, name, max_leases=2) for name in "abc")
    assert a.acquire(timeout=WAIT_S)
    assert b.acquire(timeout=WAIT_S)
    assert c.acquire(blocking=False) is False
    assert sorted(a.lease_holders()) == ["a", "b"]
    a.release()
    assert c.acquire(timeout=WAIT_S)


def test_queues_give_each_item_once(connect: Clients, zk_root: str) -> None:
    zk = connect()
    queue = zk.Queue(zk_root)
    for item in (b"1", b"2", b"3"):
        queue.put(item)
    queue.put(b"0", priority=1)
    assert len(queue) == 4
    assert [queue.get() for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    assert queue.get() is None

    theirs, ours = connect().LockingQueue(f"{zk_root}-l"), zk.LockingQueue(f"{zk_root}-l")
    ours.put_all([b"x", b"y"])
    assert theirs.get(WAIT_S) == b"x"
    assert ours.get(WAIT_S) == b"y"
    assert theirs.consume()
    assert ours.release()
    assert theirs.get(WAIT_S) == b"y"
    assert theirs.consume()
    assert len(ours) == 0


def test_election_leads_one_at_a_time(connect: Clients, zk_root: str) -> None:
    led: list[str] = []
    elections = [(name, connect().Election(zk_root, name)) for name in ("a", "b", "c")]
    run_all(*(lambda name=name, election=election: election.run(led.append, name) for name, election in elections))
    assert sorted(led) == ["a", "b", "c"]


def test_barriers(connect: Clients, zk_root: str) -> None:
    a, b = connect(), connect()
    barrier = a.Barrier(zk_root)
    barrier.create()
    assert b.Barrier(zk_root).wait(0.05) is False
    run_all(lambda: b.Barrier(zk_root).wait(WAIT_S), barrier.remove)

    entered: list[str] = []
    left: list[str] = []
    a_counted = threading.Event()

    def cross(name: str, zk: KazooClient) -> None:
        double = zk.DoubleBarrier(f"{zk_root}-d", 2, name)
        double.enter()
        entered.append(name)
        double.leave()
        assert len(entered) == 2
        left.append(name)

    def count_one(path: str) -> list[str]:
        children: list[str] = type(a).get_children(a, path)
        a_counted.set()
        return children

    def cross_second() -> None:
        assert a_counted.wait(WAIT_S)
        cross("b", b)

    # Two that both count two make `ready` twice. If one has left before the other makes it, kazoo's recipe waits for
    # ever, whatever the server. So the first is let count itself alone.
    a.get_children = count_one
    run_all(lambda: cross("a", a), cross_second)
    assert sorted(left) == ["a", "b"]


def test_counter_counts_every_step(connect: Clients, zk_root: str) -> None:
    counters = [connect().Counter(zk_root) for _ in range(3)]

    def add(counter: Any) -> None:
        for _ in range(5):
            counter += 2

    run_all(*(lambda counter=counter: add(counter) for counter in counters))
    assert counters[0].value == 30


def test_party_knows_its_members(connect: Clients, zk_root: str) -> None:
    a, b = connect(), connect()
    ours, theirs = a.Party(zk_root, "a"), b.Party(zk_root, "b")
    ours.join()
    theirs.join()
    assert sorted(ours) == ["a", "b"]
    b.stop()
    wait_for(lambda: list(ours) == ["a"])
    shallow = a.ShallowParty(f"{zk_root}-s", "x")
    shallow.join()
    assert list(shallow) == ["x"]


def test_data_and_children_watches_see_the_last_state(connect: Clients, zk_root: str) -> None:
    zk, writer = connect(), connect()
    seen: Queue[Any] = Queue()
    children: Queue[Any] = Queue()
    zk.DataWatch(f"{zk_root}/x", lambda data, stat: seen.put(data))
    assert seen.get(timeout=WAIT_S) is None
    writer.create(f"{zk_root}/x", b"1", makepath=True)
    zk.ChildrenWatch(zk_root, children.put)
    writer.set(f"{zk_root}/x", b"2")
    writer.create(f"{zk_root}/y")
    wait_for(lambda: b"2" in list(seen.queue))
    wait_for(lambda: ["x", "y"] in [sorted(names) for names in children.queue])
    writer.delete(f"{zk_root}/x")
    wait_for(lambda: seen.queue[-1] is None)


def test_tree_cache_follows_a_tree(connect: Clients, zk_root: str) -> None:
    zk, writer = connect(), connect()
    writer.create(f"{zk_root}/a/b", b"1", makepath=True)
    cache = TreeCache(zk, zk_root)
    events: list[int] = []
    cache.listen(lambda event: events.append(event.event_type))
    cache.start()
    wait_for(lambda: TreeEvent.INITIALIZED in events)
    assert cache.get_data(f"{zk_root}/a/b").data == b"1"
    writer.set(f"{zk_root}/a/b", b"2")
    writer.create(f"{zk_root}/a/c")
    wait_for(lambda: cache.get_data(f"{zk_root}/a/b").data == b"2" and cache.get_children(f"{zk_root}/a") >= {"b", "c"})
    writer.delete(f"{zk_root}/a", recursive=True)
    wait_for(lambda: cache.get_children(zk_root) == frozenset())
    cache.close()


def test_digest_credentials_open_what_others_may_not(connect: Clients, zk_root: str) -> None:
    owner = connect(auth_data=[("digest", "ann:secret")])
    late, stranger = connect(), connect()
    acl = make_digest_acl("ann", "secret", all=True)
    owner.create(zk_root, b"private", acl=[acl])
    assert owner.get(zk_root)[0] == b"private"
    assert owner.get_acls(zk_root)[0] == [acl]
    for call in (stranger.get, stranger.get_children, lambda path: stranger.set(path, b"")):
        with pytest.raises(NoAuthError):
            call(zk_root)
    late.add_auth("digest", "ann:secret")
    assert late.get(zk_root)[0] == b"private"
    late.set_acls(zk_root, [acl, make_digest_acl("bob", "pw", read=True)])
    stranger.add_auth("digest", "bob:pw")
    assert stranger.get(zk_root)[0] == b"private"


def test_session_and_watches_survive_a_lost_connection(connect: Clients, zk_root: str) -> None:
    zk, other = connect(), connect()
    states: list[str] = []
    zk.add_listener(states.append)
    zk.create(zk_root, b"", ephemeral=True)
    seen: list[bytes | None] = []
    zk.DataWatch(f"{zk_root}-later", lambda data, stat: seen.append(data))
    session = zk.client_id
    zk._connection._socket.shutdown(2)
    wait_for(lambda: KazooState.SUSPENDED in states and zk.connected)
    assert zk.client_id == session
    assert other.exists(zk_root).ephemeralOwner == session[0]
    other.create(f"{zk_root}-later", b"x")
    wait_for(lambda: seen[-1] == b"x")


def test_a_saved_session_is_resumed_by_another_client(connect: Clients, zk_root: str) -> None:
    first = connect()
    first.create(zk_root, b"", ephemeral=True)
    session = first.client_id
    second = connect(client_id=session)
    assert second.client_id[0] == session[0]
    second.delete(zk_root)
