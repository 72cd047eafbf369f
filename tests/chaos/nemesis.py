"""Breaks things, one after the other in each lane, by a seeded schedule, and proves each time that it did.

Three lanes run at once: one breaks servers, one daemons and workers, one the connections between them. A fault is a
coroutine that hits, waits, heals, and gives its proof: the exit by signal 9, the state T of a frozen process, the count
of connections that were cut. A fault that cannot show one is written down as missed, and counts for nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.chaos.site import Site

GAP_S = (0.2, 2.0)  # between one fault's healing and the next in the same lane
PROOF_S = 2.0
TRUCE_EVERY_S, TRUCE_S = 60.0, 8.0


class Blow(msgspec.Struct, frozen=True):
    """One fault, as it is written down. `proof` is empty if it missed."""

    fault: str
    target: str
    proof: dict[str, object]
    hit_at: float
    healed_at: float


@dataclass(frozen=True)
class Struck:
    """What a fault gives back when it has healed."""

    target: str
    proof: dict[str, object]


class Missed(Exception):
    """The fault could not be made, or could not be proven."""


Fault = Callable[[Site, random.Random], Awaitable[Struck]]


@dataclass(frozen=True)
class Known:
    name: str
    lane: str
    weight: int
    make: Fault


FAULTS: dict[str, Known] = {}


def fault(name: str, lane: str, weight: int = 1) -> Callable[[Fault], Fault]:
    """Enter a fault into the catalogue."""

    def enter(make: Fault) -> Fault:
        FAULTS[name] = Known(name, lane, weight, make)
        return make

    return enter


class Nemesis:
    def __init__(self, site: Site, seed: int, names: Iterable[str], tell: Callable[[str], None]) -> None:
        self._site = site
        self._seed = seed
        self._lanes: dict[str, list[Known]] = {}
        for name in names:
            self._lanes.setdefault(FAULTS[name].lane, []).append(FAULTS[name])
        self._tell = tell
        self._active = 0
        self._is_truce = False
        self.blows: list[Blow] = []
        self.truces: list[tuple[float, float]] = []  # when nothing was broken: from the last healing to the next blow

    async def run(self, over: asyncio.Event) -> None:
        """Break things until `over` is set; everything is healed when this returns."""
        async with asyncio.TaskGroup() as group:
            for lane, known in self._lanes.items():
                group.create_task(self._lane(lane, known, over))
            group.create_task(self._make_truces(over))

    async def _make_truces(self, over: asyncio.Event) -> None:
        """Leave the site alone now and then: only so can be seen how soon it goes on when all is well again."""
        while not await _happens_within(over, TRUCE_EVERY_S):
            self._is_truce = True
            while self._active:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            await _happens_within(over, TRUCE_S)
            self.truces.append((began, time.monotonic()))
            self._is_truce = False

    def spared(self) -> set[str]:
        """The faults that have not hit yet."""
        known = {each.name for lane in self._lanes.values() for each in lane}
        return known - {blow.fault for blow in self.blows if blow.proof}

    async def _lane(self, lane: str, known: list[Known], over: asyncio.Event) -> None:
        rng = random.Random(f"{self._seed} {lane}")
        first = list(known)  # each once, so that a short run has them all
        rng.shuffle(first)
        while not over.is_set():
            chosen = first.pop() if first else rng.choices(known, [each.weight for each in known])[0]
            self._active += 1
            try:
                await self.strike(chosen, random.Random(rng.random()))
            finally:
                self._active -= 1
            await _happens_within(over, rng.uniform(*GAP_S))
            while self._is_truce and not over.is_set():
                await asyncio.sleep(0.05)

    async def strike(self, known: Known, rng: random.Random) -> None:
        hit_at = time.monotonic()
        try:
            struck = await known.make(self._site, rng)
        except Missed as missed:
            struck = Struck(str(missed), {})
        blow = Blow(known.name, struck.target, struck.proof, hit_at, time.monotonic())
        self.blows.append(blow)
        with (self._site.directory / "nemesis").open("ab") as file:
            file.write(msgspec.json.encode(blow) + b"\n")
        took_s = blow.healed_at - blow.hit_at
        what = f"hit for {took_s:.1f} s" if blow.proof else "missed"
        self._tell(f"{known.name} {what}: {struck.target} {struck.proof or ''}")


async def _happens_within(event: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def read_blows(path: Path) -> list[Blow]:
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Blow) for line in path.read_bytes().splitlines()]


# --- Proofs -----------------------------------------------------------------------------------------------


def state_of(pid: int) -> str:
    """The state letter of a process, or X when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


async def proven_state(pid: int, states: str) -> str:
    """Wait for the process to be in one of these states."""
    deadline = time.monotonic() + PROOF_S
    while (state := state_of(pid)) not in states:
        if time.monotonic() > deadline:
            raise Missed(f"process {pid} is in state {state}, not in {states}")
        await asyncio.sleep(0.005)
    return state


def descendants(pid: int) -> list[int]:
    """The processes below this one, children first."""
    found: list[int] = []
    for task in (f"/proc/{pid}/task/{thread}/children" for thread in threads(pid)):
        try:
            found += [int(child) for child in Path(task).read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found + [below for child in found for below in descendants(child)]


def threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []
