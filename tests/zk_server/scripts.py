"""Runs a script of raw requests on a server and returns everything that came back, in comparable form.

A script is a list of steps `(who, verb, *arguments)`; `who` names a client, connected on first use. After each
step every client is pinged, so that events land in the step that caused them. What differs between servers by
nature is renamed: zxids count from the script's begin, session ids become names, times become "now", the
script's own root becomes `~` (scripts write `~/a` too). The rest must be equal to the byte.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from tests.zk_server.raw_client import Closed, RawClient, Reply, Step, decode, encode
from zkd.zk.server.wire import PING_XID, Code, Op, Stat

_numbers = itertools.count()


class Run:
    def __init__(self, port: int) -> None:
        self.port = port
        self.root = f"/r{os.getpid():06}x{next(_numbers):06}"
        self.clients: dict[str, RawClient] = {}
        self.names: dict[int, str] = {}
        self.passwords: dict[int, bytes] = {}
        self.base = 0

    def play(self, script: list[Step]) -> list[Any]:
        """The trace: for each step what it returned, and the events that each client then had."""
        keeper = RawClient(self.port)
        keeper.connect()
        made = keeper.ask(*encode("create", self.root, b"", 0))
        assert made.error == 0, made
        self.base = made.zxid
        trace: list[Any] = []
        try:
            for step in script:
                result = self._do(*step)
                trace.append((step, result, self._events(is_ordered=step[1] != "close")))
        finally:
            for client in self.clients.values():
                client.close()
            self._end_sessions()
            self._sweep(keeper)
            self._leave(keeper)
        return trace

    def _do(self, who: str, verb: str, *arguments: Any) -> Any:
        if verb == "connect":
            return self._connect(who, **arguments[0] if arguments else {})
        if who not in self.clients:
            self._connect(who)
        client = self.clients[who]
        if verb == "cut":
            self.clients.pop(who).close()
            return None
        if verb == "take_over":  # by another client, of `who`'s session
            by, options = arguments
            password = options.get("password", client.password)
            return self._connect(by, **{**options, "session_id": client.session_id, "password": password})
        try:
            if verb == "close":
                reply = client.ask(Op.CLOSE_SESSION)
                client.await_close()
                self.clients.pop(who).close()
            else:
                op, body = encode(verb, *self._outward(arguments))
                reply = client.ask(op, body, -4 if verb == "auth" else None)
                if reply.error in (Code.UNIMPLEMENTED, Code.AUTH_FAILED) and verb in ("raw", "auth"):
                    client.await_close()  # Apache may still answer a ping that comes before it
                    self.clients.pop(who).close()
        except Closed:
            self.clients.pop(who).close()
            return "closed"
        return self._inward(verb, reply)

    def _connect(self, who: str, **options: Any) -> Any:
        client = RawClient(self.port)
        if "seen_zxid" in options:
            options["seen_zxid"] += self.base
        try:
            tail = client.connect(**options)
        except Closed:
            client.close()
            return "closed"
        if client.session_id == 0:
            answer = (client.timeout_ms, client.password, tail)
            client.await_close()
            client.close()
            return answer
        self.names.setdefault(client.session_id, f"session of {who}")
        self.passwords[client.session_id] = client.password
        self.clients[who] = client
        return client.timeout_ms, self.names[client.session_id], len(client.password), tail

    def _events(self, *, is_ordered: bool) -> dict[str, Any]:
        pinged: dict[str, Any] = {}
        for who, client in list(self.clients.items()):
            try:
                client.post(Op.PING, b"", PING_XID)
            except Closed:
                pinged[who] = "closed"
        for who, client in list(self.clients.items()):
            try:
                reply = client.reply()
                pinged[who] = (reply.xid, self._zxid(reply.zxid), reply.error)
            except Closed:
                pinged[who] = "closed"
            events = [self._renamed(tuple(event)) for event in client.take_events()]
            pinged[who] = pinged[who], events if is_ordered else sorted(events)
            if pinged[who][0] == "closed":
                self.clients.pop(who).close()
        return pinged

    def _end_sessions(self) -> None:
        """None may expire later, and use up a zxid of another script."""
        for session_id, password in self.passwords.items():
            client = RawClient(self.port)
            client.connect(10_000, session_id, password)
            if client.session_id:
                self._leave(client)
            client.close()

    def _leave(self, client: RawClient) -> None:
        try:
            client.ask(Op.CLOSE_SESSION)
            client.await_close()
        except Closed:
            pass
        client.close()

    def _sweep(self, keeper: RawClient) -> None:
        """Leave no znodes behind for the scripts that follow. Those without permission stay, they harm nobody."""

        def delete(path: str) -> None:
            reply = keeper.ask(*encode("children", path))
            if not reply.error:
                for name in decode("children", reply)[0]:
                    delete(f"{path}/{name}")
            keeper.ask(*encode("delete", path, -1))

        delete(self.root)

    # --- renaming ------------------------------------------------------------------------------------

    def _outward(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("~", self.root)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return value
        if isinstance(value, (list, tuple)):
            return type(value)(self._outward(item) for item in value)
        if isinstance(value, Zxid):
            return self.base + value
        return value

    def _inward(self, verb: str, reply: Reply) -> Any:
        head = (reply.xid, self._zxid(reply.zxid), reply.error)
        if reply.error:
            return head, reply.body
        return head, self._renamed(decode(verb, reply))

    def _renamed(self, value: Any) -> Any:
        if isinstance(value, Stat):
            return self._stat(value)
        if isinstance(value, str):
            return value.replace(self.root, "~")
        if isinstance(value, (list, tuple)):
            return [self._renamed(item) for item in value]
        return value

    def _stat(self, stat: Stat) -> dict[str, Any]:
        now_ms = time.time() * 1000
        return {
            **stat._asdict(),
            "czxid": self._zxid(stat.czxid),
            "mzxid": self._zxid(stat.mzxid),
            "pzxid": self._zxid(stat.pzxid),
            "ctime": "now" if now_ms - 60_000 < stat.ctime < now_ms + 1000 else stat.ctime,
            "mtime": "now" if stat.ctime <= stat.mtime < now_ms + 1000 and stat.mtime else stat.mtime,
            "ephemeral_owner": self.names.get(stat.ephemeral_owner, stat.ephemeral_owner),
        }

    def _zxid(self, zxid: int) -> int | str:
        return zxid if zxid <= 0 else f"z{zxid - self.base}"


class Zxid(int):
    """A zxid in a script, counted from the creation of the script's root."""
