"""Group commit: what shares a packet, what does not share a fate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from zkd.errors import MultiFailed, NodeExists, NoNode, OutcomeUnknown, SessionExpired, TooLarge, Unavailable
from zkd.zk import Batch, Check, Create, Delete, ReadBatch, Session
from zkd.zk.server import Op

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from zkd.zk.server import EmbeddedServer


class Counted(Session):
    """A session that remembers what was sent together."""

    sent: list[int]

    async def multi(self, ops, **kwargs):  # type: ignore[no-untyped-def, override]
        self.sent.append(len(ops))
        return await super().multi(ops, **kwargs)

    async def get_many(self, paths: Sequence[str], **kwargs):  # type: ignore[no-untyped-def, override]
        self.sent.append(len(paths))
        return await super().get_many(paths, **kwargs)


@pytest.fixture
async def session(embedded: EmbeddedServer) -> AsyncIterator[Counted]:
    session = Counted(embedded.connect_string)
    session.sent = []
    async with session:
        await session.connected(5)
        yield session


async def test_one_commit_alone_goes_out_at_once(session: Counted) -> None:
    batch = Batch(session)
    done = await batch.commit([Create("/a", b"1"), Check("/a", 0), Delete("/a", 0)])
    assert [type(each).__name__ for each in done] == ["Created", "NoneType", "NoneType"]
    assert session.sent == [3]


async def test_a_burst_shares_transactions_and_each_gets_its_own_answer(session: Counted) -> None:
    batch = Batch(session)
    done = await asyncio.gather(*(batch.commit([Create(f"/n{n}"), Create(f"/m{n}")]) for n in range(300)))
    assert [each[0].path for each in done] == [f"/n{n}" for n in range(300)]  # type: ignore[union-attr]
    assert [each[1].path for each in done] == [f"/m{n}" for n in range(300)]  # type: ignore[union-attr]
    assert session.sent == [100] * 6


async def test_what_comes_while_transactions_are_out_is_collected(session: Counted) -> None:
    batch = Batch(session)
    first, second = batch.send([Create("/a")]), None
    while not session.sent:
        await asyncio.sleep(0)
    second = batch.send([Create("/b")])
    while len(session.sent) < 2:
        await asyncio.sleep(0)
    others = [batch.send([Create(f"/c{n}")]) for n in range(20)]
    await asyncio.gather(first, second, *others)
    assert session.sent == [1, 1, 20]


async def test_a_transaction_keeps_below_the_limit_in_bytes(session: Counted) -> None:
    batch = Batch(session, limit_bytes=10_000)
    await asyncio.gather(*(batch.commit([Create(f"/n{n}", b"x" * 3_000)]) for n in range(7)))
    assert session.sent == [3, 3, 1]
    await batch.commit([Create("/large", b"x" * 20_000)])  # one group is never divided
    assert session.sent[-1] == 1


@pytest.mark.parametrize("every", [1, 2, 10, 77])
async def test_a_failing_group_fails_alone_with_its_own_index(session: Counted, every: int) -> None:
    await session.create("/taken")
    batch = Batch(session)

    def ops(number: int) -> list[Create]:
        return [Create(f"/n{number}"), Create("/taken" if number % every == 0 else f"/m{number}")]

    done = await asyncio.gather(*(batch.commit(ops(number)) for number in range(154)), return_exceptions=True)
    for number, each in enumerate(done):
        if number % every == 0:
            assert isinstance(each, MultiFailed)
            assert (each.index, each.path, type(each.cause)) == (1, "/taken", NodeExists)
            assert await session.exists(f"/n{number}") is None
        else:
            assert not isinstance(each, BaseException)
            assert await session.exists(f"/m{number}") is not None


async def test_many_failures_do_not_cost_a_full_packet_each(session: Counted) -> None:
    batch = Batch(session)
    calls = (batch.commit([Delete(f"/absent{number}", -1)]) for number in range(200))
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, MultiFailed) and isinstance(each.cause, NoNode) for each in done)
    assert sum(session.sent) < 200 * 5


async def test_groups_for_different_sessions_do_not_mix(session: Counted) -> None:
    batch = Batch(session)
    done = await asyncio.gather(
        batch.commit([Create("/a")], within=session.session_id),
        batch.commit([Create("/b")], within=12345),
        batch.commit([Create("/c")], within=session.session_id),
        return_exceptions=True,
    )
    assert isinstance(done[1], SessionExpired)
    assert await session.exists("/b") is None
    assert not isinstance(done[0], BaseException)
    assert not isinstance(done[2], BaseException)


async def test_a_cancelled_caller_withdraws_what_was_not_sent_and_takes_nobody_along(session: Counted) -> None:
    batch = Batch(session, in_flight=1)
    calls = [asyncio.create_task(batch.commit([Create(f"/n{number}")])) for number in range(150)]
    await asyncio.sleep(0)  # all are queued, none is sent
    calls[3].cancel()
    await asyncio.wait(calls)
    assert await session.exists("/n3") is None
    assert sorted(await session.children("/")) == sorted(
        ["zookeeper", *(f"n{number}" for number in range(150) if number != 3)]
    )


async def test_cancelling_one_in_flight_leaves_the_others_their_answers(session: Counted) -> None:
    batch = Batch(session)
    calls = [asyncio.create_task(batch.commit([Create(f"/n{number}")])) for number in range(10)]
    while not session.sent:
        await asyncio.sleep(0)
    calls[0].cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert not any(isinstance(each, BaseException) for each in done[1:])


async def test_a_lost_answer_is_told_to_everyone_in_the_packet(session: Counted, embedded: EmbeddedServer) -> None:
    batch = Batch(session)
    embedded.cut_after(Op.MULTI)
    calls = (batch.commit([Create(f"/n{number}")]) for number in range(5))
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, OutcomeUnknown) for each in done)
    assert len(set(map(id, done))) == 5  # an exception of its own for each
    await session.connected(5)
    assert (await batch.commit([Create("/after")]))[0] is not None


async def test_without_a_connection_everything_fails_at_once(session: Counted, embedded: EmbeddedServer) -> None:
    batch, reads = Batch(session), ReadBatch(session)
    embedded.refuse()
    with pytest.raises((Unavailable, OutcomeUnknown)):
        await session.get("/")
    calls = [batch.commit([Create(f"/n{number}")]) for number in range(250)]
    done = await asyncio.gather(*calls, reads.get("/a"), reads.get("/b"), return_exceptions=True)
    assert all(isinstance(each, Unavailable) for each in done)


async def test_reads_share_packets_and_each_gets_its_own(session: Counted) -> None:
    await session.multi([Create(f"/n{number}", str(number).encode()) for number in range(120)])
    session.sent.clear()
    reads = ReadBatch(session)
    got = await asyncio.gather(*(reads.get(f"/n{number}") for number in range(130)), return_exceptions=True)
    for number, each in enumerate(got):
        if number < 120:
            assert not isinstance(each, BaseException)
            assert each.data == str(number).encode()
        else:
            assert isinstance(each, NoNode)
    assert session.sent == [100, 30]


async def test_reads_of_large_znodes_come_in_smaller_packets(session: Counted) -> None:
    for number in range(20):
        await session.create(f"/n{number}", b"x" * 100_000)
    reads = ReadBatch(session, limit_bytes=500_000)
    await asyncio.gather(*(reads.get("/n0") for _ in range(2)))
    session.sent.clear()
    await asyncio.gather(*(reads.get(f"/n{number}") for number in range(20)))
    assert session.sent == [5, 5, 5, 5]


async def test_a_group_that_is_too_large_takes_no_other_with_it(session: Counted) -> None:
    """Sizes are estimated by letters, and a letter may be several bytes."""
    batch = Batch(session)
    wide = [batch.commit([Create(f"/{n}{'字' * 80_000}")]) for n in range(6)]
    huge = batch.commit([Create(f"/{'字' * 400_000}")])
    good = [batch.commit([Create(f"/good-{n}")]) for n in range(3)]
    *others, refusal = await asyncio.gather(*wide, *good, huge, return_exceptions=True)
    assert isinstance(refusal, TooLarge)
    assert [error for error in others if isinstance(error, BaseException)] == []


async def test_many_reads_wait_a_little_for_company_and_a_lonely_one_does_not(session: Counted) -> None:
    await session.create("/a")
    session.sent.clear()
    reads = ReadBatch(session, linger_s=0.2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await reads.get("/a")
    assert loop.time() - began < 0.2
    await asyncio.gather(*(reads.get("/a") for _ in range(10)))  # now it is known to be busy
    first = asyncio.ensure_future(reads.get("/a"))
    await asyncio.sleep(0.01)
    await asyncio.gather(first, *(reads.get("/a") for _ in range(5)))
    assert session.sent == [1, 10, 6]
