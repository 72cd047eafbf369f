"""The states of a session as a table, those who are told of them, and the clock by which it is judged."""

from __future__ import annotations

import time
from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING

from zkd.zk.values import State, StateChange

if TYPE_CHECKING:
    from collections.abc import Callable


class Happening(Enum):
    ESTABLISHED = auto()  # handshake, credentials and watches are done
    LOST = auto()  # the connection ended
    SILENT = auto()  # nothing answered for 2/3 of the timeout
    ANSWERED = auto()  # an answer after all, on the connection that was silent
    DENIED = auto()  # the server does not know the session any more
    CLOSED = auto()  # closed here


TRANSITIONS = {
    (State.CONNECTING, Happening.ESTABLISHED): State.CONNECTED,
    (State.CONNECTING, Happening.DENIED): State.EXPIRED,  # the one that was to be resumed
    (State.CONNECTED, Happening.LOST): State.SUSPENDED,
    (State.CONNECTED, Happening.SILENT): State.UNKNOWN,
    (State.SUSPENDED, Happening.SILENT): State.UNKNOWN,
    (State.SUSPENDED, Happening.ESTABLISHED): State.CONNECTED,
    (State.SUSPENDED, Happening.DENIED): State.EXPIRED,
    (State.UNKNOWN, Happening.ANSWERED): State.CONNECTED,
    (State.UNKNOWN, Happening.LOST): State.UNKNOWN,
    (State.UNKNOWN, Happening.ESTABLISHED): State.CONNECTED,
    (State.UNKNOWN, Happening.DENIED): State.EXPIRED,
    (State.EXPIRED, Happening.ESTABLISHED): State.CONNECTED,
    (State.EXPIRED, Happening.DENIED): State.EXPIRED,  # the new one is over, too, before it was established
    **{(state, Happening.CLOSED): State.CLOSED for state in State},
}


def next_state(state: State, happening: Happening) -> State:
    try:
        return TRANSITIONS[state, happening]
    except KeyError:
        raise AssertionError(f"a session that is {state.value} cannot be {happening.name.lower()}") from None


class Machine:
    """The present state, and the callbacks that hear of every change, each of all changes in one order."""

    def __init__(self) -> None:
        self.state = State.CONNECTING
        self._subscribers: dict[int, Callable[[StateChange], None]] = {}
        self._subscriptions = 0
        self._changes: deque[StateChange] = deque()
        self._is_publishing = False

    def subscribe(self, callback: Callable[[StateChange], None]) -> Callable[[], None]:
        self._subscriptions += 1
        key = self._subscriptions
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def step(self, happening: Happening, epoch: int, session_id: int) -> None:
        state = next_state(self.state, happening)
        if state is self.state:
            return
        self.state = state
        self._changes.append(StateChange(state, epoch, session_id))
        if self._is_publishing:
            return  # a callback caused this: the change it was told of reaches everybody first
        self._is_publishing = True
        try:
            while self._changes:
                change = self._changes.popleft()
                for callback in list(self._subscribers.values()):
                    callback(change)
        finally:
            self._is_publishing = False


def boottime() -> float:
    """Seconds by a clock that never jumps back and goes on while the machine sleeps.

    The plain monotonic clock stops during suspend, and a node that slept through its session would believe
    in it on waking.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
