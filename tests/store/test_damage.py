"""Whatever a disk or a person does to a segment: what comes out of a store is what went in, or an error.

One checker judges every door that data leaves by. A change of a file keeps its times wherever it could.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import msgspec
import pytest
from blake3 import blake3

from tests.store.made import BLOCK, Made, got, make, put
from tests.store.serving import TOKEN, serving
from zkd.errors import DataDamaged, DataUnavailable
from zkd.net.fetch import session
from zkd.net.segment_reads import read_files
from zkd.net.segments import fetch
from zkd.store import SegmentStore, segment_checks, segments

NAMES = ["segment.json", "rows.npy", "0.npy", "1.npy", "2.npy"]


class Checker:
    """Asks at every door, and counts what it heard. A wrong byte is an assertion that fails."""

    def __init__(
        self, store: SegmentStore, made: Made, damaged: Callable[[], None], healed: Callable[[], None]
    ) -> None:
        self.store = store
        self.made = made
        self.heard: Counter[str] = Counter()
        self._damaged = damaged
        self._healed = healed

    async def ask(self, door: Callable[[], Awaitable[bool]], is_hit: bool) -> None:
        """`door` gives whether what it got is right; `is_hit` says that it must not get anything."""
        self._damaged()
        try:
            assert await door(), "wrong bytes were given"
            self.heard["right"] += 1
            assert not is_hit, "what is damaged was called good"
        except (DataDamaged, DataUnavailable):
            self.heard["refused"] += 1
            assert not self.store.has(self.made.id), "what was found damaged is still here"
        finally:
            self._healed()
        if not self.store.has(self.made.id):
            bad = self.store._bad / self.made.id
            bad.rename(self.store._trash / self.made.id)
            assert await self.store.restore(self.made.id)

    async def whole(self) -> bool:
        return await got(self.store, self.made.id) == self.made.packed

    def part(self, start: int, stop: int) -> Callable[[], Awaitable[bool]]:
        async def read() -> bool:
            return await got(self.store, self.made.id, start, stop) == self.made.packed[start:stop]

        return read

    async def verified(self) -> bool:
        """What a worker is given to map."""
        await self.store.verified(self.made.id)
        return {name: (self.store.path(self.made.id) / name).read_bytes() for name in NAMES} == self.made.files

    async def verify(self) -> bool:
        if not await self.store.verify(self.made.id):
            raise DataDamaged("so it says")
        return {name: (self.store.path(self.made.id) / name).read_bytes() for name in NAMES} == self.made.files


def change(path: Path, data: bytes) -> None:
    """Overwrite a file in place and set its times back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(data)
        file.truncate(len(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_thousands_of_flipped_bits_and_none_is_served(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=12)
    await put(store, made)
    dice = random.Random(2026)
    flips = 0
    places = dict.fromkeys(NAMES, 0)
    starts = {}
    at = len(made.head)
    for name in NAMES[1:]:
        starts[name] = at
        at += len(made.files[name])
    for _ in range(3000):
        name = dice.choice(NAMES)
        path, data = store.path(made.id) / name, bytearray(made.files[name])
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        places[name] += 1
        flips += 1
        checker = Checker(
            store,
            made,
            lambda path=path, data=bytes(data): change(path, data),  # type: ignore[misc]
            lambda name=name: change(_now(store, made) / name, made.files[name]),  # type: ignore[misc]
        )
        other = dice.choice(NAMES[1:])
        door, is_hit = dice.choice(
            [
                (checker.whole, True),
                (checker.verified, True),
                (checker.verify, True),
                (
                    checker.part(starts[other], starts[other] + len(made.files[other])),
                    name in ("segment.json", other),
                ),
            ]
        )
        await checker.ask(door, is_hit)
        assert checker.heard["refused"] == 1 or not is_hit
    assert flips == 3000
    assert min(places.values()) > 500
    assert await got(store, made.id) == made.packed


def _now(store: SegmentStore, made: Made) -> Path:
    """Where the directory is, wherever it was moved."""
    return next(path / made.id for path in (store._here, store._bad) if (path / made.id).exists())


async def test_flips_in_what_was_checked_before_are_seen_by_the_change_time(tmp_path: Path) -> None:
    """A check is remembered, and its memory does not outlive any change; not even one of no known time."""
    store = SegmentStore(tmp_path / "node")
    every = [make(tmp_path / str(n), rows=50, seed=n) for n in range(60)]
    for made in every:
        await put(store, made)
    await asyncio.sleep(segments.RACY_NS / 1e9 + 0.05)
    for made in every:
        await store.verified(made.id)
    assert len(store._checked) == 60
    dice = random.Random(11)
    for made in every:
        name = dice.choice(NAMES)
        data = bytearray(made.files[name])
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        change(store.path(made.id) / name, bytes(data))
        with pytest.raises(DataDamaged):
            await store.verified(made.id)
    assert not store.ids()
    assert store.quarantined == 60


async def test_a_flip_in_the_moment_after_a_check_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the kernel's clock two changes have one time. Here a tick is half a second."""
    tick = 500_000_000

    def coarse(path: Path) -> SimpleNamespace:
        found = os.lstat(path)
        ctime = found.st_ctime_ns // tick * tick
        return SimpleNamespace(
            st_ino=found.st_ino, st_size=found.st_size, st_mtime_ns=found.st_mtime_ns, st_ctime_ns=ctime
        )

    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=50)
    dice = random.Random(12)
    for _ in range(40):
        await put(store, made)
        name = dice.choice(NAMES)
        data = bytearray(made.files[name])
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        with monkeypatch.context() as patched:
            patched.setattr(segment_checks, "os", SimpleNamespace(**vars(os) | {"lstat": coarse}))
            await store.verified(made.id)
            change(store.path(made.id) / name, bytes(data))
            with pytest.raises(DataDamaged):
                await store.verified(made.id)


async def test_hundreds_of_flips_and_cuts_behind_a_node_reach_nobody(tmp_path: Path) -> None:
    """Over HTTP: fetched whole, and by columns, with a good node beside the bad one."""
    dice = random.Random(7)
    made = make(tmp_path / "made", rows=45_000)
    async with serving(tmp_path / "bad") as bad, serving(tmp_path / "good") as good, session() as http:
        await put(good.store, made)
        other = SegmentStore(tmp_path / "other")
        for round_ in range(120):
            if not bad.store.has(made.id):
                await fetch(http, [good.address], TOKEN, made.ref, bad.store)
            name = dice.choice(NAMES)
            path, data = bad.store.path(made.id) / name, bytearray(made.files[name])
            if dice.random() < 0.7:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            else:
                del data[dice.randrange(len(data)) :]
            change(path, bytes(data))
            if round_ % 2:
                await fetch(http, [bad.address, good.address], TOKEN, made.ref, other)
                assert await got(other, made.id) == made.packed
                await other.trash(made.id)
                await other.purge(0)
                assert not bad.store.has(made.id)
            else:
                _, files = await read_files(http, [bad.address, good.address], TOKEN, made.ref, [0, 2])
                assert files == {0: made.files["rows.npy"], 2: made.files["1.npy"]}
                if name in ("segment.json", "rows.npy", "1.npy"):
                    assert not bad.store.has(made.id)
                else:
                    assert not await bad.store.verify(made.id)


def _cut(path: Path, made: Made) -> None:
    change(path, path.read_bytes()[: random.Random(1).randrange(path.stat().st_size)])


def _empty(path: Path, made: Made) -> None:
    change(path, b"")


def _longer(path: Path, made: Made) -> None:
    change(path, path.read_bytes() + b"\0")


def _gone(path: Path, made: Made) -> None:
    path.unlink()


def _zeros(path: Path, made: Made) -> None:
    """What a journal that was replayed without its data leaves."""
    change(path, bytes(path.stat().st_size))


def _hole(path: Path, made: Made) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    change(path, bytes(data[:-1]) + b"\1")


def _link(path: Path, made: Made) -> None:
    """To the right bytes, even: what lies elsewhere may change."""
    target = path.parent.parent / "elsewhere"
    shutil.move(path, target)
    path.symlink_to(target)


def _secret(path: Path, made: Made) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _pipe(path: Path, made: Made) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path, made: Made) -> None:
    path.unlink()
    path.mkdir()


