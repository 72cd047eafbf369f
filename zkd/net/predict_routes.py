"""Predictions of registered models over HTTP. Asks for the cluster's token.

    POST /v1/models/<ref>/predict    NAME, NAME@3 or NAME@alias; JSON or a container of safetensors, the answer likewise
    GET  /v1/models/<ref>            what is served under this name, and how busy this node is with it
    POST /v1/ensembles/predict       several models as one (`zkd.core.ensembles`); JSON

A body is read piece by piece into room that all requests share, so that who claims much, or is slow, holds what he has
sent and no more, and no longer than `READ_S`. Errors are JSON: {"error": words, "kind": a word}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from zkd.core.registry import ModelRef, split_ref
from zkd.errors import BadRecord, NotPredicted

BODY_BYTES_MAX: Final = 16 << 20
READING_BYTES_MAX: Final = 128 << 20  # of bodies that have not come whole, of all requests
READ_S: Final = 10.0  # for a body
WRITE_S: Final = 60.0  # for whoever asked to take the answer
STATUS: Final = {
    "bad_request": 400,
    "not_found": 404,
    "too_large": 413,
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


# What was asked for, body, its content type, the key of X-Zkd-Key, when it came by the loop's clock.
Predict = Callable[[ModelRef, bytes, str, str | None, float], Awaitable[Answer]]
Describe = Callable[[ModelRef], Awaitable[dict[str, Any]]]
Ensemble = Callable[[bytes, str | None, float], Awaitable[bytes]]  # body, key, when it came -> JSON


def predict_routes(
    predict: Predict, describe: Describe, ensemble: Ensemble, expect_token: Callable[[web.Request], None]
) -> list[web.RouteDef]:
    """All of them raise `NotPredicted`."""
    reading = 0

    async def body_of(request: web.Request) -> bytes:
        nonlocal reading
        size = request.content_length
        if size is not None and size > BODY_BYTES_MAX:
            raise NotPredicted("too_large", f"expected a body of at most {BODY_BYTES_MAX} bytes, got {size}")
        pieces: list[bytes] = []
        came = 0
        try:
            async with asyncio.timeout(READ_S):
                while True:
                    piece, _ = await request.content.readchunk()
                    if not piece and request.content.at_eof():
                        break
                    came += len(piece)
                    reading += len(piece)
                    if came > BODY_BYTES_MAX:
                        raise NotPredicted("too_large", f"expected a body of at most {BODY_BYTES_MAX} bytes, got more")
                    if reading > READING_BYTES_MAX:
                        raise NotPredicted("busy", "too many bytes of requests at once", 1.0)
                    pieces.append(piece)
        except TimeoutError:
            raise NotPredicted("deadline", f"expected the body within {READ_S:g} s, got {came} bytes of it") from None
        except web.RequestPayloadError as error:
            raise NotPredicted("bad_request", f"the body cannot be read: {error}") from None
        finally:
            reading -= came
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def post(request: web.Request) -> web.StreamResponse:
        arrived = asyncio.get_running_loop().time()
        expect_token(request)
        try:
            ref = _ref(request)
            body = await body_of(request)
            answer = await predict(ref, body, request.content_type, request.headers.get("X-Zkd-Key"), arrived)
        except NotPredicted as error:
            return _refusal(request, error)
        return web.Response(
            body=bytes(answer.body), content_type=answer.content_type, headers={"X-Zkd-Load": answer.load}
        )

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
        try:
            answer = await ensemble(await body_of(request), request.headers.get("X-Zkd-Key"), arrived)
        except NotPredicted as error:
            return _refusal(request, error)
        return web.Response(body=answer, content_type="application/json")

    return [
        web.post("/v1/models/{ref}/predict", post),
        web.post("/v1/ensembles/predict", post_ensemble),
        web.get("/v1/models/{ref}", get, allow_head=False),
    ]


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
