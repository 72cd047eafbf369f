"""Rounds over links that lose, doubt and double what they carry: each part counts once, whoever answers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from zkd import log
from zkd.core import rounds
from zkd.core.asks import Home
from zkd.training.gathering import Gathering, GivenUp
from zkd.training.links import Came, Moved, Refused

NODES = ("a", "b", "c")
HOMES = {part: Home(10, (NODES[part % 3], NODES[(part + 1) % 3])) for part in range(12)}


class Wires:
    """Links to nodes that answer when they are told to. A partial names its parts and its round."""

    def __init__(self, live: Sequence[str] = NODES) -> None:
        self.live = frozenset(live)
        self.asked: list[tuple[str, int, int, tuple[int, ...]]] = []
        self.forgotten: list[tuple[str, int, int]] = []
        self.gathering = Gathering(self, lambda: HOMES, Counter(), log.get())  # type: ignore[arg-type]
        self.news = asyncio.Event()

    def ask(self, node: str, number: int, ask: int, parts: Sequence[int], question: bytes) -> None:
        assert question == b"?"
        self.asked.append((node, number, ask, tuple(parts)))
        self.news.set()

    def forget(self, node: str, number: int, ask: int) -> None:
        self.forgotten.append((node, number, ask))

    def answer(self, node: str, number: int, ask: int, parts: Sequence[int]) -> None:
        self.gathering.hear(Came(node, number, ask, tuple(parts), (repr((number, tuple(parts))).encode(),)))

    def be_live(self, *nodes: str) -> None:
        self.live = frozenset(nodes)
        self.gathering.hear(Moved(self.live))

    async def asks(self, count: int) -> list[tuple[str, int, int, tuple[int, ...]]]:
        async with asyncio.timeout(5.0):
            while len(self.asked) < count:
                self.news.clear()
                await self.news.wait()
        return self.asked[:count]


def counted(partials: Sequence[bytes], number: int) -> list[int]:
    """The parts in these partials, all of which have to be of this round."""
    parts: list[int] = []
    for partial in partials:
        of, some = eval_tuple(partial)
        assert of == number
        parts += some
    return sorted(parts)


def eval_tuple(partial: bytes) -> tuple[int, list[int]]:
    numbers = [int(word) for word in partial.decode().replace("(", " ").replace(")", " ").replace(",", " ").split()]
    return numbers[0], numbers[1:]


async def test_every_part_is_in_one_answer() -> None:
    wires = Wires()
    for number in (1, 2, 3):
        async with asyncio.TaskGroup() as group:
            gathered = group.create_task(wires.gathering.gather(7, b"?"))
            for ask in (await wires.asks(3 * number))[-3:]:
                wires.answer(*ask)
        assert counted(gathered.result(), number) == list(range(12))


async def test_answers_of_other_rounds_and_of_other_nodes_do_not_count() -> None:
    wires = Wires()
    async with asyncio.TaskGroup() as group:
        gathered = group.create_task(wires.gathering.gather(7, b"?"))
        first, second, third = await wires.asks(3)
        wires.answer(first[0], 0, first[2], first[3])
        wires.answer(second[0], first[1], first[2], first[3])  # another node answers for the first
        wires.gathering.hear(Refused("c", 5, 0, "of another round"))
        wires.gathering.hear(Refused(third[0], first[1], first[2], "not its ask"))
        await asyncio.sleep(0.05)
        assert not gathered.done()
        for ask in (first, first, second, third):
            wires.answer(*ask)
    assert counted(gathered.result(), 1) == list(range(12))
    assert len(wires.asked) == 3, "nothing was asked for again"


async def test_a_link_that_comes_back_at_once_has_lost_its_asks() -> None:
    wires = Wires()
    async with asyncio.TaskGroup() as group:
        gathered = group.create_task(wires.gathering.gather(7, b"?"))
        asks = await wires.asks(3)
        lost = asks[0][0]
        wires.be_live(*(node for node in NODES if node != lost))
        wires.be_live(*NODES)
        for ask in asks[1:]:
            wires.answer(*ask)
        again = [each for each in await wires.asks(4) if each not in asks]
        while not gathered.done():
            for each in [each for each in wires.asked[3:] if each in again or each not in asks]:
                wires.answer(*each)
            await asyncio.sleep(0.01)
    assert counted(gathered.result(), 1) == list(range(12))


async def test_who_is_late_is_covered_and_told_to_forget() -> None:
    wires = Wires("abcde")
    homes = {part: Home(10, ("abcde"[part % 5], "abcde"[(part + 1) % 5])) for part in range(15)}
    wires.gathering = Gathering(wires, lambda: homes, Counter(), log.get())  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        gathered = group.create_task(wires.gathering.gather(7, b"?"))
        late, *others = await wires.asks(5)
        for ask in others:
            wires.answer(*ask)
        (cover,) = (await wires.asks(6))[5:]
        assert cover[0] != late[0]
        wires.answer(*cover)
    assert counted(gathered.result(), 1) == list(range(15))
    assert wires.forgotten == [(late[0], 1, late[2])]


async def test_a_round_that_cannot_be_had_is_given_up_with_a_reason() -> None:
    wires = Wires()

    def refuse(node: str, number: int, ask: int, parts: Sequence[int], question: bytes) -> None:
        wires.gathering.hear(Refused(node, number, ask, "worms"))

    wires.ask = refuse  # type: ignore[method-assign]
    with pytest.raises(GivenUp, match="worms"):
        await wires.gathering.gather(7, b"?")


async def test_a_cancelled_round_is_forgotten_everywhere() -> None:
    wires = Wires()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(wires.gathering.gather(7, b"?"))
        asks = await wires.asks(3)
        task.cancel()
    assert sorted(wires.forgotten) == sorted((node, number, ask) for node, number, ask, _ in asks)
    assert wires.gathering.waits_for() == []


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_each_part_counts_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "LATE_MIN_S", 0.002)
    monkeypatch.setattr(rounds, "FAILURES_MAX", 1000)
    rng = random.Random(seed)
    wires = Wires()
    for number in range(1, 6):
        at = len(wires.asked)
        async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:
            gathered = group.create_task(wires.gathering.gather(7, b"?"))
            while not gathered.done():
                await asyncio.sleep(0.001)
                some = wires.asked[max(0, at - 3) :]
                for ask in rng.sample(some, min(len(some), 2)):
                    choice = rng.random()
                    if choice < 0.5:
                        wires.answer(*ask)
                    elif choice < 0.6:
                        wires.answer(ask[0], ask[1], ask[2], ask[3][:-1])
                    elif choice < 0.7:
                        wires.gathering.hear(Refused(ask[0], ask[1], ask[2], "it failed"))
                    elif choice < 0.8:
                        wires.be_live(*rng.sample(NODES, rng.randint(0, 3)))
                    elif choice < 0.9:
                        wires.be_live(*NODES)
                    else:
                        wires.gathering.moved()
        assert counted(gathered.result(), number) == list(range(12))
        wires.live = frozenset(NODES)
