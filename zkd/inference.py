"""Composes what a node does with requests for predictions.

predict --- front (which version) --- server (the versions that answer)
   |          \\-- canaries (how they do, and their end)   \\-- shadows (a server of their own)
ensembles (several models as one, on several nodes)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger as Log

from zkd.core.registry import ModelRef
from zkd.node.model_keeper import ModelKeeper
from zkd.node.registry_view import RegistryView
from zkd.paths import NodeId, Paths
from zkd.serving.canaries import Canaries
from zkd.serving.ensembles import Ensembles
from zkd.serving.front import Answer, Front
from zkd.serving.requests import Request, read
from zkd.serving.server import ModelServer
from zkd.settings import Serving
from zkd.training.peers import Peers
from zkd.zk import Session

if TYPE_CHECKING:
    import ssl

SHADOWS_QUEUED_MAX = 64  # requests; what comes on top is not compared


class Inference:
    """`memory` is for the parameters of models that are open at a time."""

    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        registry: RegistryView,
        files: ModelKeeper,
        peers: Peers,
        token: Callable[[], str | None],
        settings: Callable[[], Serving],
        memory: int,
        not_serving: Callable[[], str | None],
        log: Log,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._tls = tls
        self.server = ModelServer(node, registry, files, settings, memory, log, not_serving=not_serving)
        # A process and a queue of its own: whatever becomes of a shadow, nobody waits for it.
        self.shadows = ModelServer(
            node,
            registry,
            files,
            lambda: replace(settings(), processes=1, threads=1, concurrency=None, queue_max=SHADOWS_QUEUED_MAX),
            memory,
            log,
            not_serving=not_serving,
            is_spare=True,
        )
        self.canaries = Canaries(session, paths, node, registry, log)
        self._front = Front(self.server, self.shadows, self.canaries)
        self.ensembles = Ensembles(
            node, self.predict, registry, peers, token, lambda: settings().deadline_ms / 1e3, log
        )

    async def run(self) -> None:
        """Ends only by cancellation."""
        from zkd.net.fetch import session

        async with session(self._tls, connections=0) as http, asyncio.TaskGroup() as group:
            self.ensembles.http = http
            for part in (self._front.run(), self.ensembles.run()):
                group.create_task(part)

    async def drain(self, within_s: float) -> None:
        """Take nothing more, and answer what was taken."""
        await self.server.drain(within_s)

    async def predict(self, ref: ModelRef, request: Request, arrived: float) -> Answer:
        """The answer to a request that came at this time of the loop. Raises `NotPredicted`."""
        return await self._front.predict(ref, request, arrived)

    async def predict_body(
        self, ref: ModelRef, body: bytes, kind: str, key: str | None, arrived: float, is_gone: Callable[[], bool]
    ) -> Answer:
        """The answer to a body that came by HTTP. Raises `NotPredicted`."""
        request = read(body, kind)
        return await self.predict(ref, request._replace(key=request.key or key, is_gone=is_gone), arrived)

    async def describe(self, ref: ModelRef) -> dict[str, Any]:
        """What is served under this name, and how its canary does here. Raises `NotPredicted`."""
        told = await self.server.describe(ref)
        return told if ref.alias is None else told | {"trial": self.canaries.told(ref.name, ref.alias)}

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield from self._front.samples()
        yield from self.ensembles.samples()
