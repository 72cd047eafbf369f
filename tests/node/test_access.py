"""`[zookeeper.access]` and `zkd init`: who may do what in a tree that is not open to anyone, on both servers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import make_acl

from tests.node.submitter import until
from zkd.cli.init import digest_of
from zkd.client import Client
from zkd.daemon import Daemon
from zkd.settings import Settings, load

WHO = {who: digest_of(who, f"secret-{who}") for who in ("zkd", "ann", "rita", "eve")}


@dataclass
class Lock:
    """A tree with its owners, and connections of others to it."""

    hosts: str
    root: str
    directory: Path

    def settings(self, who: str) -> Path:
        path = self.directory / f"{who}.toml"
        (self.directory / who).write_text(f"digest:{who}:secret-{who}\n")
        path.write_text(
            f'[zookeeper]\nhosts = "{self.hosts}"\nroot = "{self.root}"\nauth_file = "{self.directory / who}"\n'
            f'[zookeeper.access]\ndaemons = ["digest:{WHO["zkd"]}"]\nsubmitters = ["digest:{WHO["ann"]}"]\n'
            f'readers = ["digest:{WHO["rita"]}"]\n'
            f'[node]\nname = "a"\nslots = 1\ndata_dir = "{self.directory / "data"}"\n'
        )
        return path

    def loaded(self, who: str) -> Settings:
        return load(self.settings(who), {})

    def client(self, who: str) -> Client:
        auth = [("digest", f"{who}:secret-{who}".encode())]
        return Client(self.hosts, self.root, auth=auth, access=self.loaded(who).zookeeper.access)

    async def zkd(self, who: str, *words: str) -> tuple[int, str]:
        command = (sys.executable, "-m", "zkd", "--config", str(self.settings(who)), *words)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60.0)
        return process.returncode or 0, output.decode()


@pytest.fixture
async def lock(zookeeper: str, zk_root: str, tmp_path: Path) -> AsyncIterator[Lock]:
    lock = Lock(zookeeper, zk_root, tmp_path)
    code, output = await lock.zkd("zkd", "init")
    assert code == 0, output
    async with Daemon(lock.loaded("zkd")):
        yield lock


@pytest.fixture
def as_eve(lock: Lock) -> Iterator[KazooClient]:
    client = KazooClient(lock.hosts, auth_data=[("digest", "eve:secret-eve")])
    client.start(10)
    yield client
    client.stop()
    client.close()


async def test_submitters_work_and_readers_look_and_others_do_neither(lock: Lock, as_eve: KazooClient) -> None:
    async with lock.client("ann") as ann, lock.client("rita") as rita:
        handle = await ann.submit("numpy.sum", [1, 2, 3])
        assert await handle.result(30.0) == 6
        assert (await rita.read(rita.paths.result(handle.id))).data
        large = np.arange(300_000.0)
        assert await ann.run("numpy.sum", large) == large.sum(), "the token of the data plane is for submitters"
        table = await ann.datasets.put("table", {"x": large[:100]}, parts=2)
        np.testing.assert_array_equal((await table.read())["x"], large[:100])
        for path in ("tasks", "results", "control/token", "nodes/a"):
            with pytest.raises(NoAuthError):
                await asyncio.to_thread(as_eve.get, f"{lock.root}/{path}")
        with pytest.raises(NoAuthError):
            await asyncio.to_thread(as_eve.create, f"{lock.root}/tasks/mine", b"{}")
        code, output = await lock.zkd("rita", "get", "nodes")
        assert (code, "a" in output) == (0, True), output
        code, output = await lock.zkd("rita", "run", "numpy.sum", "[1]")
        assert code == 77, output


async def test_a_submitter_changes_no_outcome(lock: Lock) -> None:
    ann = KazooClient(lock.hosts, auth_data=[("digest", "ann:secret-ann")])
    await asyncio.to_thread(ann.start, 10)
    try:
        task = {"kernel": "numpy.sum", "args": [[1, 2]]}
        await asyncio.to_thread(ann.create, f"{lock.root}/tasks/one", json.dumps(task).encode())

        async def is_done() -> bool:
            return await asyncio.to_thread(ann.exists, f"{lock.root}/results/one") is not None

        await until(is_done, 30.0, "the result is there")
        for path, do in (
            ("results/one", ann.set),
            ("nodes/a", ann.set),
            ("control/token", ann.set),
            ("assign/a", ann.set),
        ):
            with pytest.raises(NoAuthError):
                await asyncio.to_thread(do, f"{lock.root}/{path}", b"{}")
        with pytest.raises(NoAuthError):
            await asyncio.to_thread(ann.create, f"{lock.root}/results/two", b"{}")
        with pytest.raises(NoAuthError):
            await asyncio.to_thread(ann.create, f"{lock.root}/control/nodes/a", b"drain")
    finally:
        await asyncio.to_thread(ann.stop)
        ann.close()


async def test_init_says_what_is_open_and_mends_it(lock: Lock) -> None:
    code, output = await lock.zkd("zkd", "init", "--check")
    assert code == 0, output
    ours = KazooClient(lock.hosts, auth_data=[("digest", "zkd:secret-zkd")])
    await asyncio.to_thread(ours.start, 10)
    try:
        await asyncio.to_thread(ours.set_acls, f"{lock.root}/results", [make_acl("world", "anyone", all=True)])
        code, output = await lock.zkd("zkd", "init", "--check")
        assert code == 1, output
        assert f"{lock.root}/results: expected digest:{WHO['zkd']}:cdrwa" in output
        assert "got world:anyone:cdrwa" in output
        code, output = await lock.zkd("zkd", "init")
        assert (code, "1 with another ACL than before" in output) == (0, True), output
        acls, _ = await asyncio.to_thread(ours.get_acls, f"{lock.root}/results")
        assert not [acl for acl in acls if acl.id.scheme == "world"]
        # What a submitter made stays his.
        async with lock.client("ann") as ann:
            await ann.session.create(ann.paths.schedule("nightly"), b"{}")
        code, output = await lock.zkd("zkd", "init", "--check")
        assert code == 0, output
    finally:
        await asyncio.to_thread(ours.stop)
        ours.close()


async def test_nobody_locks_himself_out(zookeeper: str, zk_root: str, tmp_path: Path) -> None:
    lock = Lock(zookeeper, zk_root, tmp_path)
    code, output = await lock.zkd("eve", "init")
    assert code == 2, output
    assert "nothing was changed: the credentials of these settings are not those of digest:zkd" in output
    async with Client(zookeeper, zk_root) as client:
        assert await client.session.exists(zk_root) is None


async def test_settings_without_owners_are_refused_with_an_example(
    zookeeper: str, zk_root: str, tmp_path: Path
) -> None:
    lock = Lock(zookeeper, zk_root, tmp_path)
    path = lock.settings("zkd")
    path.write_text(path.read_text().replace(f'["digest:{WHO["zkd"]}"]', '["digest:zkd:secret"]'))
    code, output = await _zkd("--config", str(path), "init")
    assert code == 78, output
    assert "zookeeper.access.daemons" in output
    code, output = await _zkd("--hosts", zookeeper, "--root", zk_root, "init")
    assert code == 2, output
    assert "[zookeeper.access]\n" in output


async def _zkd(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zkd", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60.0)
    return process.returncode or 0, output.decode()
