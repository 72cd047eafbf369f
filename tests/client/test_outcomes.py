"""From a result in the tree to a value or an exception; large values come over HTTP and are verified."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aiohttp import web

import zkd
from zkd.arrays import save_npy, to_json
from zkd.client.outcomes import Blobs, as_arrays, error_of, one_array
from zkd.records import BlobRef, Fault, Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.client.standin import StandIn


@pytest.fixture
async def blobs() -> AsyncIterator[Blobs]:
    blobs = Blobs()
    yield blobs
    await blobs.close()


class Node:
    """An HTTP server that serves one file, and lies about it on request."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if request.path == "/elsewhere":
            raise web.HTTPFound("/blob")
        if request.path == "/missing":
            raise web.HTTPNotFound
        if request.path == "/damaged":
            return web.Response(body=self.data[:-1] + bytes([self.data[-1] ^ 1]))
        if request.path == "/short":
            return web.Response(body=self.data[:-1])
        if request.path == "/long":
            return web.Response(body=self.data + b"x" * 1_000_000)
        return web.Response(body=self.data)


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    runners = []

    async def start(data: bytes) -> tuple[Node, str]:
        node = Node(data)
        runner = web.ServerRunner(web.Server(node.answer), access_log=None)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return node, f"http://127.0.0.1:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


def ref_to(data: bytes, format: str = "npy", **nodes: str) -> BlobRef:  # noqa: A002
    return BlobRef(hashlib.sha256(data).hexdigest(), len(data), format, nodes)  # type: ignore[arg-type]


@pytest.fixture
def npy(tmp_path: Path) -> bytes:
    path = tmp_path / "a.npy"
    save_npy(np.arange(100_000.0).reshape(250, 400), path)
    return path.read_bytes()


async def test_an_array_comes_over_http_and_may_be_written_to(blobs: Blobs, serve: Any, npy: bytes) -> None:
    _, url = await serve(npy)
    value = await blobs.value_of("t-1", Result("done", ref=ref_to(npy, a=f"{url}/blob")))
    assert np.array_equal(value, np.arange(100_000.0).reshape(250, 400))
    value[0, 0] = 7.0
    assert type(value) is np.ndarray


async def test_json_comes_over_http(blobs: Blobs, serve: Any) -> None:
    data = to_json({"names": ["x"] * 1000, "w": np.arange(2000)})
    _, url = await serve(data)
    value = await blobs.value_of("t-1", Result("done", ref=ref_to(data, "json", a=url)))
    assert value["names"] == ["x"] * 1000
    assert value["w"].sum() == 1999000


async def test_another_node_is_asked_when_one_has_gone_or_lies(blobs: Blobs, serve: Any, npy: bytes) -> None:
    _, url = await serve(npy)
    bad = {
        "gone": "http://127.0.0.1:1/blob",
        "odd": "file:///etc/passwd",
        **{fault: f"{url}/{fault}" for fault in ("missing", "damaged", "short", "long", "elsewhere")},
    }
    value = await blobs.value_of("t-1", Result("done", ref=ref_to(npy, **bad, good=f"{url}/blob")))
    assert value.shape == (250, 400)
    with pytest.raises(zkd.ResultLost) as caught:
        await blobs.value_of("t-1", Result("done", ref=ref_to(npy, **bad)))
    for word in ("HTTP 404", "damaged", "instead of", "more than", "HTTP 302", "expected an http URL", "gone"):
        assert word in str(caught.value)


async def test_a_file_that_is_not_what_its_format_says_is_lost(blobs: Blobs, serve: Any) -> None:
    data = b"\x80\x04\x95 pickled"
    _, url = await serve(data)
    with pytest.raises(zkd.ResultLost, match="not what it says"):
        await blobs.value_of("t-1", Result("done", ref=ref_to(data, a=url)))


