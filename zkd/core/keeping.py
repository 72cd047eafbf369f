"""Decides what a node fetches, reports, throws away and takes back. State in, commands out; the hands are
`zkd.node.keeper`.

    missing --fetch--> here --not ours, R good copies elsewhere, grace--> trash --grace, asked once more--> gone
                        ^                                                  |
                        +------- ours again, or a copy was lost -----------+

The rule above all: the last good copy is never deleted. A segment leaves this node only when those it belongs to say
that they hold it, R of them, for the whole time of grace, twice over; in between it lies in the trash, from where it
comes back if one of them has lost it. At the end the hands ask each of them to read it, byte by byte.

What no manifest names is left of a writer who gave up, or of a dataset that was removed: it goes when nobody has been
writing, and everything that stands in the tree could be read, for an hour.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import NamedTuple

from zkd.core.atlas import Atlas, layout
from zkd.core.datasets import Held
from zkd.manifests import SegmentRef
from zkd.paths import NodeId

SegmentId = str

ORPHAN_S = 3600.0  # a client that sends one version for longer holds a znode in writers/ all the time
RETRY_S = 1.0  # before a segment is fetched again that could not be had; doubles
RETRY_S_MAX = 60.0
FETCHES_MAX = 64  # are decided at a time: what is most urgent may be something else soon


class Place(NamedTuple):
    """Where a segment is listed: a part of a version."""

    name: str
    version: int
    part: int


@dataclass(frozen=True, slots=True)
class Fetch:
    segment: SegmentId
    size: int
    copies: int  # that are here now, as their nodes say
    sources: tuple[NodeId, ...]  # who should have it first


@dataclass(frozen=True, slots=True)
class Trash:
    segment: SegmentId


@dataclass(frozen=True, slots=True)
class Restore:
    segment: SegmentId


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete it for good, if each of `witnesses`, asked now, has read every byte of it and found it good."""

    segment: SegmentId
    witnesses: tuple[NodeId, ...]


Command = Fetch | Trash | Restore | Purge


@dataclass(frozen=True, slots=True)
class Wanted:
    ref: SegmentRef
    rank: int  # of this node among those that it belongs to: 0 is the primary


@dataclass(frozen=True, slots=True)
class Survey:
    """What the versions and the map ask of a node. It changes with them only, not with what lies where."""

    wanted: dict[SegmentId, Wanted]
    listed: dict[SegmentId, list[Place]]
    homes: dict[Place, tuple[NodeId, ...]]  # of what does not belong here
    replicas: dict[tuple[str, int], int]
    is_readable: bool  # no manifest stands in the tree that cannot be believed: it may list anything
    is_written: bool  # somebody is sending segments that no manifest lists yet

    @property
    def places(self) -> int:
        return sum(map(len, self.listed.values()))


def survey(atlas: Atlas, me: NodeId) -> Survey:
    """What belongs on `me`, and where everything else does, as `atlas` has it."""
    wanted: dict[SegmentId, Wanted] = {}
    listed: dict[SegmentId, list[Place]] = {}
    homes: dict[Place, tuple[NodeId, ...]] = {}
    replicas: dict[tuple[str, int], int] = {}
    datasets = list(atlas.datasets.items())
    for name, dataset in datasets:
        for version, edition in list(dataset.editions.items()):
            placed = atlas.placed.get(layout(edition.manifest))
            nodes_of = placed[1] if placed is not None and edition.manifest.store is None else ()
            replicas[name, version] = edition.manifest.replicas
            for part, refs in enumerate(edition.parts):
                nodes = nodes_of[part] if nodes_of else ()
                place = Place(name, version, part)
                for ref in refs:
                    listed.setdefault(ref.id, []).append(place)
                if me not in nodes:
                    homes[place] = nodes
                    continue
                rank = nodes.index(me)
                for ref in refs:
                    known = wanted.get(ref.id)
                    if known is None or rank < known.rank:
                        wanted[ref.id] = Wanted(ref, rank)
    return Survey(
        wanted,
        listed,
        homes,
        replicas,
        is_readable=all(dataset.is_readable for _, dataset in datasets),
        is_written=any(dataset.writers for _, dataset in datasets),
    )


