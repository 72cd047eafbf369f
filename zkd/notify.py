"""What a service says to systemd, and the one thing it hears from it: how often to say that it is alive.

    notify = Notify.from_env()          # takes NOTIFY_SOCKET and WATCHDOG_* out of the environment
    notify.ready("node a, 2 slots")
    notify.watchdog_s                   # say notify.alive() at half of this, or None

Without a NOTIFY_SOCKET every call does nothing, so nobody has to ask. No call ever waits: the messages are
hints to a supervisor, and a supervisor that does not listen must not hold up the work.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Notify:
    """The connection to the service manager. `watchdog_s`: it acts when it hears nothing for so long."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s if address else None
        self._socket: socket.socket | None = None
        if address:
            self._address = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @classmethod
    def from_env(cls, env: MutableMapping[str, str] = os.environ) -> Notify:
        """What the environment says; it is taken out, so that worker processes do not speak for the daemon."""
        address = env.pop("NOTIFY_SOCKET", None)
        pid, interval_us = env.pop("WATCHDOG_PID", None), env.pop("WATCHDOG_USEC", "")
        is_for_us = pid is None or pid == str(os.getpid())
        interval_s = int(interval_us) / 1e6 if is_for_us and interval_us.isdecimal() and int(interval_us) else None
        # Other families (vsock:, for virtual machines) are for init systems, not for services.
        return cls(address if address and address[0] in "/@" else None, interval_s)

    @property
    def is_supervised(self) -> bool:
        return self._socket is not None

    def ready(self, status: str = "") -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1", status)

    def reloading(self, status: str = "reloading settings") -> None:
        # The time lets systemd >= 253 (Type=notify-reload) tell this answer from an older one.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", status)

    def stopping(self, status: str = "stopping") -> None:
        self._send("STOPPING=1", status)

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send("", status)

    def alive(self) -> None:
        """Put off the watchdog. Call it only from where progress is certain."""
        self._send("WATCHDOG=1", "")

    def extend(self, timeout_s: float, status: str = "") -> None:
        """Ask for `timeout_s` more from now, while starting, reloading or stopping."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}", status)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, state: str, status: str) -> None:
        if self._socket is None:
            return
        lines = [state] if state else []
        if status:
            lines.append(f"STATUS={status.replace(chr(10), ' ')}")
        with contextlib.suppress(OSError):  # it is away or busy: a hint is lost, see above
            self._socket.sendto("\n".join(lines).encode(), self._address)
