"""What a store promises: whole and durable or not here, read as it was written, gone only in two steps."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path

import pytest

from tests.store.made import BLOCK, got, in_pieces, make, put
from zkd.errors import DataDamaged, DataUnavailable
from zkd.store import segment_checks, segments
from zkd.store.segment_files import blocks
from zkd.store.segment_intake import Intake
from zkd.store.segments import OutOfStep, SegmentStore


async def test_what_was_received_is_here_whole_and_after_a_restart(tmp_path: Path) -> None:
    seen: list[str] = []
    store = SegmentStore(tmp_path / "node", seen.append)
    made = make(tmp_path / "made", rows=100_000)
    assert not store.has(made.id)
    with pytest.raises(DataUnavailable):
        store.path(made.id)
    await put(store, made)
    assert (store.has(made.id), store.ids(), seen) == (True, {made.id}, [made.id])
    for again in (store, SegmentStore(tmp_path / "node")):
        assert await got(again, made.id) == made.packed
        assert (await again.verified(made.id)).rows == 100_000
        assert await again.verify(made.id)
        assert {path.name: path.read_bytes() for path in again.path(made.id).iterdir()} == made.files
    assert not list((tmp_path / "node/segments.incoming").iterdir())


@pytest.mark.parametrize("how", ["trash", "quarantine", "restore"])
async def test_what_comes_while_another_one_is_moved_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A slow disk: the old one is out of the list, and still in its place, when a new one is there."""
    moving, go_on = threading.Event(), threading.Event()
    move = SegmentStore._move

    def slowly(path: Path, to: Path) -> None:
        moving.set()
        assert go_on.wait(10)
        move(path, to)

    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")
    await put(store, made)
    if how == "restore":
        await store.trash(made.id)
    if how == "quarantine":
        (store.path(made.id) / "0.npy").write_bytes(b"rotten")
    monkeypatch.setattr(SegmentStore, "_move", staticmethod(slowly))
    went = asyncio.create_task(
        {"trash": store.trash, "quarantine": store.verify, "restore": store.restore}[how](made.id)
    )
    assert await asyncio.to_thread(moving.wait, 10)
    monkeypatch.setattr(SegmentStore, "_move", staticmethod(move))
    came = asyncio.create_task(put(store, made))
    await asyncio.wait({came}, timeout=0.3)
    go_on.set()
    await went
    await came
    assert store.has(made.id)
    assert await got(store, made.id) == made.packed
    assert await SegmentStore(tmp_path / "node").verify(made.id)


async def test_any_range_is_the_bytes_of_it(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=70_000)
    await put(store, made)
    total, head = len(made.packed), len(made.head)
    edges = [0, 1, head - 1, head, head + 1, total - 1, total, total + 9]
    segment = segment_checks.check(made.directory, made.id)
    edges += [place.start + n for place in blocks(segment, head, 0, total) for n in (-1, 0, 1)]
    dice = random.Random(1)
    for _ in range(300):
        start, stop = dice.choice(edges), dice.choice([*edges, dice.randrange(total)])
        assert await got(store, made.id, start, stop) == made.packed[start:stop], (start, stop)


async def test_receiving_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    """In the same life and in the next one, from any byte, in pieces of any size."""
    dice = random.Random(3)
    made = make(tmp_path / "made", rows=150_000)
    total = len(made.packed)
    for round_ in range(20):
        store = SegmentStore(tmp_path / f"node-{round_}")
        received, goes = 0, 0
        while not store.has(made.id):
            goes += 1
            if dice.random() < 0.5:
                store = SegmentStore(tmp_path / f"node-{round_}")
            assert await store.received(made.id) == received
            for wrong in {0, received - 1, received + 1, total} - {received}:
                with pytest.raises(OutOfStep) as step:
                    await store.receive(made.id, wrong, total, in_pieces(b""))
                assert step.value.received == received
            stop = min(total, received + dice.choice([0, 1, 17, 3000, BLOCK, 2 * BLOCK, total]))
            size = dice.choice([1000, 1 << 16, 1 << 21])
            done = await store.receive(made.id, received, total, in_pieces(made.packed[received:stop], size))
            assert done == store.has(made.id) == (stop == total)
            received = await store.received(made.id) if not done else total
            assert stop - BLOCK < received <= stop or (received == 0 and stop < len(made.head))
        assert await got(store, made.id) == made.packed, goes


