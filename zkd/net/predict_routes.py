"""Predictions of registered models over HTTP. Asks for the cluster's token.

    POST /v1/models/<ref>/predict    NAME, NAME@3 or NAME@alias; JSON or a container of safetensors, the answer likewise
    GET  /v1/models/<ref>            what is served under this name, and how busy this node is with it
    POST /v1/ensembles/predict       several models as one (`zkd.core.ensembles`); JSON

Bodies and answers have room that all requests share: who claims much, or is slow, holds what he has sent and no more,
for `READ_S` at most, and whoever does not take his answer, a MiB in `WRITE_S`, is cut off. Errors are JSON:
{"error": words, "kind": a word}.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, Self

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError

from zkd.core.registry import ModelRef, split_ref
from zkd.errors import BadRecord, NotPredicted
from zkd.net.bodies import cut

BODY_BYTES_MAX: Final = 16 << 20
BODIES_BYTES_MAX: Final = 128 << 20  # of all requests that are under way
ANSWERS_BYTES_MAX: Final = 512 << 20  # that are not taken yet
READ_S: Final = 10.0  # for a body
WRITE_S: Final = 20.0  # for whoever asked to take a MiB of the answer
PIECE_BYTES: Final = 1 << 20
STATUS: Final = {
    "bad_request": 400,
    "not_found": 404,
    "too_large": 413,
    "gone": 499,
    "full": 429,
    "failed": 500,
    "busy": 503,
    "late": 503,
    "fetching": 503,
    "draining": 503,
    "unavailable": 503,
    "deadline": 504,
}


class Answer(Protocol):
    @property
    def body(self) -> bytes | memoryview: ...

    @property
    def content_type(self) -> str: ...

    @property
    def load(self) -> str: ...


# What was asked for, body, its content type, the key of X-Zkd-Key, when it came by the loop's clock, whether who asked
# has gone.
Predict = Callable[[ModelRef, bytes, str, str | None, float, Callable[[], bool]], Awaitable[Answer]]
Describe = Callable[[ModelRef], Awaitable[dict[str, Any]]]
Ensemble = Callable[[bytes, str | None, float], Awaitable[bytes]]  # body, key, when it came -> JSON


def predict_routes(
    predict: Predict, describe: Describe, ensemble: Ensemble, expect_token: Callable[[web.Request], None]
) -> list[web.RouteDef]:
    """All of them raise `NotPredicted`."""
    held = {"bodies": 0, "answers": 0}

    async def body_of(request: web.Request, room: _Room) -> bytes:
        size = request.content_length
        if size is not None and size > BODY_BYTES_MAX:
            raise NotPredicted("too_large", f"expected a body of at most {BODY_BYTES_MAX} bytes, got {size}")
        # Most have come with their heads, and need no clock. What was packed may be any size unpacked.
        is_here = request.content.is_eof() and request.content.exception() is None
        if is_here and size is not None and "Content-Encoding" not in request.headers:
            room.take("bodies", size, BODIES_BYTES_MAX)
            return request.content.read_nowait()
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(READ_S):
                while True:
                    piece, _ = await request.content.readchunk()
                    if not piece and request.content.at_eof():
                        break
                    room.take("bodies", len(piece), BODIES_BYTES_MAX)
                    pieces.append(piece)
                    if room.taken["bodies"] > BODY_BYTES_MAX:
                        raise NotPredicted("too_large", f"expected a body of at most {BODY_BYTES_MAX} bytes, got more")
        except TimeoutError:
            came = room.taken["bodies"]
            raise NotPredicted("deadline", f"expected the body within {READ_S:g} s, got {came} bytes of it") from None
        except (web.RequestPayloadError, aiohttp.ClientPayloadError, ContentEncodingError) as error:
            raise NotPredicted("bad_request", f"the body cannot be read: {error}") from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def post(request: web.Request) -> web.StreamResponse:
        arrived = asyncio.get_running_loop().time()
        expect_token(request)

        def is_gone() -> bool:
            return request.transport is None or request.transport.is_closing()

        with _Room(held) as room:
            try:
                ref = _ref(request)
                body = await body_of(request, room)
                key = request.headers.get("X-Zkd-Key")
                answer = await predict(ref, body, request.content_type, key, arrived, is_gone)
                room.take("answers", len(answer.body), ANSWERS_BYTES_MAX)
            except NotPredicted as error:
                return _refusal(request, error)
            headers = {"X-Zkd-Load": answer.load}
            if len(answer.body) <= PIECE_BYTES:
                return web.Response(body=bytes(answer.body), content_type=answer.content_type, headers=headers)
            return await _streamed(request, answer, headers)

    async def get(request: web.Request) -> web.Response:
        expect_token(request)
        try:
            told = await describe(_ref(request))
        except NotPredicted as error:
            return _refusal(request, error)
        return web.Response(body=msgspec.json.encode(told), content_type="application/json")

    async def post_ensemble(request: web.Request) -> web.Response:
        arrived = asyncio.get_running_loop().time()
        expect_token(request)
        with _Room(held) as room:
            try:
                answer = await ensemble(await body_of(request, room), request.headers.get("X-Zkd-Key"), arrived)
            except NotPredicted as error:
                return _refusal(request, error)
        return web.Response(body=answer, content_type="application/json")

    return [
        web.post("/v1/models/{ref}/predict", post),
        web.post("/v1/ensembles/predict", post_ensemble),
        web.get("/v1/models/{ref}", get, allow_head=False),
    ]


class _Room:
    """What one request holds of the room that all share; given back when it ends."""

    def __init__(self, held: dict[str, int]) -> None:
        self._held = held
        self.taken: Counter[str] = Counter()

    def take(self, what: str, size: int, most: int) -> None:
        """Raises `NotPredicted` where there is no more."""
        if self._held[what] + size > most and self._held[what]:
            raise NotPredicted("busy", f"there are {self._held[what]} bytes of {what} under way, of {most}", 1.0)
        self._held[what] += size
        self.taken[what] += size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for what, size in self.taken.items():
            self._held[what] -= size


async def _streamed(request: web.Request, answer: Answer, headers: dict[str, str]) -> web.StreamResponse:
    """A large answer, as fast as it is taken."""
    response = web.StreamResponse(headers=headers)
    response.content_type = answer.content_type
    response.content_length = len(answer.body)
    whole = memoryview(answer.body)
    try:
        async with asyncio.timeout(WRITE_S):
            await response.prepare(request)
        for start in range(0, len(whole), PIECE_BYTES):
            async with asyncio.timeout(WRITE_S):
                await response.write(bytes(whole[start : start + PIECE_BYTES]))
    except TimeoutError:
        return cut(request, response)
    return response


def _ref(request: web.Request) -> ModelRef:
    try:
        return split_ref(request.match_info["ref"])
    except BadRecord as error:
        raise NotPredicted("bad_request", str(error)) from None


def _refusal(request: web.Request, error: NotPredicted) -> web.Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = f"{max(1, round(error.retry_after_s + 0.499))}"
    response = web.Response(
        status=STATUS[error.kind],
        body=msgspec.json.encode({"error": str(error), "kind": error.kind}),
        content_type="application/json",
        headers=headers,
    )
    if not request.content.at_eof():  # what is left of a body is read by nobody
        response.force_close()
    return response
