"""What dead writers leave in the tree goes, and nothing that a version or a writer needs."""

from __future__ import annotations

import asyncio

import pytest

from tests.node.conftest import Site
from tests.node.datasets import manifest, publish, segment
from tests.node.submitter import until
from zkd.node import sweeper
from zkd.zk import Session, ensure_path

CHUNK = "ab" * 32


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "ROUND_S", 0.1)
    monkeypatch.setattr(sweeper, "ABANDONED_S", 0.6)


async def test_a_dataset_that_never_had_a_version_goes(site: Site) -> None:
    user, paths = site.user, site.user.paths
    await site.node()
    for path in (paths.versions("half"), paths.writers("half"), paths.chunk("half", CHUNK)):
        await ensure_path(user.session, path)
    await ensure_path(user.session, paths.dataset("bare"))
    await user.gone(paths.dataset("half"))
    await user.gone(paths.dataset("bare"))


async def test_nothing_goes_while_somebody_writes(site: Site) -> None:
    user, paths = site.user, site.user.paths
    await site.node()
    async with Session(site.hosts, timeout_s=5.0) as writer:
        await writer.connected(10.0)
        await ensure_path(writer, paths.chunk("mine", CHUNK))
        await ensure_path(writer, paths.writers("mine"))
        await writer.create(f"{paths.writers('mine')}/w", ephemeral=True)
        await asyncio.sleep(1.5)
        assert await user.is_there(paths.chunk("mine", CHUNK))
    await user.gone(paths.dataset("mine"))


async def test_a_chunk_goes_that_no_version_names(site: Site) -> None:
    user, paths = site.user, site.user.paths
    await site.node()
    text, chunks = manifest("d", 1, [[segment(part)] for part in range(4)])
    await publish(user.session, paths.root, text, chunks)
    before = sorted(await user.session.children(paths.chunks("d")))
    await user.session.create(paths.chunk("d", CHUNK), b"[]")
    await user.gone(paths.chunk("d", CHUNK))
    assert sorted(await user.session.children(paths.chunks("d"))) == before
    assert await user.is_there(paths.version("d", 1))


async def test_where_a_manifest_cannot_be_read_nothing_goes(site: Site) -> None:
    user, paths = site.user, site.user.paths
    daemon = await site.node()
    text, chunks = manifest("d", 1, [[segment(part)] for part in range(4)])
    await publish(user.session, paths.root, text, chunks)
    await user.session.set(paths.version("d", 1), b"junk", -1)
    await user.session.create(paths.chunk("d", CHUNK), b"[]")
    await ensure_path(user.session, paths.dataset("rest"))
    await user.gone(paths.dataset("rest"))  # it has been round
    await asyncio.sleep(0.5)
    assert len(await user.session.children(paths.chunks("d"))) == 2
    await user.session.set(paths.version("d", 1), b'{"of": "a newer zkd"}', -1)
    await asyncio.sleep(1.0)
    assert len(await user.session.children(paths.chunks("d"))) == 2
    assert daemon.sweeper.removed == 1


async def test_a_new_leader_waits_for_its_own_hour(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "ABANDONED_S", 3600.0)
    user, paths = site.user, site.user.paths
    daemon = await site.node()
    await ensure_path(user.session, paths.dataset("young"))

    async def is_known() -> bool:
        return bool(daemon.sweeper._since)

    await until(is_known, 5.0, "it was seen")
    assert await user.is_there(paths.dataset("young"))
