"""Rows by key over HTTP: `GET /v1/datasets/<name>/<version>/rows?key=K&type=int|str|bytes|float`, with `of=MARK` and
some of the `columns=a&columns=b` if wanted.

Asks for the cluster's token. 200 and `{"part", "rows", "columns"}`, the numbers of the rows and a column each as arrays
in JSON; no rows have the key if these are empty. 421 and `{"error", "part", "holders", "homes"}` if the part lies on
other nodes. A key of bytes is said in hex digits. `of` is what `zkd.core.datasets.mark_of` says of the manifest that
was read: 404 if the version of this number was removed, and is another one now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from zkd.errors import BadRecord, DataElsewhere, DatasetNotFound, NoWorkers, ZooKeeperError

# Name, version, which one of that number, key, its type, columns.
Rows = Callable[[str, int, str | None, str, str, Sequence[str]], Awaitable[bytes]]


def row_routes(rows: Rows, expect_token: Callable[[web.Request], None]) -> list[web.RouteDef]:
    """`expect_token` raises if the request does not have it."""

    async def get(request: web.Request) -> web.Response:
        expect_token(request)
        query = request.query
        key, kind = query.get("key"), query.get("type")
        if key is None or kind is None:
            raise web.HTTPBadRequest(text="expected ?key=K&type=int, str, bytes or float\n")
        try:
            found = await rows(
                request.match_info["name"],
                int(request.match_info["version"]),
                query.get("of"),
                key,
                kind,
                query.getall("columns", []),
            )
        except BadRecord as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        except DatasetNotFound as error:
            raise web.HTTPNotFound(text=f"{error}\n") from None
        except DataElsewhere as error:
            return web.json_response(
                {"error": str(error), "part": error.part, "holders": error.holders, "homes": error.homes}, status=421
            )
        except (NoWorkers, ZooKeeperError, OSError) as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from None
        return web.Response(body=found, content_type="application/json")

    return [web.get(r"/v1/datasets/{name:[A-Za-z0-9_.-]{1,128}}/{version:[1-9]\d{0,17}}/rows", get)]