def _swapped(path: Path, made: Made) -> None:
    """For a neighbour, of the same length where there is one."""
    other = path.parent / NAMES[(NAMES.index(path.name) + 1) % len(NAMES)]
    here, there = path.read_bytes(), other.read_bytes()
    path.write_bytes(there)
    other.write_bytes(here)


def _repacked(path: Path, made: Made) -> None:
    """Damaged, and a segment.json that says so, under the old name."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    told = path.parent / "segment.json"
    text = msgspec.json.decode(made.files["segment.json"])
    text["files"][0]["blake3"] = blake3(data).hexdigest()
    told.write_bytes(msgspec.json.encode(text))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "fate",
    [_cut, _empty, _longer, _gone, _zeros, _hole, _link, _secret, _pipe, _directory, _swapped, _repacked],
    ids=lambda fate: fate.__name__.strip("_"),
)
async def test_no_fate_of_a_file_is_served(tmp_path: Path, name: str, fate: Callable[[Path, Made], None]) -> None:
    made = make(tmp_path / "made", rows=30)
    for number, door in enumerate(("whole", "verified", "verify")):
        store = SegmentStore(tmp_path / str(number))
        await put(store, made)
        fate(store.path(made.id) / name, made)
        checker = Checker(store, made, lambda: None, lambda: None)
        with pytest.raises((DataDamaged, DataUnavailable)):
            await getattr(checker, door)()
        assert not store.has(made.id)
        assert (store.quarantined, (store._bad / made.id).exists()) == (1, True)
        again = SegmentStore(tmp_path / str(number))
        assert not again.has(made.id)
        await put(again, made)
        assert await got(again, made.id) == made.packed


async def test_files_that_do_not_belong_are_nobodys_business(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=30)
    await put(store, made)
    (store.path(made.id) / "3.npy").write_bytes(b"more")
    (store.path(made.id) / ".hidden").mkdir()
    (store._here / "README").write_bytes(b"")
    (store._here / ("f" * 63)).mkdir()
    (store._here / ("f" * 64)).write_bytes(b"a file in the place of a directory")
    (store._here / ("e" * 64)).mkdir()
    (store._here / ("d" * 64)).symlink_to(store.path(made.id))
    again = SegmentStore(tmp_path / "node")
    assert await got(again, made.id) == made.packed
    assert await again.verify(made.id)
    for name in ("f" * 64, "e" * 64, "d" * 64):
        with pytest.raises((DataDamaged, DataUnavailable)):
            await again.verified(name)
        assert not again.has(name)
    assert again.ids() == {made.id}


async def test_swapped_directories_are_two_damaged_segments(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    one, two = make(tmp_path / "1", rows=30, seed=1), make(tmp_path / "2", rows=30, seed=2)
    await put(store, one)
    await put(store, two)
    store.path(one.id).rename(tmp_path / "aside")
    store.path(two.id).rename(store.path(one.id))
    (tmp_path / "aside").rename(store.path(two.id))
    for made in (one, two):
        with pytest.raises(DataDamaged):
            await got(store, made.id)
    assert not store.ids()


async def test_what_cannot_be_moved_away_is_gone_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has become read-only."""
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=30)
    await put(store, made)
    data = bytearray(made.files["0.npy"])
    data[-1] ^= 1
    change(store.path(made.id) / "0.npy", bytes(data))

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", read_only)
        patched.setattr(Path, "rename", read_only)
        with pytest.raises(DataDamaged):
            await got(store, made.id)
        assert not store.has(made.id)
    with pytest.raises(DataDamaged):
        await got(SegmentStore(tmp_path / "node"), made.id)
    await put(store, made)
    assert await got(store, made.id) == made.packed


