"""The registry of watches: who hears of what, and what is put on the next connection."""

from __future__ import annotations

import struct

from zkd.zk import Event, EventType
from zkd.zk.watches import REARM_BYTES_MAX, Kind, Watches


def names(watches: Watches, kind: EventType, path: str) -> list[str]:
    return [watch("") for watch in watches.take(Event(kind, path))]  # type: ignore[arg-type, func-returns-value]


def named(name: str):  # type: ignore[no-untyped-def]
    return lambda event: name


def decoded(body: bytes) -> tuple[int, list[list[str]]]:
    (zxid,) = struct.unpack_from("!q", body)
    at, vectors = 8, []
    for _ in range(5):
        (count,) = struct.unpack_from("!i", body, at)
        at += 4
        vector = []
        for _ in range(count):
            (length,) = struct.unpack_from("!i", body, at)
            vector.append(body[at + 4 : at + 4 + length].decode())
            at += 4 + length
        vectors.append(vector)
    assert at == len(body)
    return zxid, vectors


def test_one_shot_watches_fire_once_and_for_what_they_are_for() -> None:
    watches = Watches()
    watches.add(Kind.DATA, "/a", named("data"))
    watches.add(Kind.CHILD, "/a", named("child"))
    watches.add(Kind.EXIST, "/b", named("exist"))
    assert names(watches, EventType.CHANGED, "/a") == ["data"]
    assert names(watches, EventType.CHANGED, "/a") == []
    assert names(watches, EventType.CHILDREN, "/a") == ["child"]
    assert names(watches, EventType.CREATED, "/b") == ["exist"]
    assert len(watches) == 0


def test_a_deletion_reaches_all_one_shot_watches_of_the_path() -> None:
    watches = Watches()
    watches.add(Kind.DATA, "/a", named("data"))
    watches.add(Kind.CHILD, "/a", named("child"))
    assert sorted(names(watches, EventType.DELETED, "/a")) == ["child", "data"]


def test_recursive_watches_hear_of_descendants_but_not_of_lists_of_children() -> None:
    watches = Watches()
    watches.add(Kind.RECURSIVE, "/a", named("below a"))
    watches.add(Kind.RECURSIVE, "/", named("everywhere"))
    watches.add(Kind.PERSISTENT, "/a/b", named("only b"))
    assert names(watches, EventType.CREATED, "/a/b/c") == ["below a", "everywhere"]
    assert names(watches, EventType.CHANGED, "/a/b") == ["only b", "below a", "everywhere"]
    assert names(watches, EventType.CHILDREN, "/a/b") == ["only b"]
    assert names(watches, EventType.CREATED, "/ab") == ["everywhere"]


def test_events_without_a_watch_leave_nothing_behind() -> None:
    watches = Watches()
    for number in range(100):
        assert watches.take(Event(EventType.CHANGED, f"/{number}")) == []
    assert len(watches) == 0


def test_a_forgotten_watch_is_neither_called_nor_armed_again() -> None:
    watches = Watches()
    watch = named("data")
    watches.add(Kind.DATA, "/a", watch)
    watches.forget("/a", watch)
    assert names(watches, EventType.CHANGED, "/a") == []
    assert list(watches.rearm_bodies(0)) == []


def test_one_shot_watches_on_a_persistent_one_are_not_asked_of_the_server() -> None:
    # A 3.8 server keeps one mode a path: the one-shot watch would take the persistent one with it.
    watches = Watches()
    watches.add(Kind.RECURSIVE, "/r", named("r"))
    watches.add(Kind.PERSISTENT, "/p", named("p"))
    assert not watches.needs_server(Kind.DATA, "/r")
    assert watches.needs_server(Kind.CHILD, "/r")
    assert not watches.needs_server(Kind.CHILD, "/p")
    assert watches.needs_server(Kind.DATA, "/r/below")


def test_watches_on_one_path_are_rearmed_so_that_each_keeps_its_events() -> None:
    watches = Watches()
    watches.add(Kind.RECURSIVE, "/r", named("r"))
    watches.add(Kind.PERSISTENT, "/p", named("p"))
    for path in ("/r", "/p"):
        watches.add(Kind.DATA, path, named("data"))
        watches.add(Kind.CHILD, path, named("child"))
    assert [decoded(body)[1] for body in watches.rearm_bodies(5)] == [
        [["/r", "/p"], [], ["/p"], [], []],  # replay what was missed
        [[], [], [], ["/p"], ["/r"]],
        [[], [], ["/r"], [], []],
    ]


def test_a_persistent_watch_stays_at_the_server_while_somebody_else_needs_it() -> None:
    watches = Watches()
    first, second = named("first"), named("second")
    watches.add(Kind.PERSISTENT, "/p", first)
    watches.add(Kind.PERSISTENT, "/p", second)
    assert not watches.remove("/p", first)
    assert watches.remove("/p", second)
    assert not watches.remove("/p", second)


def test_everything_is_rearmed_with_the_last_zxid_in_packets_of_bounded_size() -> None:
    watches = Watches()
    kinds = {Kind.DATA: 0, Kind.EXIST: 1, Kind.CHILD: 2, Kind.PERSISTENT: 3, Kind.RECURSIVE: 4}
    expected: list[set[str]] = [set() for _ in kinds]
    for kind, place in kinds.items():
        for number in range(700):
            path = f"/{kind.name}/{number:04}/{'é' * 60}"
            watches.add(kind, path, named("x"))
            expected[place].add(path)
    bodies = list(watches.rearm_bodies(77))
    assert len(bodies) > 1
    assert all(len(body) <= REARM_BYTES_MAX + 28 for body in bodies)
    found: list[set[str]] = [set() for _ in kinds]
    for body in bodies:
        zxid, vectors = decoded(body)
        assert zxid == 77
        for place, vector in enumerate(vectors):
            found[place].update(vector)
    assert found == expected
