"""Files of jobs on the nodes' disks: copies come back, what nobody points to goes, what is pointed to never does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from msgspec import structs

from tests.node.submitter import until
from tests.store.serving import TOKEN, serving
from zkd import codec, log
from zkd.jobs import FileRef, JobState
from zkd.paths import Paths
from zkd.records import Node
from zkd.store import CheckpointStore
from zkd.training import upkeep
from zkd.training.copies import Copies
from zkd.training.peers import Peers
from zkd.training.upkeep import Upkeep
from zkd.zk import Session, ensure_path

STATE = JobState(czxid=1, terms="0" * 64, fence=1, phase="paused")
DATA = os.urandom(100_000)


class Member:
    def __init__(self, name: str, session: Session, store: CheckpointStore, copies: Copies, upkeep: Upkeep) -> None:
        self.name = name
        self.session = session
        self.store = store
        self.copies = copies
        self.upkeep = upkeep


class Members:
    def __init__(self, hosts: str, root: str, directory: Path, user: Session, stack: AsyncExitStack) -> None:
        self.hosts = hosts
        self.paths = Paths(root)
        self.directory = directory
        self.user = user
        self.held: set[str] = set()
        self.nodes: dict[str, Member] = {}
        self._stack = stack

    async def start(self, *names: str) -> None:
        for name in names:
            stack = self._stack
            session = await stack.enter_async_context(Session(self.hosts, timeout_s=4.0))
            await session.connected(20.0)
            served = await stack.enter_async_context(serving(self.directory / name))
            http = await stack.enter_async_context(aiohttp.ClientSession())
            await session.create(self.paths.node(name), entry(name, served.address), ephemeral=True)
            peers = Peers(session, self.paths, log.get(node=name))
            store = CheckpointStore(self.directory / name)
            copies = Copies(name, store, peers, http, lambda: TOKEN, log.get(node=name))
            keeping = Upkeep(
                session, self.paths, name, peers, copies, self.held.__contains__, lambda: 2, log.get(node=name)
            )
            await session.add_watch(
                self.paths.job_states,
                lambda event, keeping=keeping: keeping.changed(event.path.rpartition("/")[2]),  # type: ignore[misc]
                recursive=True,
            )
            group = await stack.enter_async_context(asyncio.TaskGroup())
            for task in (group.create_task(peers.run()), group.create_task(keeping.run())):
                stack.callback(task.cancel)
            self.nodes[name] = Member(name, session, store, copies, keeping)

    async def write(self, name: str, job_id: str, number: int = 3) -> FileRef:
        """On one node, and pointed to."""
        file_id = await self.nodes[name].store.write(job_id, DATA + bytes([number]))
        return FileRef(file_id, len(DATA) + 1, [name], number)

    async def say(self, job_id: str, ref: FileRef | None) -> None:
        path = self.paths.job_state(job_id)
        text = codec.encode(structs.replace(STATE, model=ref))
        if await self.user.exists(path) is None:
            await self.user.create(path, text)
        else:
            await self.user.set(path, text, -1)

    async def ref(self, job_id: str) -> FileRef:
        found = codec.decode((await self.user.get(self.paths.job_state(job_id))).data, JobState).model
        assert found is not None
        return found

    def having(self, job_id: str, file_id: str) -> set[str]:
        return {name for name, node in self.nodes.items() if node.store.has(job_id, file_id)}

    async def copied(self, job_id: str, count: int) -> set[str]:
        async def is_so() -> set[str] | None:
            ref = await self.ref(job_id)
            here = set(await self.user.children(self.paths.nodes))
            good = self.having(job_id, ref.id) & set(ref.nodes) & here
            return good if len(good) >= count else None

        return await until(is_so, 10.0, f"{count} copies that the state knows of")


def entry(name: str, address: str) -> bytes:
    return codec.encode(Node(name, "1", 1, address=address))


@pytest.fixture
async def members(
    embedded_in_thread: str, zk_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Members]:
    for name, value in (("LOOK_S", 0.05), ("IDLE_S", 0.2), ("GATHER_S", 0.02), ("HERE_S", 0.1), ("MISSED_S", 0.3)):
        monkeypatch.setattr(upkeep, name, value)
    monkeypatch.setattr(upkeep, "FAILED_S", 0.2)
    async with Session(embedded_in_thread, timeout_s=20.0) as user, AsyncExitStack() as stack:
        await user.connected(20.0)
        for path in Paths(zk_root).skeleton():
            await ensure_path(user, path)
        yield Members(embedded_in_thread, zk_root, tmp_path, user, stack)


async def test_a_file_with_too_few_copies_is_pulled_by_one_more_node(members: Members) -> None:
    await members.start("a", "b", "c", "d")
    ref = await members.write("a", "j")
    await members.say("j", ref)
    good = await members.copied("j", 2)
    await asyncio.sleep(0.5)
    assert members.having("j", ref.id) == good == set((await members.ref("j")).nodes)
    assert len(good) == 2
    (other,) = good - {"a"}
    await members.user.delete(members.paths.node("a"), -1)
    assert len(await members.copied("j", 2)) == 2
    assert other in (await members.ref("j")).nodes
    assert "a" not in (await members.ref("j")).nodes


async def test_a_rotten_file_is_pulled_again(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "VERIFY_S", 0.1)
    await members.start("a", "b")
    ref = await members.write("a", "j")
    await members.say("j", ref)
    await members.copied("j", 2)
    path = members.directory / "a" / "checkpoints" / "j" / ref.id
    path.write_bytes(b"rotten")

    async def is_good() -> bool:
        return path.exists() and path.read_bytes() == DATA + bytes([3])

    await until(is_good, 10.0, "it is good again")


async def test_files_go_with_their_pointer_and_with_their_job(members: Members) -> None:
    await members.start("a", "b")
    first = await members.write("a", "j", 1)
    await members.say("j", first)
    await members.copied("j", 2)
    second = await members.write("a", "j", 2)
    await members.say("j", second)
    await members.copied("j", 2)

    async def only_second() -> bool:
        return members.having("j", first.id) == set()

    await until(only_second, 10.0, "what nothing points to any more is gone")
    assert members.having("j", second.id) == {"a", "b"}
    await members.user.delete(members.paths.job_state("j"), -1)

    async def none() -> bool:
        return not any((members.directory / name / "checkpoints" / "j").exists() for name in "ab")

    await until(none, 10.0, "all of it is gone")


async def test_a_file_waits_for_its_pointer_a_while(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    await members.start("a")
    await members.say("j", None)
    early = await members.write("a", "j")
    await asyncio.sleep(0.5)
    assert members.having("j", early.id) == {"a"}
    monkeypatch.setattr(upkeep, "ORPHAN_S", 0.1)

    async def is_gone() -> bool:
        return not members.having("j", early.id)

    await until(is_gone, 10.0, "it was never pointed to")


async def test_files_of_a_running_job_are_its_coordinators_concern(members: Members) -> None:
    await members.start("a", "b")
    members.held.add("j")
    ref = await members.write("a", "j")
    await members.say("j", ref)
    await asyncio.sleep(1.0)
    assert members.having("j", ref.id) == {"a"}
    members.held.clear()
    members.nodes["b"].upkeep.changed("j")
    members.nodes["a"].upkeep.changed("j")
    await members.copied("j", 2)


async def test_a_state_that_cannot_be_read_removes_nothing(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "ORPHAN_S", 0.1)
    await members.start("a")
    await members.say("j", None)
    await members.user.set(members.paths.job_state("j"), b"{", -1)
    ref = await members.write("a", "j")
    await asyncio.sleep(0.8)
    assert members.having("j", ref.id) == {"a"}
