"""Sessions: who they are, how long they live, and which connection speaks for them now.

A session outlives its connections: whoever brings its id and password takes it over. It ends when it is
closed, or when it was not heard of for its timeout, rounded up to the next tick as Apache does. The clock is
given; nothing here waits.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD_SIZE = 16

Connection = TypeVar("Connection")


@dataclass(eq=False, slots=True)
class Session(Generic[Connection]):
    session_id: int
    password: bytes
    timeout_ms: int
    heard_at: float
    connection: Connection | None = None


class Sessions(Generic[Connection]):
    def __init__(
        self,
        clock: Callable[[], float],
        *,
        tick_s: float,
        min_timeout_ms: int,
        max_timeout_ms: int,
        first_id: int,
        secret: bytes,
    ) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self.min_timeout_ms = min_timeout_ms
        self.max_timeout_ms = max_timeout_ms
        self._next_id = first_id
        self._secret = secret
        self.by_id: dict[int, Session[Connection]] = {}

    def create(self, timeout_ms: int) -> Session[Connection]:
        session_id = self._next_id
        self._next_id += 1
        session = Session[Connection](
            session_id, self._password(session_id), self._negotiated(timeout_ms), self._clock()
        )
        self.by_id[session_id] = session
        return session

    def take_over(self, session_id: int, password: bytes | None, timeout_ms: int) -> Session[Connection] | None:
        """The session, for someone who knows its password; None when it is over or the password is wrong."""
        session = self.by_id.get(session_id)
        if session is None or not hmac.compare_digest(password or b"", session.password):
            return None
        session.timeout_ms = self._negotiated(timeout_ms)
        session.heard_at = self._clock()
        return session

    def hear(self, session: Session[Connection]) -> None:
        session.heard_at = self._clock()

    def end(self, session_id: int) -> Session[Connection] | None:
        return self.by_id.pop(session_id, None)

    def expires_at(self, session: Session[Connection]) -> float:
        """The end of the tick in which the timeout ends, so that many sessions expire in one go."""
        return (math.floor((session.heard_at + session.timeout_ms / 1000) / self._tick_s) + 1) * self._tick_s

    def expired(self) -> list[int]:
        now = self._clock()
        return [session_id for session_id, session in self.by_id.items() if self.expires_at(session) <= now]

    def _negotiated(self, timeout_ms: int) -> int:
        return max(self.min_timeout_ms, min(self.max_timeout_ms, timeout_ms))

    def _password(self, session_id: int) -> bytes:
        return hashlib.blake2b(session_id.to_bytes(8, "big"), key=self._secret, digest_size=PASSWORD_SIZE).digest()
