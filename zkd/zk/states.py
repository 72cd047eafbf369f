"""The states of a session as a table, and the clock by which it is judged."""

from __future__ import annotations

import time
from enum import Enum, auto

from zkd.zk.values import State


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
    **{(state, Happening.CLOSED): State.CLOSED for state in State},
}


def next_state(state: State, happening: Happening) -> State:
    try:
        return TRANSITIONS[state, happening]
    except KeyError:
        raise AssertionError(f"a session that is {state.value} cannot be {happening.name.lower()}") from None


def boottime() -> float:
    """Seconds by a clock that never jumps back and goes on while the machine sleeps.

    The plain monotonic clock stops during suspend, and a node that slept through its session would believe
    in it on waking.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
