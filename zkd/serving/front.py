"""Requests to aliases, answered by one of two versions where there is a canary.

    canary      its share of the requests; what it cannot answer is asked of the version beside it, in the time left
    shadow      its share of the requests again, after they are answered, by a server of their own: another process, and
                a short queue for which nobody waits

What is wrong with a request is not held against a canary: if the version beside it refuses it too, nobody counts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final, NamedTuple

from zkd.core.canary import Predicted
from zkd.core.registry import ModelRef, Registered
from zkd.errors import NotPredicted
from zkd.serving.canaries import Canaries
from zkd.serving.replica import Outcome
from zkd.serving.requests import JSON_TYPE, TENSORS_TYPE, Request
from zkd.serving.server import ModelServer, Route

SHADOWS_MAX: Final = 64  # requests that shadows have not answered
SHADOW_BYTES_MAX: Final = 32 * 2**20  # of rows in them
SHADOW_S: Final = 10.0  # for each of them
# What a version is blamed for. The rest is the node's, which has too much to do or no file yet, or the caller's.
FAULTS: Final = frozenset({"failed", "deadline", "late", "full"})
# Its fault, too, if the version beside it takes the request.
REFUSALS: Final = frozenset({"bad_request", "too_large"})


class Answer(NamedTuple):
    body: bytes | memoryview
    content_type: str
    load: str


class Ended(NamedTuple):
    """How a version was done with a request; `error` if it has not answered.

    `seconds` are those of computing: what waits in the queue waits for other versions, too.
    """

    kind: str
    seconds: float
    outcome: Outcome
    answer: Answer | None
    error: NotPredicted | None

    @property
    def predicted(self) -> Predicted | None:
        return Predicted(tuple(self.outcome.labels), tuple(self.outcome.numbers)) if self.error is None else None

    def given(self) -> Answer:
        """Raises `NotPredicted`."""
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer


class Front:
    def __init__(self, server: ModelServer, shadows: ModelServer, canaries: Canaries) -> None:
        self._server = server
        self._shadows = shadows
        self._canaries = canaries
        self._group: asyncio.TaskGroup | None = None
        self._shadowing = self._shadowing_bytes = 0

    async def run(self) -> None:
        """Ends only by cancellation."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for part in (self._canaries.run(), self._shadows.run(), self._server.run()):
                    group.create_task(part)
        finally:
            self._group = None

    # --- Requests ---------------------------------------------------------------------------------------

    async def predict(self, ref: ModelRef, request: Request, arrived: float) -> Answer:
        """The answer to a request that came at this time of the loop. Raises `NotPredicted`."""
        deadline = self._server.deadline(request, arrived)
        model, routed = await self._server.found(
            ref.name, lambda model: (model, self._canaries.route(model, ref, request.key)), deadline
        )
        if routed.is_canary:
            return await self._of_canary(model, ref, routed.version, request, arrived, deadline)
        ended = await self._ask(self._server, ref, _route(model, routed.version), request, arrived, deadline)
        if routed.shadow is not None:
            self._shadow(ref, routed.version, _route(model, routed.shadow), request, ended)
        elif ended.error is None or ended.kind in FAULTS:
            self._count(ref, routed.version, ended)
        return ended.given()

    async def _of_canary(
        self, model: Registered, ref: ModelRef, version: int, request: Request, arrived: float, deadline: float
    ) -> Answer:
        tried = await self._ask(self._server, ref, _route(model, version, is_canary=True), request, arrived, deadline)
        if tried.error is None:
            self._count(ref, version, tried)
            return tried.given()
        if asyncio.get_running_loop().time() >= deadline:
            if tried.kind in FAULTS:
                self._count(ref, version, tried)
            return tried.given()
        # Not counted for the version beside: it is asked what the other has failed at, and that may be hard.
        second = await self._ask(self._server, ref, _route(model, model.number(ref)), request, arrived, deadline)
        if tried.kind in FAULTS or (tried.kind in REFUSALS and second.error is None):
            self._count(ref, version, tried)
        return second.given()

    async def _ask(
        self, server: ModelServer, ref: ModelRef, route: Route, request: Request, arrived: float, deadline: float
    ) -> Ended:
        loop = asyncio.get_running_loop()
        try:
            outcome, body, load = await server.ask(ref, route, request, arrived, deadline)
        except NotPredicted as error:
            return Ended(error.kind, loop.time() - arrived, Outcome(), None, error)
        took_s = loop.time() - arrived
        if outcome.kind:
            return Ended(outcome.kind, took_s, outcome, None, NotPredicted(outcome.kind, outcome.why))
        kind = JSON_TYPE if request.form == "json" else TENSORS_TYPE
        return Ended("ok", outcome.seconds, outcome, Answer(body, kind, load), None)

    def _count(self, ref: ModelRef, version: int, ended: Ended) -> None:
        if ref.alias is not None:
            self._canaries.saw(
                ref.name,
                ref.alias,
                version,
                ended.seconds,
                is_error=ended.error is not None,
                predicted=ended.predicted,
            )

    # --- Shadows ----------------------------------------------------------------------------------------

    def _shadow(self, ref: ModelRef, version: int, route: Route, request: Request, ours: Ended) -> None:
        """Have the shadow asked what this version has answered. Never waits."""
        assert ref.alias is not None
        if ours.error is not None:
            return
        size = len(request.rows)
        is_room = self._shadowing < SHADOWS_MAX and self._shadowing_bytes + size <= SHADOW_BYTES_MAX
        if self._group is None or not is_room:
            self._canaries.dropped(ref.name, ref.alias)
            return
        self._shadowing += 1
        self._shadowing_bytes += size
        request = request._replace(is_gone=lambda: False)  # who asked may hang up: he has his answer
        self._group.create_task(self._of_shadow(ref, version, route, request, ours))

    async def _of_shadow(self, ref: ModelRef, version: int, route: Route, request: Request, ours: Ended) -> None:
        assert ref.alias is not None
        now = asyncio.get_running_loop().time()
        try:
            shadows = await self._ask(self._shadows, ref, route, request, now, now + SHADOW_S)
        finally:
            self._shadowing -= 1
            self._shadowing_bytes -= len(request.rows)
        if shadows.error is not None and shadows.kind != "failed" and shadows.kind not in REFUSALS:
            self._canaries.dropped(ref.name, ref.alias)
            return
        self._count(ref, version, ours)  # both or none: they are compared over the same requests
        self._count(ref, route.number, shadows)
        if ours.predicted is not None and shadows.predicted is not None:
            self._canaries.compare(ref.name, ref.alias, ours.predicted, shadows.predicted)

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield from self._server.samples()
        yield from self._canaries.samples()
        for name, labels, value in self._shadows.samples():
            yield name.replace("zkd_", "zkd_shadow_", 1), labels, value


def _route(model: Registered, version: int, *, is_canary: bool = False) -> Route:
    return Route(version, model.versions[version], is_canary)
