"""Messages that wait for a WebSocket to take them, so that nobody who has something to say waits for the other side."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Protocol

import aiohttp

HEARTBEAT_S = 10.0  # of silence; then a ping has to be answered in half of that


class Socket(Protocol):
    async def send_bytes(self, data: bytes) -> None: ...


class Outbox:
    """Bounded by who fills it: asks by the rounds that are open, answers by the asks."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, bytes] = {}  # in the order in which they go out
        self._wake = asyncio.Event()
        self._is_closed = False

    def put(self, message: bytes, name: Hashable | None = None) -> None:
        if not self._is_closed:
            self._waiting[object() if name is None else name] = message
            self._wake.set()

    def withdraw(self, name: Hashable) -> bool:
        """Whether a message of this name was still here; now it is not."""
        return self._waiting.pop(name, None) is not None

    def close(self) -> None:
        """Nothing more goes out."""
        self._is_closed = True
        self._waiting.clear()
        self._wake.set()

    async def empty_into(self, socket: Socket) -> None:
        """Send what comes until this is closed, or the other side is gone: who reads from it finds that out."""
        while not self._is_closed:
            await self._wake.wait()  # unbounded: there may be nothing to say for hours
            self._wake.clear()
            while self._waiting:
                message = self._waiting.pop(next(iter(self._waiting)))
                try:
                    await socket.send_bytes(message)  # bounded by the heartbeat, which cuts off a peer that is stuck
                except (aiohttp.ClientError, ConnectionError, RuntimeError):  # it is closed, or closing
                    return
