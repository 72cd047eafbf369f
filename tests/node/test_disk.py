"""A disk that is full, slow, or not where it was: it costs results that need it, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.node.conftest import Site
from zkd import daemon as daemon_module
from zkd.store import BlobStore, blobs
from zkd.zk import Acl, Perms


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_result_that_cannot_be_kept_fails_its_task_alone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = await site.node()
    with monkeypatch.context() as full:
        full.setattr(BlobStore, "keep", no_space)
        result = await site.user.do("rows", 100_000)
        assert result.status == "failed"
        assert result.error is not None
        assert "No space left" in result.error.message
    assert (await site.user.do("rows", 100_000)).status == "done"
    assert daemon.phase.value == "serving"


async def test_a_session_that_cannot_be_remembered_is_no_reason_to_stay_away(site: Site) -> None:
    (site.directory / "a" / "session.tmp").mkdir(parents=True)
    await site.node("a")
    assert (await site.user.do("nap", 0)).status == "done"


async def test_files_of_results_that_wait_to_be_published_stay(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ensemble may be away, or refuse, for longer than a file without a result is left alone."""
    monkeypatch.setattr(daemon_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(blobs, "ORPHAN_GRACE_S", -60.0)
    await site.node("a")
    user = site.user
    await user.do("nap", 0)
    await user.session.set_acl(user.paths.results, [Acl(Perms.ALL - Perms.CREATE, "world", "anyone")], -1)
    task_id = await user.drop({"kernel": "rows", "args": [100_000]})
    await asyncio.sleep(0.8)  # several sweeps
    await user.session.set_acl(user.paths.results, [Acl(Perms.ALL, "world", "anyone")], -1)
    result = await user.result(task_id)
    assert result.ref is not None
    await asyncio.sleep(0.2)
    with await asyncio.to_thread(urllib.request.urlopen, result.ref.nodes["a"]) as response:
        assert len(response.read()) == result.ref.size


async def test_a_directory_of_files_that_is_gone_brings_no_node_down(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "SWEEP_S", 0.05)
    daemon = await site.node("a")
    shutil.rmtree(site.directory / "a" / "blobs")
    await asyncio.sleep(0.3)
    assert (await site.user.do("rows", 100_000)).status == "failed"
    assert (await site.user.do("nap", 0)).status == "done"
    assert daemon.phase.value == "serving"


def test_what_one_task_gives_up_another_keeps(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    data = b"[1,2,3]"
    sha = hashlib.sha256(data).hexdigest()
    kept = []
    for name in ("first", "second", "second"):
        path = tmp_path / name
        path.write_bytes(data)
        kept.append(store.keep(path, name, sha, "json"))
    store.drop(kept[1])
    assert store.find(sha) == kept[0]
    assert BlobStore(tmp_path).find(sha) == kept[0]
    store.drop(kept[0])
    assert store.find(sha) is None


async def test_a_slow_disk_does_not_stop_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a large file is synced for seconds, the session with ZooKeeper has to go on."""
    store = BlobStore(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.5))
    data = b"[]"

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    receiving = asyncio.create_task(store.receive(hashlib.sha256(data).hexdigest(), len(data), "json", chunks()))
    ticks = 0
    while not receiving.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10
    assert (await receiving).read_bytes() == data


async def test_a_token_of_odd_bytes_is_refused_as_any_other(site: Site) -> None:
    daemon = await site.node("a")
    assert daemon._address is not None
    host, _, port = daemon._address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PUT /v1/blobs/00 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nContent-Length: 0\r\n\r\n")
    assert b" 401 " in await reader.readline()
    writer.close()


async def test_making_room_takes_no_copy_that_is_still_arriving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "CACHE_BYTES_MAX", 10)
    store = BlobStore(tmp_path)
    first, second = b'"first copy"', b'"the second"'

    async def slowly() -> AsyncIterator[bytes]:
        yield first[:5]
        path = await store.receive(hashlib.sha256(second).hexdigest(), len(second), "json", at_once())
        assert path.read_bytes() == second
        yield first[5:]

    async def at_once() -> AsyncIterator[bytes]:
        yield second

    path = await store.receive(hashlib.sha256(first).hexdigest(), len(first), "json", slowly())
    assert path.read_bytes() == first
