"""What the embedded server does wrong on request, and a JVM cannot: the faults that tests switch on.

Plain state, asked by the shell at each turn. Nothing is wrong until someone asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from zkd.zk.server.wire import Malformed, Op, Reader

if TYPE_CHECKING:
    from collections.abc import Collection

    from zkd.zk.server.peer import Peer
    from zkd.zk.server.sessions import Session

When = Literal["before", "after"]

# Requests whose body begins with the path they are about.
_WITH_PATH = frozenset(Op) - {Op.PING, Op.AUTH, Op.SASL, Op.SET_WATCHES, Op.SET_WATCHES2, Op.CLOSE_SESSION, Op.WHO_AM_I}


@dataclass
class _Cut:
    when: When
    op: Op
    times: int
    path: str | None


@dataclass
class Faults:
    delay_s: float = 0.0
    is_refusing: bool = False
    _cuts: list[_Cut] = field(default_factory=list)
    _is_partitioned: bool = False
    _partitioned: frozenset[int] = frozenset()

    @property
    def has_cuts(self) -> bool:
        return bool(self._cuts)

    def cut(self, when: When, op: Op, times: int, path: str | None) -> None:
        self._cuts.append(_Cut(when, Op(op), times, path))

    def cut_for(self, op: int, frame: Reader) -> When | None:
        """When to cut the connection over this request, if at all; counts it."""
        for cut in self._cuts:
            if cut.op == op and (cut.path is None or _is_about(frame, op, cut.path)):
                cut.times -= 1
                if cut.times == 0:
                    self._cuts.remove(cut)
                return cut.when
        return None

    def partition(self, session_ids: Collection[int]) -> None:
        self._is_partitioned = True
        self._partitioned = frozenset(session_ids)

    def is_cut_off(self, session: Session[Peer] | None) -> bool:
        if not self._is_partitioned:
            return False
        return not self._partitioned or (session is not None and session.session_id in self._partitioned)

    def heal(self) -> None:
        self.delay_s = 0.0
        self.is_refusing = self._is_partitioned = False
        self._cuts.clear()


def _is_about(frame: Reader, op: int, path: str) -> bool:
    """Whether the request's path, or that of a multi's first operation, is `path` or below it."""
    body = Reader(frame.source, frame.at + 8, frame.end)
    try:
        if op in (Op.MULTI, Op.MULTI_READ):
            body.multi_header()
        elif op not in _WITH_PATH:
            return False
        about = body.text()
    except Malformed:
        return False
    return about == path or about.startswith(f"{path.rstrip('/')}/")
