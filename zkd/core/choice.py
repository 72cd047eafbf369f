"""Which node to ask for a prediction, and when to ask another one beside it. No I/O and no clock: times are passed in.

Two nodes are drawn and the one with less to do is asked (Mitzenmacher, 2001): nearly as good as to know them all, and
many callers do not run to the same one that was idle a moment ago. What a node has to do is what is on its way to it
from here and what it said that waits there, times how long its answers took lately.

An answer is late when 19 of 20 took less time. Then another node is asked beside, if not too many were already: a
second copy of one request in ten at most (Dean and Barroso, The Tail at Scale, 2013). A node that was overtaken again
and again while it said nothing, or that failed, is passed over for a while, and then tried with one request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from zkd.paths import NodeId

KNOWN = 200  # answers that count for what is late,
KNOWN_MIN = 20  # looked at after so many more
LATE_SHARE = 0.95
LATE_S_MIN = 0.002  # less is the noise of a loop
BESIDE_SHARE = 0.1  # of the requests may be asked a second time before they are in danger,
BESIDE_MAX = 10.0  # so many of them at once
EVEN = 0.9  # times the cost of another one is as good as the same
TOLD_S = 1.0  # that a node's own word of its queue counts
WEIGHT = 0.2  # of the last answer in what a node takes,
FORGET_S = 1.0  # and that counts half as much after so long
OVERTAKEN_MAX = 2  # times without a word, and a node is passed over
AVOID_S, AVOID_S_MAX = 0.5, 5.0  # at first; doubled each time


@dataclass(slots=True)
class _Seen:
    """What is known of a node."""

    running: int = 0  # requests on their way
    queued: int = 0  # as it said
    told_at: float = float("-inf")
    answer_s: float | None = None
    answered_at: float = float("-inf")
    overtaken: int = 0  # since its last answer
    strikes: int = 0
    avoid_until: float = float("-inf")


class Choice:
    """Of one program, for one model."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._nodes: dict[NodeId, _Seen] = {}
        self._took: deque[float] = deque(maxlen=KNOWN)
        self._unsorted = 0
        self._late_s: float | None = None
        self._beside = BESIDE_MAX
        self._usual_s = LATE_S_MIN  # that any node takes

    def keep(self, nodes: Collection[NodeId]) -> None:
        """Forget all others, once nothing of theirs is on its way."""
        self._nodes = {name: seen for name, seen in self._nodes.items() if name in nodes or seen.running}

    def pick(self, nodes: Sequence[NodeId], now: float) -> NodeId | None:
        """The one of these to be asked now. Those that are passed over come last."""
        if not nodes:
            return None
        good = self.trusted(nodes, now)
        if not good:
            return min(nodes, key=lambda node: self._seen(node).avoid_until)
        for node in good:
            if self._seen(node).strikes:  # its time is over: this request finds out
                self._avoid(self._seen(node), now)
                return node
        if len(good) == 1:
            return good[0]
        one, other = self._random.sample(good, 2)
        return other if self._cost(other, now) < EVEN * self._cost(one, now) else one

    def trusted(self, nodes: Sequence[NodeId], now: float) -> list[NodeId]:
        """Those of these that are not passed over."""
        return [node for node in nodes if self._seen(node).avoid_until <= now]

    def _cost(self, node: NodeId, now: float) -> float:
        seen = self._seen(node)
        queued = seen.queued if now - seen.told_at <= TOLD_S else 0
        answer_s = self._usual_s
        if seen.answer_s is not None:  # one that was slow long ago is tried again
            answer_s += (seen.answer_s - answer_s) * 0.5 ** ((now - seen.answered_at) / FORGET_S)
        return (1 + seen.running + queued) * answer_s

    # --- What happened --------------------------------------------------------------------------------------

    def asked(self, node: NodeId, *, is_first: bool) -> None:
        self._seen(node).running += 1
        if is_first:
            self._beside = min(BESIDE_MAX, self._beside + BESIDE_SHARE)

    def ended(self, node: NodeId) -> None:
        """Whatever came of it."""
        self._seen(node).running -= 1

    def answered(self, node: NodeId, now: float, seconds: float, queued: int | None) -> None:
        seen = self._seen(node)
        seen.answer_s = seconds if seen.answer_s is None else seen.answer_s + WEIGHT * (seconds - seen.answer_s)
        self._usual_s += WEIGHT * (seconds - self._usual_s)
        seen.answered_at, seen.overtaken, seen.strikes, seen.avoid_until = now, 0, 0, float("-inf")
        if queued is not None:
            seen.queued, seen.told_at = queued, now

    def shed(self, node: NodeId, now: float, for_s: float) -> None:
        """It said itself that it wants nothing for so long."""
        seen = self._seen(node)
        seen.answered_at, seen.overtaken = now, 0
        seen.avoid_until = max(seen.avoid_until, now + min(for_s, AVOID_S_MAX))

    def failed(self, node: NodeId, now: float) -> None:
        if self._seen(node).avoid_until <= now:  # a hundred that fail together are one failure
            self._avoid(self._seen(node), now)

    def overtaken(self, node: NodeId, asked_at: float, now: float) -> None:
        """Another node, asked later than this one, answered first."""
        seen = self._seen(node)
        if seen.answered_at < asked_at:
            seen.overtaken += 1
            if seen.overtaken >= OVERTAKEN_MAX and seen.avoid_until <= now:
                self._avoid(seen, now)

    def took(self, seconds: float) -> None:
        """A request was answered, by whomever, so long after it was made."""
        self._took.append(seconds)
        self._unsorted += 1
        if self._unsorted >= KNOWN_MIN:
            self._unsorted = 0
            self._late_s = max(LATE_S_MIN, sorted(self._took)[int(LATE_SHARE * (len(self._took) - 1))])

    # --- Asking another one -----------------------------------------------------------------------------------

    @property
    def late_s(self) -> float | None:
        """After how long an answer is late; None as long as nobody knows."""
        return self._late_s

    def may_ask_beside(self) -> bool:
        """Whether another node may be asked for what is merely late; counts as done."""
        if self._beside < 1.0:
            return False
        self._beside -= 1.0
        return True

    def _avoid(self, seen: _Seen, now: float) -> None:
        seen.avoid_until = now + min(AVOID_S_MAX, AVOID_S * 2**seen.strikes)
        seen.strikes = min(seen.strikes + 1, 8)

    def _seen(self, node: NodeId) -> _Seen:
        return self._nodes.setdefault(node, _Seen())