async def test_what_a_sender_said_before_it_failed_is_kept(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=150_000)

    async def failing() -> AsyncIterator[bytes]:
        yield made.packed[: 2 * BLOCK]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.receive(made.id, 0, len(made.packed), failing())
    received = await store.received(made.id)
    assert BLOCK < received <= 2 * BLOCK
    await store.receive(made.id, received, len(made.packed), in_pieces(made.packed[received:]))
    assert await got(store, made.id) == made.packed


async def test_two_senders_of_one_segment_take_turns(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=50_000)
    go = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield made.packed[:5000]
        await go.wait()
        yield made.packed[5000:]

    first = asyncio.create_task(store.receive(made.id, 0, len(made.packed), slowly()))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(store.receive(made.id, 0, len(made.packed), in_pieces(b"")))
    await asyncio.sleep(0.02)
    assert not second.done()
    go.set()
    assert await first
    assert await second
    assert not store._locks


async def test_who_waits_too_long_for_another_sender_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "WAIT_S", 0.05)
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")

    async def never() -> AsyncIterator[bytes]:
        yield made.packed[:5000]
        await asyncio.Event().wait()

    first = asyncio.create_task(store.receive(made.id, 0, len(made.packed), never()))
    await asyncio.sleep(0.02)
    with pytest.raises(TimeoutError):
        await store.received(made.id)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    received = await store.received(made.id)
    assert await store.receive(made.id, received, len(made.packed), in_pieces(made.packed[received:]))


