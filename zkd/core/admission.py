"""How much work may wait: a clear refusal of what is too much, before the tree is too large for its servers.

A server holds the whole tree in memory, and writes all of it with every snapshot. What is beyond the limits is
refused when it arrives, as soon as it is read; what has been admitted once is never refused for this. Half of the
room is for submitters who have less than their share of it, so that one who floods is refused and the others are not:

    all that waits   0 ................. half ................. limit
                     anybody             only who has less      nobody
                                         than his share

The share is the limit divided by one more than those who have something waiting: room for the next to come.
"""

from __future__ import annotations

from dataclasses import dataclass

from zkd.records import Fault

KIND = "overloaded"
# So long stays the result that says so: a plain client reads it at once, and a flood of refusals is a flood, too.
REFUSAL_TTL_S = 30.0


@dataclass(frozen=True, slots=True)
class Room:
    """What may wait or run, in tasks and in bytes of their znodes."""

    tasks: int = 250_000
    size: int = 256 * 2**20


@dataclass(slots=True)
class Load:
    """What is there, of everybody or of one submitter."""

    tasks: int = 0
    size: int = 0


class Admission:
    """What the leader has admitted and has not seen go."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.total = Load()
        self.by_submitter: dict[str, Load] = {}
        self.refused = 0

    def refusal(self, submitter: str, size: int, *, was_there: bool) -> Fault | None:
        """Why this arrival is too much, or None. `was_there`: when the reign began, perhaps admitted by another."""
        room, total = self.room, self.total
        if total.tasks >= room.tasks or total.size + size > room.size:
            return self._fault("", "")
        if was_there or (total.tasks < room.tasks // 2 and total.size + size <= room.size // 2):
            return None
        own = self.by_submitter.get(submitter) or Load()
        among = 1 + len(self.by_submitter) + (own.tasks == 0)
        if own.tasks < room.tasks // among and own.size + size <= room.size // among:
            return None
        whose = f"{own.tasks:,} of them from {submitter or 'submitters without a name'}"
        return self._fault(f", {whose}", f", 1/{among} of that from one submitter when it is half full")

    def _fault(self, whose: str, share: str) -> Fault:
        room, total = self.room, self.total
        self.refused += 1
        return Fault(
            KIND,
            f"{total.tasks:,} tasks of {total.size:,} bytes wait or run{whose}; expected at most {room.tasks:,} tasks "
            f"(tasks.queue_max) of {room.size:,} bytes (tasks.queue_bytes_max){share}: drop it again when fewer "
            "wait, under another id",
        )

    def enter(self, submitter: str, size: int) -> None:
        """This task counts from now on."""
        for load in (self.total, self.by_submitter.setdefault(submitter, Load())):
            load.tasks += 1
            load.size += size

    def leave(self, submitter: str, size: int) -> None:
        """It counts no longer."""
        own = self.by_submitter[submitter]
        for load in (self.total, own):
            load.tasks -= 1
            load.size -= size
        if own.tasks == 0:
            del self.by_submitter[submitter]
