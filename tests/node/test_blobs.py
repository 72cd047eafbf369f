"""Values too large for a znode: their bytes are served by the node over HTTP, checked by their hash."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.request

import numpy

from tests.node.conftest import Site


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as response:
        data: bytes = response.read()
        return data


async def test_a_large_array_is_served_as_npy_and_can_be_an_argument(site: Site) -> None:
    import asyncio

    await site.node("a", node__labels={"side": "left"})
    await site.node("b", node__labels={"side": "right"})
    result = await site.user.do("rows", 100_000, labels={"side": "left"})
    assert (result.status, result.node) == ("done", "a")
    assert result.ref is not None
    assert (result.ref.format, set(result.ref.nodes)) == ("npy", {"a"})
    data = await asyncio.to_thread(fetched, result.ref.nodes["a"])
    assert len(data) == result.ref.size
    assert hashlib.sha256(data).hexdigest() == result.ref.blob
    assert numpy.load(io.BytesIO(data), allow_pickle=False).tolist() == list(range(100_000))
    ref = {"blob": result.ref.blob, "size": result.ref.size, "format": "npy", "nodes": result.ref.nodes}
    for side in ("left", "right"):  # where it lies, and where it has to be fetched to
        total = await site.user.do("total", ref, labels={"side": side})
        assert (total.status, bytes(total.value)) == ("done", b"4999950000.0"), total.error


async def test_a_large_value_of_another_kind_is_served_as_json(site: Site) -> None:
    import asyncio

    await site.node()
    small = await site.user.do("words", 1000)
    assert (small.ref, len(json.loads(bytes(small.value)))) == (None, 1000)
    large = await site.user.do("words", 100_000)
    assert large.ref is not None
    assert large.ref.format == "json"
    data = await asyncio.to_thread(fetched, large.ref.nodes["a"])
    assert hashlib.sha256(data).hexdigest() == large.ref.blob
    assert json.loads(data) == ["word"] * 100_000


async def test_a_blob_that_nobody_has_or_that_is_another_ends_the_task(site: Site) -> None:
    await site.node()
    absent = {"blob": "0" * 64, "size": 10, "format": "npy", "nodes": {}}
    nobody = {**absent, "nodes": {"x": "http://127.0.0.1:1/v1/blobs/" + "0" * 64}}
    hostile = {**absent, "nodes": {"x": "file:///etc/passwd"}}
    for ref in (absent, nobody, hostile):
        result = await site.user.do("total", ref)
        assert result.status == "failed"
        assert result.error is not None
        assert result.error.kind == "ResultLost", result.error
    for ref in ({"blob": "../../etc/passwd"}, {**absent, "blob": "A" * 64}, {**absent, "extra": 1}):
        result = await site.user.do("total", ref)
        assert result.status == "rejected", ref
    result = await site.user.do("rows", 100_000)
    assert result.ref is not None
    true = {"blob": result.ref.blob, "size": result.ref.size, "format": "npy", "nodes": result.ref.nodes}
    await site.node("b")
    for ref in ({**true, "size": 10}, {**true, "blob": "1" * 64}, {**true, "format": "json"}):
        lied = await site.user.do("total", ref, node="b")
        assert lied.status in ("failed", "rejected"), (ref, lied)
    assert (await site.user.do("total", true, node="b")).status == "done"
