"""Which requests are answered together, which wait and which are refused, by a clock of the test's own."""

from __future__ import annotations

from zkd.core.batching import FIRST_BYTES, LEAST_BYTES, REQUEST_BYTES, Batching, Waiting
from zkd.core.loaded import Loaded


def queues(**given: float) -> Batching:
    plain = {"target_s": 0.01, "requests_max": 100, "bytes_max": 1 << 20, "concurrency": 1} | given
    return Batching(**plain)  # type: ignore[arg-type]


def asked(lane: str = "m", size: int = 100, deadline: float = 1e9, arrived: float = 0.0) -> Waiting:
    return Waiting(lane, size, arrived, deadline)


def admitted(batching: Batching, *requests: Waiting, now: float = 0.0) -> list[Waiting]:
    for request in requests:
        assert batching.admit(request, now) is None
    return list(requests)


def test_what_waits_is_taken_at_once_in_order_and_nothing_waits_for_more() -> None:
    batching = queues()
    first = admitted(batching, asked())
    batch = batching.take(0.0)
    assert batch is not None
    assert batch.requests == first
    others = admitted(batching, asked(), asked(), asked())
    assert batching.take(0.0) is None  # one batch of a model at a time
    batching.done(batch, 0.001)
    batch = batching.take(0.0)
    assert batch is not None
    assert batch.requests == others


def test_batches_grow_while_they_are_fast_and_shrink_when_one_is_slow() -> None:
    batching = queues(requests_max=10_000, bytes_max=1 << 30)

    def one(seconds: float) -> int:
        admitted(batching, *(asked(size=1000) for _ in range(600 - batching.queued("m"))))
        batch = batching.take(0.0)
        assert batch is not None
        batching.done(batch, seconds)
        return batching.limit("m")

    assert one(0.001) == int(FIRST_BYTES * 1.5)
    before = one(0.001)
    assert one(0.02) < before * 0.75
    slow = batching.limit("m")
    assert slow < one(0.001) <= slow * 1.5  # by a step now
    for _ in range(30):
        one(0.02)
    assert LEAST_BYTES <= batching.limit("m") < 2 * (1000 + REQUEST_BYTES)  # one request a batch


def test_a_request_that_cannot_meet_its_deadline_is_refused_at_once_but_not_before_anything_was_measured() -> None:
    batching = queues()
    admitted(batching, *(asked(deadline=0.001) for _ in range(50)))
    for _ in range(50):
        batching.take(1.0)
    admitted(batching, asked())
    batch = batching.take(0.0)
    assert batch is not None
    batching.done(batch, 0.01)  # for 612 bytes
    admitted(batching, *(asked() for _ in range(10)))
    refused = batching.admit(asked(deadline=0.05), 0.0)
    assert refused is not None
    assert (refused.why, round(refused.wait_s, 3)) == ("late", 0.1)
    assert batching.admit(asked(deadline=0.2), 0.0) is None
    assert batching.admit(asked("other", deadline=0.05), 0.0) is None  # it need not wait for all of them


def test_queues_are_bounded_in_requests_of_a_model_and_in_bytes_of_all() -> None:
    batching = queues(requests_max=3, bytes_max=1000)
    admitted(batching, asked(), asked(), asked())
    refused = batching.admit(asked(), 0.0)
    assert refused is not None
    assert refused.why == "full"
    admitted(batching, asked("other", size=700))
    refused = batching.admit(asked("third"), 0.0)
    assert refused is not None
    assert refused.why == "busy"
    while (batch := batching.take(0.0)) is not None:
        batching.drop(batch)
    assert (batching.requests, batching.size) == (0, 0)
    admitted(batching, asked("huge", size=5000))  # alone it may be larger


def test_models_take_turns() -> None:
    batching = queues(concurrency=5)
    admitted(batching, *(asked("busy", size=FIRST_BYTES) for _ in range(5)), asked("quiet"))
    order = []
    while (batch := batching.take(0.0)) is not None:
        order.append(batch.lane)
    assert order[:2] == ["busy", "quiet"]


def test_what_a_dead_process_had_goes_first_and_one_by_one_so_that_the_one_to_blame_is_alone() -> None:
    batching = queues()
    lost = admitted(batching, asked(), asked(), asked())
    batch = batching.take(0.0)
    assert batch is not None
    later = admitted(batching, asked())
    batching.give_back(batch, is_to_blame=True)
    order = []
    while (batch := batching.take(0.0)) is not None:
        order.append(batch.requests)
        batching.done(batch, 0.001)
    assert order == [[each] for each in (*lost, *later)]
    assert [each.deaths for each in lost] == [1, 1, 1]


def test_what_came_too_late_or_was_forgotten_is_never_taken() -> None:
    batching = queues()
    late, gone, kept = admitted(batching, asked(deadline=1.0), asked(), asked())
    assert batching.forget(gone)
    assert not batching.forget(gone)
    batch = batching.take(2.0)
    assert batch is not None
    assert batch.requests == [kept]
    assert late not in batch.requests
    assert (batching.requests, batching.size, batch.size) == (0, 0, 100 + REQUEST_BYTES)


def test_the_model_that_was_used_longest_ago_is_closed_first_and_none_that_is_in_use() -> None:
    loaded = Loaded(100)
    assert loaded.use("a", 40, ()) == []
    assert loaded.use("b", 40, ()) == []
    assert loaded.use("a", 40, ()) == []
    assert loaded.use("c", 40, ()) == ["b"]
    assert loaded.use("d", 60, {"a"}) == ["c"]
    assert loaded.use("e", 60, {"a", "d"}) is None
    assert ("a" in loaded, "d" in loaded, loaded.size, loaded.evicted) == (True, True, 100, 2)
    assert loaded.use("e", 101, ()) is None
