"""Nodes that answer predictions and do nothing else, each as well or as badly as a test says: real HTTP, real entries
in a real tree. What they predict is known: the sum of each row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

from zkd.arrays.tensors import pack, unpack
from zkd.client.prediction_wire import CONTAINER_TYPE
from zkd.codec import encode
from zkd.errors import NodeExists
from zkd.paths import Paths
from zkd.records import Node
from zkd.zk import Session, ensure_path

TOKEN = "open sesame"
Answering = Callable[["Oracle", web.Request, dict[str, Any]], Awaitable[web.Response]]


@dataclass
class Oracle:
    name: str
    how: Answering
    asked: list[dict[str, Any]] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    version: int = 3
    queued: int = 0
    hung_up: int = 0
    runner: web.AppRunner | None = None
    address: str = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/models/{ref}/predict", self._predict)
        app.router.add_post("/v1/ensembles/predict", self._predict)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.address = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        """As a killed process: connections break, and nobody takes new ones."""
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None

    async def _predict(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "expected a token", "kind": "token"}, status=401)
        body = await request.read()
        if request.content_type == CONTAINER_TYPE:
            arrays, asked = unpack(body)
            asked = {"rows": arrays["rows"], **{name: loaded(text) for name, text in asked.items()}}
        else:
            asked = json.loads(body)
        asked["ref"] = request.match_info.get("ref")
        self.asked.append(asked)
        self.came.set()
        try:
            return await self.how(self, request, asked)
        except asyncio.CancelledError:
            self.hung_up += 1
            raise


def loaded(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(text)
    return text


async def answer(oracle: Oracle, request: web.Request, asked: dict[str, Any]) -> web.Response:
    rows = asked["rows"]
    if isinstance(rows, dict):
        rows = np.column_stack(list(rows.values()))
    elif isinstance(rows, list) and isinstance(rows[0], dict):
        rows = [list(row.values()) for row in rows]
    sums = np.asarray(rows, np.float64).sum(axis=1)
    about = {"model": "sums", "version": oracle.version, "alias": None, "is_canary": False, "node": oracle.name}
    about |= {"rows": len(sums)}
    headers = {"X-Zkd-Load": f"queued={oracle.queued}; p50_ms=1.0"}
    if request.content_type == CONTAINER_TYPE:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
        return web.Response(body=pack({"prediction": sums}, texts), content_type=CONTAINER_TYPE, headers=headers)
    return web.json_response(about | {"prediction": sums.tolist()}, headers=headers)


async def be_silent(oracle: Oracle, request: web.Request, asked: dict[str, Any]) -> web.Response:
    await oracle.go_on.wait()
    return await answer(oracle, request, asked)


async def shed(oracle: Oracle, request: web.Request, asked: dict[str, Any]) -> web.Response:
    return web.json_response({"error": "the queue is full", "kind": "full"}, status=503, headers={"Retry-After": "7"})


async def refuse(oracle: Oracle, request: web.Request, asked: dict[str, Any]) -> web.Response:
    return web.json_response({"error": "rows: expected 4 numbers, got 3", "kind": "bad_request"}, status=400)


async def know_nothing(oracle: Oracle, request: web.Request, asked: dict[str, Any]) -> web.Response:
    return web.json_response({"error": "there is no model sums", "kind": "not_found"}, status=404)


async def fail(oracle: Oracle, request: web.Request, asked: dict[str, Any]) -> web.Response:
    return web.Response(status=500, text="it fell over")


async def talk_nonsense(oracle: Oracle, request: web.Request, asked: dict[str, Any]) -> web.Response:
    return web.json_response({"prediction": [1.0], "rows": 2, "version": 3})


@dataclass
class Temple:
    """Some oracles, and the tree that says where they are."""

    session: Session
    paths: Paths
    oracles: dict[str, Oracle] = field(default_factory=dict)

    async def open(self) -> None:
        for path in self.paths.skeleton():
            await ensure_path(self.session, path)
        with suppress(NodeExists):
            await self.session.create(self.paths.token, TOKEN.encode())

    async def add(self, name: str, how: Answering = answer) -> Oracle:
        oracle = self.oracles[name] = Oracle(name, how)
        await oracle.start()
        await self.enter(name)
        return oracle

    async def enter(self, name: str, *, draining: bool = False) -> None:
        entry = Node(name, "1", 1, address=self.oracles[name].address, draining=draining)
        await self.session.create(self.paths.node(name), encode(entry), ephemeral=True)

    async def leave(self, name: str) -> None:
        await self.session.delete(self.paths.node(name), version=-1)

    async def close(self) -> None:
        async with AsyncExitStack() as stack:
            for oracle in self.oracles.values():
                stack.push_async_callback(oracle.stop)