async def test_a_size_that_fits_on_no_disk_is_refused_before_it_is_fetched(blobs: Blobs, serve: Any) -> None:
    node, url = await serve(b"x")
    with pytest.raises(zkd.ResultLost, match="has room for"):
        await blobs.value_of("t-1", Result("done", ref=BlobRef("0" * 64, 2**60, "npy", {"a": url})))
    assert node.asked == 0


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        (
            Result("rejected", error=Fault("bad", "expected `int`", path="$.priority")),
            zkd.TaskRejected,
            r"\$\.priority",
        ),
        (Result("cancelled"), zkd.TaskCancelled, "cancelled"),
        (Result("expired", error=Fault("late", "not_after_s is over")), zkd.TaskExpired, "not_after_s is over"),
        (
            Result("failed", "n1", 3, error=Fault("crash", "SIGSEGV")),
            zkd.TaskFailed,
            "on n1, attempt 3: crash: SIG",
        ),
    ],
)
def test_every_status_has_its_exception(result: Result, kind: type[zkd.TaskError], message: str) -> None:
    error = error_of("t-1", result)
    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
    assert error.task_id == "t-1"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"status": "finished"}', b"\xff", b'{"status":"done","value":', b"[" * 9000]
)
async def test_bytes_that_are_no_result_are_reported_and_harm_nothing(
    client: zkd.Client, cluster: StandIn, text: bytes
) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 3)
    await client.session.create(client.paths.result(handle.id), text)
    with pytest.raises(zkd.ResultLost, match="is not a result"):
        await handle.result(5)
    await cluster.release()
    assert await client.run("same", 1) == 1


@pytest.mark.parametrize(
    "value",
    [
        b'{"dtype": "|O", "shape": [1], "data": "AAAAAAAAAAA="}',
        b'{"dtype": "<f8", "shape": [99999999999], "data": ""}',
        b'{"dtype": "<f8", "shape": [2], "data": "AAAA"}',
    ],
)
async def test_a_value_that_lies_about_itself_is_reported(client: zkd.Client, cluster: StandIn, value: bytes) -> None:
    cluster.hold.add("square")
    handle = await client.submit("square", 3)
    text = b'{"status":"done","value":%s}' % value
    await client.session.create(client.paths.result(handle.id), text)
    with pytest.raises(zkd.ResultLost, match="not what it says"):
        await handle.result(5)


@pytest.mark.parametrize(
    ("json", "expected"),
    [
        ([1, 2, 3], np.array([1, 2, 3])),
        ([1, 2.5], np.array([1.0, 2.5])),
        ([True, False], np.array([True, False])),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ([], np.array([])),
    ],
)
def test_even_lists_of_numbers_are_arrays(json: Any, expected: Any) -> None:
    value = as_arrays(json)
    assert isinstance(value, np.ndarray)
    assert value.dtype == expected.dtype
    assert np.array_equal(value, expected)


@pytest.mark.parametrize("json", [["a", "b"], [1, "b"], [1, None], [True, 1], [2**70], [2**64, 1], {"a": "b"}, "x", 3])
def test_anything_else_stays_what_it_is(json: Any) -> None:
    assert as_arrays(json) == json
    assert type(as_arrays(json)) is type(json)


def test_parts_of_a_value_are_arrays_each() -> None:
    value = as_arrays({"w": [1.0, 2.0], "pair": [[[1, 2], [3, 4]], [1, 2]]})
    assert isinstance(value["w"], np.ndarray)
    matrix, vector = value["pair"]
    assert (matrix.shape, vector.shape) == ((2, 2), (2,))


@pytest.mark.parametrize(
    ("value", "shape"), [(3, ()), ([1, 2], (2,)), (np.eye(2), (2, 2)), ("x", None), ([[1], [1, 2]], None)]
)
def test_one_array_or_none(value: Any, shape: Any) -> None:
    array = one_array(value)
    assert (array is None) if shape is None else (array.shape == shape)
