"""Checkpoints and models of jobs over HTTP, to other nodes and clients, as `zkd.net.file_routes` says.

GET, HEAD, PUT  /v1/checkpoints/<job>/<id>

A file that no state of a job points to is removed after a time of grace, so whoever sends one points to it soon.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from zkd.net.file_routes import file_routes
from zkd.store.checkpoints import CheckpointStore


def checkpoint_routes(store: CheckpointStore, expect_token: Callable[[web.Request], None]) -> list[web.RouteDef]:
    """`expect_token` raises if the request does not have it."""
    return file_routes("/v1/checkpoints/{job}", lambda request: store.of(request.match_info["job"]), expect_token)
