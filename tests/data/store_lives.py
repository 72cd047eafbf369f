"""Every boundary of one node's segment store: a life that ends there, and what the next one finds.

A life receives segments (in two goes, as after a lost connection), takes one out and puts it back, takes another out
for good, finds a damaged one and gets it anew. Before and after each step it says so in a file elsewhere. The next life
must find all that was said to be here and durable, byte for byte, whatever it finds must be exact, and when it has
done the same work there must be nothing left over.

Each life is a fork of one process, which has no threads of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.data.fuse import Fuse, Trip, cut_power, lit
from tests.store.made import Made, make
from zkd.errors import DataDamaged
from zkd.store.segments import SegmentStore

STORES = ("segments", "segments.incoming", "segments.bad", "segments.trash", "segments.made")


@dataclass(frozen=True)
class End:
    """Where a life ends."""

    label: str
    occurrence: int
    when: str
    is_power_cut: bool

    def __str__(self) -> str:
        how = "a power cut" if self.is_power_cut else "kill -9"
        return f"{how} {self.when} {self.label!r}, time {self.occurrence}"


class Said:
    """What lives said they did, in the order in which they did it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, word: str, made: Made) -> None:
        with self.path.open("a") as file:
            file.write(f"{word} {made.id}\n")

    def last_of(self, made: Made) -> str | None:
        lines = self.path.read_text().split("\n") if self.path.exists() else []
        words = [line.split()[0] for line in lines if line.endswith(made.id)]
        return words[-1] if words else None


async def life(data: Path, made: list[Made], said: Said) -> None:
    store = SegmentStore(data)
    back, gone, rotten = made[0], made[1], made[2]
    for each in made:
        await take(store, each, said)
    said("taking-out", back)
    await store.trash(back.id)
    said("putting-back", back)
    assert await store.restore(back.id)
    said("here", back)
    said("taking-out", gone)
    await store.trash(gone.id)
    said("removing", gone)
    await store.purge(-1.0)
    said("removed", gone)
    said("rotting", rotten)
    path = store.path(rotten.id) / "0.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert not await store.verify(rotten.id)
    await take(store, rotten, said)


async def take(store: SegmentStore, made: Made, said: Said) -> None:
    """In two goes, as when the connection is lost on the way."""
    total = len(made.packed)
    for stop in (total // 2, total):
        start = await store.received(made.id)
        is_here = await store.receive(made.id, start, total, pieces(made.packed[start : max(start, stop)]))
    assert is_here
    said("here", made)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1 << 19):
        yield data[start : start + (1 << 19)]


async def look(data: Path, made: list[Made], said: Said) -> None:
    """What a life finds that begins after an end."""
    store = SegmentStore(data)
    by_id = {each.id: each for each in made}
    assert store.ids() <= by_id.keys()
    for segment_id in store.ids():
        if said.last_of(by_id[segment_id]) == "rotting":
            try:
                await store.verified(segment_id)
            except DataDamaged:
                continue
        found = b"".join([piece async for piece in store.read(segment_id)])
        assert found == by_id[segment_id].packed, f"{segment_id[:12]} is not what it was"
    for each in made:
        word = said.last_of(each)
        if word == "here":
            assert store.has(each.id), f"{each.id[:12]} was here and durable, and is gone"
        elif word in ("taking-out", "putting-back"):
            assert store.has(each.id) or each.id in await store.trashed(), f"{each.id[:12]} was only taken out"


async def finish(data: Path, made: list[Made], said: Said) -> None:
    """Another life does all of it; nothing is left over then."""
    await life(data, made, said)
    store = SegmentStore(data)
    await store.purge(-1.0)
    assert store.ids() == {each.id for each in made} - {made[1].id}
    for each in made:
        if store.has(each.id):
            await store.verified(each.id)
    assert os.listdir(data / "segments.incoming") == []
    assert os.listdir(data / "segments.trash") == []
    assert set(os.listdir(data)) == set(STORES)


def forked(directory: Path, work: Callable[[], None]) -> int:
    """The wait status of a child that does this; what it raises goes to a file and makes 1."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            (directory / "raised").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def boundaries(directory: Path, made: list[Made]) -> dict[str, int]:
    """Every boundary of a life that nothing ends, and how often it comes."""
    data, trace = directory / "data", directory / "trace"
    data.mkdir(parents=True)

    def work() -> None:
        lit(Fuse(str(data), trace=str(trace)))
        asyncio.run(life(data, made, Said(directory / "said")))

    assert forked(directory, work) == 0, (directory / "raised").read_text()
    labels = trace.read_text().split("\n")[:-1]
    return {label: labels.count(label) for label in dict.fromkeys(labels)}


def ends(counts: dict[str, int], dice: random.Random, each: int) -> Iterator[End]:
    for label, count in counts.items():
        occurrences = {1, count, *(dice.randint(1, count) for _ in range(each))}
        for occurrence in sorted(occurrences):
            for when in ("before", "after", "torn") if label.startswith("write ") else ("before", "after"):
                for is_power_cut in (False, True):
                    yield End(label, occurrence, when, is_power_cut)


def try_end(directory: Path, made: list[Made], end: End, seed: int) -> str | None:
    """What was wrong with this end, None if nothing."""
    shutil.rmtree(directory, ignore_errors=True)
    data, power, said = directory / "data", directory / "power", Said(directory / "said")
    data.mkdir(parents=True)

    def work() -> None:
        noted = str(power) if end.is_power_cut else None
        lit(Fuse(str(data), Trip(end.label, end.occurrence, end.when, noted)))
        asyncio.run(life(data, made, said))

    status = forked(directory, work)
    if os.WIFEXITED(status):
        return None if os.WEXITSTATUS(status) == 0 else f"it raised\n{(directory / 'raised').read_text()}"
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    lost = cut_power(power, seed)
    for what in (look, finish):
        if forked(directory, lambda what=what: asyncio.run(what(data, made, said))) != 0:  # type: ignore[misc]
            return f"{(directory / 'raised').read_text()}\nthe power cut: {lost}"
    return None


def main(directory: Path, seed: int, each: int, most: int) -> int:
    """Try them; the exit code."""
    dice = random.Random(seed)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    # One of several blocks, one of one, one of no rows.
    made = [make(directory / f"made{n}", rows, seed=seed * 10 + n) for n, rows in enumerate((60_000, 100, 1000, 0))]
    counts = boundaries(directory / "first", made)
    chosen = list(ends(counts, dice, each))
    if len(chosen) > most:
        chosen = dice.sample(chosen, most)
    wrong = 0
    for number, end in enumerate(chosen):
        fault = try_end(directory / "life", made, end, seed + number)
        if fault is not None:
            wrong += 1
            print(f"--- {end}\n{fault}", flush=True)
    print(f"store: {len(counts)} boundaries, {len(chosen)} ends, {wrong} wrong, seed {seed}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