def report(atlas: Atlas, me: NodeId, here: Set[SegmentId]) -> dict[str, dict[int, int]]:
    """What this node may say to hold: dataset -> version -> bits. A part without rows is held by whom it belongs to."""
    said: dict[str, dict[int, int]] = {}
    for name, dataset in list(atlas.datasets.items()):
        for version, edition in list(dataset.editions.items()):
            placed = atlas.placed.get(layout(edition.manifest))
            nodes_of = placed[1] if placed is not None else ()
            digits = []
            for part, refs in enumerate(edition.parts):
                is_held = all(ref.id in here for ref in refs) if refs else bool(nodes_of) and me in nodes_of[part]
                digits.append("1" if is_held else "0")
            bits = int("".join(reversed(digits)), 2)
            if bits:
                said.setdefault(name, {})[version] = bits
    return said


class Witnesses:
    """Who holds what, by what nodes say that are here now."""

    def __init__(self, holdings: Mapping[str, Mapping[NodeId, Held]], live: Mapping[NodeId, str]) -> None:
        self._holdings = {name: dict(held) for name, held in holdings.items()}
        self._live = live  # node -> incarnation
        # (dataset, version) -> node -> bits. As bytes: a shift of a long number copies all of it.
        self._bits: dict[tuple[str, int], dict[NodeId, bytes]] = {}

    def holders(self, places: Iterable[Place]) -> set[NodeId]:
        """The nodes here that say to hold one of these. One that came anew may not have looked yet."""
        found: set[NodeId] = set()
        for place in places:
            at, bit = place.part >> 3, 1 << (place.part & 7)
            for node, data in self._said(place.name, place.version).items():
                if at < len(data) and data[at] & bit:
                    found.add(node)
        return found

    def vouches(self, node: NodeId, place: Place) -> bool:
        """Whether this node says so in the life that it is in."""
        held = self._holdings.get(place.name, {}).get(node)
        if held is None or self._live.get(node) != held.incarnation:
            return False
        data = self._said(place.name, place.version).get(node, b"")
        return place.part >> 3 < len(data) and bool(data[place.part >> 3] >> (place.part & 7) & 1)

    def _said(self, name: str, version: int) -> dict[NodeId, bytes]:
        said = self._bits.get((name, version))
        if said is None:
            said = {}
            for node, held in self._holdings.get(name, {}).items():
                bits = held.parts.get(version, 0)
                if bits and node in self._live:
                    said[node] = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
            self._bits[name, version] = said
        return said

    @property
    def live(self) -> Set[NodeId]:
        return self._live.keys()


class _Failure(NamedTuple):
    tries: int
    retry_at: float
    holders: frozenset[NodeId]