async def test_removal_takes_two_steps_and_can_be_taken_back(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")
    await put(store, made)
    await store.trash(made.id)
    assert not store.has(made.id)
    with pytest.raises(DataUnavailable):
        await got(store, made.id)
    assert 0 <= (await store.trashed())[made.id] < 60
    assert await store.purge(60) == []
    again = SegmentStore(tmp_path / "node")
    assert await again.restore(made.id)
    assert await got(again, made.id) == made.packed
    await again.trash(made.id)
    assert await again.purge(0) == [made.id]
    assert not await again.restore(made.id)
    assert await again.trashed() == {}
    await put(again, made)
    assert await got(again, made.id) == made.packed


async def test_who_reads_while_it_is_taken_out_reads_to_the_end(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=150_000)
    await put(store, made)
    pieces = []
    async for piece in store.read(made.id):
        pieces.append(piece)
        if store.has(made.id):
            await store.trash(made.id)
    assert b"".join(pieces) == made.packed
    assert store.quarantined == 0


@pytest.mark.parametrize("name", ["", "..", "../x", "a" * 63, "A" * 64, "g" * 64, "a" * 65, "a" * 63 + "\n", "\0" * 64])
def test_what_is_no_id_becomes_no_path(tmp_path: Path, name: str) -> None:
    store = SegmentStore(tmp_path / "node")
    before = sorted(tmp_path.rglob("*"))
    calls: list[Coroutine[object, object, object]] = [
        store.verified(name),
        store.verify(name),
        store.received(name),
        store.receive(name, 0, 1000, in_pieces(b"")),
        store.trash(name),
        store.restore(name),
        got(store, name),
    ]
    for call in calls:
        with pytest.raises(DataUnavailable):
            asyncio.run(call)  # type: ignore[arg-type]
    assert not store.has(name)
    assert sorted(tmp_path.rglob("*")) == before


async def test_a_full_disk_refuses_and_keeps_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=150_000)
    write, written = os.write, 0

    def full(fd: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > BLOCK:
            write(fd, data[:500])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            await put(store, made)
    assert not list((tmp_path / "node/segments.incoming").iterdir())
    assert await store.received(made.id) == 0
    await put(store, made)
    assert await got(store, made.id) == made.packed


async def test_more_than_there_is_room_for_is_refused_at_once(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")

    async def nothing() -> AsyncIterator[bytes]:
        raise AssertionError("asked for bytes")
        yield b""

    with pytest.raises(OSError, match="room for"):
        await store.receive("0" * 64, 0, 1 << 60, nothing())


async def test_what_was_synced_badly_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")

    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            await put(store, made)
    assert not store.has(made.id)
    assert await store.received(made.id) == 0
    await put(store, made)


async def test_nothing_has_its_name_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and its directory are synced, then renamed, then the directory that has the new name."""
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")
    deeds: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def told_fsync(fd: int) -> None:
        deeds.append("sync " + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path / "node"))
        fsync(fd)

    def told_rename(path: Path, to: Path) -> Path:
        deeds.append("rename")
        return rename(path, to)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "rename", told_rename)
    await put(store, made)
    incoming = f"sync segments.incoming/{made.id}"
    files = {f"{incoming}/{name}" for name in made.files}
    assert set(deeds[: len(files)]) == files
    assert deeds[len(files) :] == [incoming, "rename", "sync segments", "sync segments.incoming"]


async def test_a_slow_disk_does_not_stop_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")
    main = threading.get_ident()

    def slow(_: int) -> None:
        assert threading.get_ident() != main
        time.sleep(0.05)

    monkeypatch.setattr(os, "fsync", slow)
    putting = asyncio.create_task(put(store, made))
    ticks = 0
    while not putting.done():
        await asyncio.sleep(0.01)
        ticks += 1
    await putting
    assert ticks > 10


async def test_an_unchanged_segment_is_checked_once_and_a_touched_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "RACY_NS", 0)
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")
    await put(store, made)
    await asyncio.sleep(0.02)
    checks = 0
    checking = segment_checks.checking

    def counted(*args: object, **options: object) -> object:
        nonlocal checks
        checks += 1
        return checking(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(segment_checks, "checking", counted)
    for _ in range(3):
        await store.verified(made.id)
    assert checks == 1
    path = store.path(made.id) / "1.npy"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    await store.verified(made.id)
    assert checks == 2
    await asyncio.gather(*(store.verified(made.id) for _ in range(5)))
    assert checks == 2


async def test_what_changed_just_now_is_not_taken_for_checked(tmp_path: Path) -> None:
    """A later change within the same tick of the kernel's clock would not show."""
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made")
    await put(store, made)
    await store.verified(made.id)
    assert not store._checked


def test_a_beginning_is_right_or_not_there(tmp_path: Path) -> None:
    """However the files were left by a crash, what is counted as received is what was sent."""
    made = make(tmp_path / "made", rows=60_000)
    dice = random.Random(4)
    for number in range(60):
        directory = tmp_path / "incoming" / str(number) / made.id
        directory.parent.mkdir(parents=True)
        intake = Intake(directory, made.id)
        intake.feed(memoryview(made.packed[: dice.randrange(len(made.packed))]))
        intake.pause()
        for path in list(directory.iterdir()) if directory.exists() else []:
            fate = dice.randrange(6)
            data = bytearray(path.read_bytes())
            if fate == 0:
                path.unlink()
            elif fate == 1:
                path.write_bytes(data[: dice.randrange(len(data))])
            elif fate == 2:
                path.write_bytes(data + bytes(dice.randrange(2 * BLOCK)))
            elif fate == 3:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
                path.write_bytes(data)
        again = Intake(directory, made.id)
        assert again.received <= intake.received
        again.feed(memoryview(made.packed[again.received :]))
        again.finish()
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == made.files


def test_checksums_that_were_made_to_fit_do_not_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """xxh3 guards against accidents; who can make collisions is stopped by the digest."""
    made = make(tmp_path / "made", rows=60_000)
    intake = Intake(tmp_path / made.id, made.id)
    forged = bytearray(made.packed)
    forged[len(made.head) + 100_000] ^= 1
    segment = segment_checks.read_segment(made.directory, made.id)
    sums = iter([number for file in segment.files for number in file.blocks])
    monkeypatch.setattr("zkd.store.segment_intake.xxh3_64_intdigest", lambda _: next(sums))
    with pytest.raises(DataDamaged, match=r"rows\.npy has another digest"):
        intake.feed(memoryview(forged))
    assert intake.received == 0
    assert not intake.directory.exists()


async def test_what_had_arrived_to_the_last_byte_when_its_taker_died_is_here_as_soon_as_somebody_asks(
    tmp_path: Path,
) -> None:
    made = make(tmp_path / "made", rows=50_000)
    SegmentStore(tmp_path / "store")
    dead = Intake(tmp_path / "store" / "segments.incoming" / made.id, made.id)
    dead.feed(memoryview(made.packed))
    dead.pause()
    store = SegmentStore(tmp_path / "store")
    assert not store.has(made.id)
    assert await store.received(made.id) == len(made.packed)
    assert store.has(made.id)
    assert await got(store, made.id) == made.packed


async def test_beginnings_whose_rest_never_comes_go_some_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=100_000)
    assert not await store.receive(made.id, 0, len(made.packed), in_pieces(made.packed[: 2 * BLOCK]))
    await store.tidy()
    assert await store.received(made.id) > BLOCK
    monkeypatch.setattr(segments, "INCOMING_KEPT_S", 0.0)
    await store.tidy()
    assert not list((tmp_path / "node/segments.incoming").iterdir())
    await put(store, made)
    assert await got(store, made.id) == made.packed
