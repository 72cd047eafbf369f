"""One client's connection as the core sees it: who it is, what it is to be sent, and whether it is to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zkd.zk.server.acl import Identity
    from zkd.zk.server.sessions import Session


class Peer:
    """One connection. `outbox` holds frames not handed to the socket yet; `is_closing` asks for its end after them."""

    __slots__ = ("_dirty", "identities", "is_closing", "outbox", "received", "sent", "session", "shell", "unsent")

    def __init__(self, host: str, dirty: list[Peer], shell: object = None) -> None:
        self.identities: dict[Identity, None] = {("ip", host): None}
        self.session: Session[Peer] | None = None
        self.outbox: list[bytes] = []
        self.unsent = 0  # bytes in the outbox
        self.is_closing = False
        self.received = self.sent = 0
        self.shell = shell
        self._dirty = dirty

    def send(self, frame: bytes) -> None:
        if not self.outbox:
            self._dirty.append(self)
        self.outbox.append(frame)
        self.unsent += len(frame)
        self.sent += 1

    def take(self) -> bytes:
        """Everything in the outbox, which is empty then."""
        out = b"".join(self.outbox)
        self.outbox.clear()
        self.unsent = 0
        return out

    def close(self) -> None:
        self.is_closing = True
        self._dirty.append(self)