class Keeping:
    """A node's memory of what it has seen for how long, and what it does about it."""

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self._surplus_since: dict[SegmentId, float] = {}
        self._orphan_since: dict[SegmentId, float] = {}
        self._trashed_at: dict[SegmentId, float] = {}
        self._failures: dict[SegmentId, _Failure] = {}

    def decide(
        self,
        survey: Survey,
        here: Set[SegmentId],
        trashed: Set[SegmentId],
        witnesses: Witnesses,
        now: float,
        grace_s: float,
        *,
        is_sure: bool,
    ) -> list[Command]:
        """What to do now. `is_sure`: the survey is of the tree as it is, and of the tree that we kept data for.

        Without it nothing is thrown away, whatever it looked like before.
        """
        if not is_sure:
            self._surplus_since.clear()
            self._orphan_since.clear()
        back = [each for each in sorted(trashed) if self._is_needed(survey, each, witnesses)]
        commands: list[Command] = [Restore(each) for each in back]
        commands += self._fetches(survey, here | trashed, witnesses, now)
        if is_sure:
            commands += self._trashes(survey, here, witnesses, now, grace_s)
            commands += self._purges(survey, trashed - set(back), witnesses, now, grace_s)
        else:
            self._trashed_at.clear()  # the second grace is one of knowing, too
        return commands

    def rest(self) -> None:
        """Nothing is missing, nothing too much: what was seen for how long counts no more."""
        for memory in (self._surplus_since, self._orphan_since, self._trashed_at, self._failures):
            memory.clear()

    # --- Fetching ---------------------------------------------------------------------------------------

    def _fetches(self, survey: Survey, there: Set[SegmentId], witnesses: Witnesses, now: float) -> list[Fetch]:
        found: list[tuple[tuple[int, int, str], Fetch]] = []
        missing = survey.wanted.keys() - there
        for each in self._failures.keys() - missing:
            del self._failures[each]
        for each in missing:
            holders = witnesses.holders(survey.listed[each]) - {self.node}
            failure = self._failures.get(each)
            if failure is not None and now < failure.retry_at and failure.holders == holders:
                continue
            wanted = survey.wanted[each]
            sources = self._sources(each, holders, witnesses.live)
            if sources:
                fetch = Fetch(each, wanted.ref.size, len(holders), sources)
                # What nobody says to have comes last: most likely it cannot be had now.
                found.append(((len(holders) or 1 << 30, wanted.rank, each), fetch))
        found.sort(key=lambda entry: entry[0])
        return [fetch for _, fetch in found[:FETCHES_MAX]]

    def _sources(self, segment: SegmentId, holders: Set[NodeId], live: Set[NodeId]) -> tuple[NodeId, ...]:
        """Who says to have it, in an order that differs from segment to segment; if nobody does, everybody who is
        here: one may hold it that has not said so yet, or as a piece of a part that it does not hold whole."""
        names = sorted(holders or live - {self.node})
        start = int(segment[:8], 16) % len(names) if names else 0
        return tuple(names[start:] + names[:start])

    def fetch_failed(self, segment: SegmentId, survey: Survey, witnesses: Witnesses, now: float) -> None:
        """No source had it. It is tried again when others say to have it, or after a while."""
        tries = self._failures[segment].tries + 1 if segment in self._failures else 1
        holders = frozenset(witnesses.holders(survey.listed.get(segment, ())) - {self.node})
        pause_s = min(RETRY_S_MAX, RETRY_S * 2 ** (tries - 1))
        self._failures[segment] = _Failure(tries, now + pause_s, holders)

    # --- Throwing away ----------------------------------------------------------------------------------

    def _is_needed(self, survey: Survey, segment: SegmentId, witnesses: Witnesses) -> bool:
        """Whether a copy here serves: it belongs here, or those that it belongs to do not all vouch for it."""
        return segment in survey.wanted or not self._is_safe(survey, segment, witnesses)

    def _is_safe(self, survey: Survey, segment: SegmentId, witnesses: Witnesses) -> bool:
        """Whether each part that it is of has its R good copies without this one; true of what no manifest names."""
        for place in survey.listed.get(segment, ()):
            homes = survey.homes.get(place, ())
            if len(homes) < survey.replicas[place.name, place.version]:
                return False  # too few nodes for so many copies, or nobody knows where it belongs
            if not all(witnesses.vouches(home, place) for home in homes):
                return False
        return True

    def _trashes(
        self, survey: Survey, here: Set[SegmentId], witnesses: Witnesses, now: float, grace_s: float
    ) -> list[Trash]:
        surplus: dict[SegmentId, float] = {}
        orphans: dict[SegmentId, float] = {}
        for each in here:
            if each not in survey.listed:
                if survey.is_readable and not survey.is_written:
                    orphans[each] = self._orphan_since.get(each, now)
            elif not self._is_needed(survey, each, witnesses):
                surplus[each] = self._surplus_since.get(each, now)
        self._surplus_since, self._orphan_since = surplus, orphans
        due = [each for each, since in surplus.items() if now - since >= grace_s]
        due += [each for each, since in orphans.items() if now - since >= ORPHAN_S + grace_s]
        return [Trash(each) for each in sorted(due)]

    def _purges(
        self, survey: Survey, trashed: Set[SegmentId], witnesses: Witnesses, now: float, grace_s: float
    ) -> list[Purge]:
        is_clear = survey.is_readable and not survey.is_written
        self._trashed_at = {
            each: self._trashed_at.get(each, now) for each in trashed if each in survey.listed or is_clear
        }
        due = [each for each, since in self._trashed_at.items() if now - since >= grace_s]
        return [Purge(each, self._homes(survey, each)) for each in sorted(due)]

    def _homes(self, survey: Survey, segment: SegmentId) -> tuple[NodeId, ...]:
        return tuple(sorted({home for place in survey.listed.get(segment, ()) for home in survey.homes[place]}))

    def purge_refused(self, segment: SegmentId) -> None:
        """A witness did not find it good, or could not be asked: its grace begins anew."""
        self._trashed_at.pop(segment, None)


class Bucket:
    """A budget of bytes a second. What is not spent is saved up for a second, no longer."""

    def __init__(self, now: float) -> None:
        self._debt = 0.0
        self._at = now

    def spend(self, size: int, per_s: float, now: float) -> float:
        """Take `size` bytes from it; the seconds to wait before going on."""
        self._debt = max(-per_s, self._debt - (now - self._at) * per_s) + size
        self._at = now
        return max(0.0, self._debt / per_s)
