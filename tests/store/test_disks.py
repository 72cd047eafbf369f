"""Disks that are full, read-only or limited: a clear refusal, nothing half visible, and on it goes with room."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.disks import fill, is_possible, mounted
from tests.store.made import Made, got, make
from tests.store.serving import TOKEN, Serving, serving
from zkd.errors import DataUnavailable
from zkd.net.fetch import session
from zkd.net.segments import fetch, push
from zkd.store import SegmentStore

needs_root = pytest.mark.skipif(not is_possible(), reason="mounting a disk takes root; limits are tested without")


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


async def refused(node: Serving, made: Made, words: str) -> None:
    """Sent to this node it is refused in these words, and nothing of it can be seen."""
    async with session() as http:
        with pytest.raises(DataUnavailable, match=rf"HTTP 507.*{words}"):
            await push(http, node.address, TOKEN, made.directory, made.ref)
        assert not node.store.has(made.id)
        async with http.head(
            f"{node.address}/v1/segments/{made.id}", headers={"Authorization": f"Bearer {TOKEN}"}
        ) as answer:
            assert answer.status == 404


async def sent(node: Serving, made: Made) -> None:
    async with session() as http:
        assert await push(http, node.address, TOKEN, made.directory, made.ref)
    assert await got(node.store, made.id) == made.packed


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_limit_of_the_process_is_told(tmp_path: Path) -> None:
    made = make(tmp_path / "made", rows=120_000)
    async with serving(tmp_path / "node") as node:
        with files_of_at_most(1_500_000):
            await refused(node, made, "File too large")
            assert not list((tmp_path / "node/segments.incoming").iterdir())
            other = SegmentStore(tmp_path / "other")
            with pytest.raises(OSError, match="File too large"):
                await other.receive(made.id, 0, len(made.packed), _at_once(made.packed))
        await sent(node, made)


async def _at_once(data: bytes):  # type: ignore[no-untyped-def]
    yield data


@needs_root
async def test_a_full_disk_refuses_what_does_not_fit_and_nothing_else(tmp_path: Path) -> None:
    large, other = make(tmp_path / "1", rows=120_000, seed=1), make(tmp_path / "2", rows=120_000, seed=2)
    small = make(tmp_path / "3", rows=3000, seed=3)
    with mounted(tmp_path / "disk", megabytes=8, is_durable=False) as is_real:
        assert is_real
        async with serving(tmp_path / "disk") as node:
            await sent(node, large)
            await refused(node, other, "No space left on device: .* to come, room for")
            await sent(node, small)
            assert await got(node.store, large.id) == large.packed
            await node.store.trash(large.id)
            await node.store.purge(0)
            await sent(node, other)
            assert not list((tmp_path / "disk/segments.incoming").iterdir())


@needs_root
async def test_a_disk_that_fills_up_meanwhile_keeps_what_it_has(tmp_path: Path) -> None:
    """Each of two would fit; both do not."""
    made, kept = make(tmp_path / "1", rows=95_000, seed=1), make(tmp_path / "0", rows=2000)
    second = make(tmp_path / "2", rows=95_000, seed=2)
    with mounted(tmp_path / "disk", megabytes=8, is_durable=False) as is_real:
        assert is_real
        async with serving(tmp_path / "disk") as node, session() as http:
            await sent(node, kept)

            async def slowly(_: int) -> None:
                await asyncio.sleep(0.02)

            ends = await asyncio.gather(
                *(push(http, node.address, TOKEN, each.directory, each.ref, slowly) for each in (made, second)),
                return_exceptions=True,
            )
            told = [str(end) for end in ends if isinstance(end, DataUnavailable)]
            assert told
            assert all("HTTP 507: the node cannot write it: No space left" in each for each in told)
            assert node.store.ids() == {kept.id} | {
                each.id for each, end in zip((made, second), ends, strict=True) if end is True
            }
            for segment_id in node.store.ids():
                assert await node.store.verify(segment_id)
            await node.store.purge(0)
        filled = tmp_path / "disk"
        fill(filled)
        async with serving(filled) as node:  # a node starts on a full disk, and serves
            assert await got(node.store, kept.id) == kept.packed
            await refused(node, make(tmp_path / "4", rows=1000, seed=4), "No space left")


@needs_root
async def test_a_read_only_disk_serves_and_takes_nothing(tmp_path: Path) -> None:
    made, other = make(tmp_path / "1", rows=20_000, seed=1), make(tmp_path / "2", rows=20_000, seed=2)
    disk = tmp_path / "disk"
    with mounted(disk, megabytes=8, is_durable=False) as is_real:
        assert is_real
        async with serving(disk) as node, session() as http:
            await sent(node, made)
            path = node.store.path(made.id) / "0.npy"
            remount(disk, "ro")
            await refused(node, other, "Read-only file system")
            assert await got(node.store, made.id) == made.packed
            with pytest.raises(OSError, match="Read-only"):
                await node.store.trash(made.id)
            assert node.store.has(made.id)
            copy = SegmentStore(tmp_path / "copy")
            await fetch(http, [node.address], TOKEN, made.ref, copy)
            remount(disk, "rw")
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            remount(disk, "ro")
            assert not await node.store.verify(made.id)
            assert not node.store.has(made.id)
            await refused(node, made, "Read-only file system")
            remount(disk, "rw")
            await sent(node, made)
            await sent(node, other)