async def test_a_copy_that_came_anew_is_not_blamed_for_the_old_one(tmp_path: Path) -> None:
    """Somebody who still reads the damaged files finds that out when a good copy is here again."""
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=120_000)
    await put(store, made)
    reading = store.read(made.id)
    for _ in range(2):
        await anext(reading)
    data = bytearray(made.files["0.npy"])
    data[-1] ^= 1
    change(store.path(made.id) / "0.npy", bytes(data))
    assert not await store.verify(made.id)
    await put(store, made)

    async def rest() -> None:
        async for _ in reading:
            pass

    with pytest.raises(DataDamaged):
        await rest()
    assert store.has(made.id)
    assert store.quarantined == 1
    assert await store.verify(made.id)


async def test_the_wrong_process_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files: nothing is known about the segment, and it stays."""
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=30)
    await put(store, made)

    def too_many(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", too_many)
        for work in (got(store, made.id), store.verified(made.id), store.verify(made.id)):
            with pytest.raises(OSError, match="Too many"):
                await work  # type: ignore[misc]
    assert await got(store, made.id) == made.packed


async def test_a_block_that_the_disk_does_not_give_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=30)
    await put(store, made)

    def unreadable(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", unreadable)
        with pytest.raises(DataDamaged, match="Input/output"):
            await got(store, made.id)
    assert not store.has(made.id)


async def test_verifying_is_paced_and_reads_everything(tmp_path: Path) -> None:
    store = SegmentStore(tmp_path / "node")
    made = make(tmp_path / "made", rows=300_000)
    await put(store, made)
    steps: list[int] = []

    async def pace(size: int) -> None:
        steps.append(size)

    assert await store.verify(made.id, pace)
    assert sum(steps) == made.ref.size
    assert max(steps) < 10 * BLOCK
    assert len(steps) > 1


async def test_too_little_of_a_download_is_no_file(tmp_path: Path) -> None:
    """An answer that is cut is never taken for one that has ended."""
    made = make(tmp_path / "made", rows=45_000)
    async with serving(tmp_path / "node") as node, session() as http:
        await put(node.store, made)
        data = bytearray(made.files["0.npy"])
        data[-1] ^= 1
        change(node.store.path(made.id) / "0.npy", bytes(data))
        url, headers = f"{node.address}/v1/segments/{made.id}", {"Authorization": f"Bearer {TOKEN}"}
        async with http.get(url, headers=headers) as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
