"""Who coordinates which job, over real servers: one node a job, none that has lost it, each job by somebody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from msgspec import structs

from tests.node.submitter import until
from zkd import codec, log
from zkd.core.clock import ServerClock
from zkd.core.jobs import EDITED, Turn, Words, turn
from zkd.errors import NoNode
from zkd.jobs import Coordinator, JobState
from zkd.leading import Deposed
from zkd.paths import Paths
from zkd.settings import Training
from zkd.training.office import Office
from zkd.training.seat import Seat
from zkd.training.telling import Telling
from zkd.zk import Acl, Perms, Session, end_session, ensure_path

JOB = {"model": "logistic", "dataset": "digits"}


class Work:
    """Holds its job until it is told otherwise."""

    def __init__(self, seat: Seat, words: Words) -> None:
        self.seat = seat
        self.telling = Telling()
        self._began = words
        self._words: Words | None = words
        self._wake = asyncio.Event()
        self._is_handing_over = False

    async def run(self) -> None:
        while True:
            now = turn(self._words, self._began)
            if now is Turn.END:
                return await self.seat.remove()
            if now is Turn.PAUSE:
                return await self.seat.leave(lambda state: structs.replace(state, phase="paused"))
            if now is Turn.FAIL:
                return await self.seat.leave(lambda state: structs.replace(state, phase="failed", error=EDITED))
            if self._is_handing_over:
                return await self.seat.leave(lambda state: state)
            await self._wake.wait()
            self._wake.clear()

    def told(self, words: Words | None) -> None:
        self._words = words
        self._wake.set()

    def hand_over(self) -> None:
        self._is_handing_over = True
        self._wake.set()


class Node:
    def __init__(self, name: str, session: Session, paths: Paths, jobs_max: int) -> None:
        self.name = name
        self.session = session
        self.settings = Training(jobs_max=jobs_max)
        self.begun: list[tuple[str, int]] = []
        self.office = Office(
            session,
            paths,
            name,
            ServerClock(),
            lambda: self.settings,
            lambda: True,
            self._begin,
            lambda _: None,
            log.get(node=name),
        )

    def _begin(self, seat: Seat, words: Words) -> Work:
        self.begun.append((seat.job_id, seat.fence))
        return Work(seat, words)


class Cluster:
    def __init__(self, hosts: str, root: str, user: Session) -> None:
        self.hosts = hosts
        self.user = user
        self.paths = Paths(root)
        self.nodes: dict[str, Node] = {}

    @asynccontextmanager
    async def node(self, name: str, jobs_max: int = 4) -> AsyncIterator[Node]:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(Session(self.hosts, timeout_s=4.0))
            await session.connected(20.0)
            node = Node(name, session, self.paths, jobs_max)
            await session.create(self.paths.node(name), b"{}", ephemeral=True)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            task = group.create_task(node.office.run())
            try:
                self.nodes[name] = node
                yield node
            finally:
                del self.nodes[name]
                task.cancel()

    async def drop(self, job_id: str, **fields: Any) -> None:
        await self.user.create(self.paths.job(job_id), json.dumps(JOB | fields).encode())

    async def edit(self, job_id: str, **fields: Any) -> None:
        await self.user.set(self.paths.job(job_id), json.dumps(JOB | fields).encode(), -1)

    async def state(self, job_id: str) -> JobState | None:
        try:
            return codec.decode((await self.user.get(self.paths.job_state(job_id))).data, JobState)
        except NoNode:
            return None

    async def holder(self, job_id: str) -> Coordinator | None:
        try:
            return codec.decode((await self.user.get(self.paths.coordinator(job_id))).data, Coordinator)
        except NoNode:
            return None

    async def phase(self, job_id: str, phase: str) -> JobState:
        async def is_so() -> JobState | None:
            found = await self.state(job_id)
            return found if found is not None and found.phase == phase else None

        return await until(is_so, 10.0, f"{job_id} is {phase}")

    async def held(self, job_id: str, fence: int) -> Coordinator:
        async def is_so() -> Coordinator | None:
            found = await self.holder(job_id)
            if found is None or found.fence != fence:
                return None
            node = self.nodes.get(found.node)  # it may not have heard yet that its write was done
            return found if node is None or job_id in node.office.held else None

        return await until(is_so, 15.0, f"{job_id} is held with fence {fence}")

    async def gone(self, path: str) -> None:
        async def is_so() -> bool:
            return await self.user.exists(path) is None

        await until(is_so, 10.0, f"{path} is gone")


@pytest.fixture
async def cluster(zookeeper: str, zk_root: str) -> AsyncIterator[Cluster]:
    async with Session(zookeeper, timeout_s=20.0) as user:
        await user.connected(20.0)
        for path in Paths(zk_root).skeleton():
            await ensure_path(user, path)
        yield Cluster(zookeeper, zk_root, user)


async def test_each_job_has_one_coordinator_and_jobs_are_shared_out(cluster: Cluster) -> None:
    async with cluster.node("a", 40) as a, cluster.node("b", 40) as b, cluster.node("c", 40) as c:
        for number in range(30):
            await cluster.drop(f"j{number}")
        holders = [(await cluster.held(f"j{number}", 1)).node for number in range(30)]
        assert sorted(job_id for node in (a, b, c) for job_id, _ in node.begun) == sorted(
            f"j{number}" for number in range(30)
        ), "each was begun once"
        assert set(holders) == {"a", "b", "c"}
        state = await cluster.state("j3")
        assert state is not None
        assert (state.fence, state.phase, state.coordinator) == (1, "preparing", holders[3])


async def test_jobs_beyond_what_nodes_take_wait_and_are_taken_by_age(cluster: Cluster) -> None:
    async with cluster.node("a", 2) as a, cluster.node("b", 2) as b:
        for number in range(12):
            await cluster.drop(f"j{11 - number}")
        for number in range(4):
            await cluster.held(f"j{11 - number}", 1)
        for number in range(8):
            assert await cluster.state(f"j{7 - number}") is None
            await cluster.user.delete(cluster.paths.job(f"j{11 - number}"), -1)
            await cluster.held(f"j{7 - number}", 1)
        assert {len(a.office.held), len(b.office.held)} == {2}


async def test_a_lost_session_loses_its_jobs_to_others_with_a_higher_fence(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(cluster.node("a"))
        await cluster.drop("j")
        await cluster.held("j", 1)
        seat = a.office.held["j"].seat
        b = await stack.enter_async_context(cluster.node("b"))
        assert a.session.credentials is not None
        await end_session(cluster.hosts, a.session.credentials)
        await cluster.held("j", 2)
        with pytest.raises(Deposed):
            await seat.write(lambda state: structs.replace(state, phase="explaining"))
        state = await cluster.state("j")
        assert state is not None
        assert (state.fence, state.phase) == (2, "preparing")
        assert len(a.office.held) + len(b.office.held) == 1


async def test_a_coordinator_whose_znode_somebody_deletes_stops(cluster: Cluster) -> None:
    async with cluster.node("a") as a:
        await cluster.drop("j")
        await cluster.held("j", 1)
        former = a.office.held["j"].task
        await cluster.user.delete(cluster.paths.coordinator("j"), -1)
        await cluster.held("j", 2)
        assert former is not None
        assert former.cancelled()
        assert a.begun == [("j", 1), ("j", 2)]


async def test_an_office_that_is_no_nodes_is_cleared(cluster: Cluster) -> None:
    """Put there by hand, or from a backup: no session's end would ever free it."""
    await cluster.user.create(cluster.paths.coordinator("j"), b'{"node":"gone","fence":7}')
    async with cluster.node("a"):
        await cluster.drop("j")
        await cluster.held("j", 1)


async def test_a_state_with_a_fence_beyond_all_is_begun_anew(cluster: Cluster) -> None:
    await cluster.user.create(cluster.paths.job_state("j"), b'{"czxid":1,"terms":"","fence":1e18,"phase":"training"}')
    async with cluster.node("a"):
        await cluster.drop("j")
        await cluster.held("j", 1)


async def test_pause_and_resume_cost_an_office_each(cluster: Cluster) -> None:
    async with cluster.node("a") as a:
        await cluster.drop("j")
        await cluster.held("j", 1)
        await cluster.edit("j", desired="pause")
        assert (await cluster.phase("j", "paused")).fence == 1
        await cluster.gone(cluster.paths.coordinator("j"))
        assert not a.office.held
        await cluster.edit("j", desired="run")
        await cluster.held("j", 2)
        await cluster.drop("lazy", desired="pause")
        await cluster.phase("lazy", "paused")
        assert await cluster.holder("lazy") is None


async def test_what_cannot_be_begun_fails_where_its_user_sees_it(cluster: Cluster) -> None:
    async with cluster.node("a"):
        await cluster.user.create(cluster.paths.job("broken"), b'{"model": "tree"}')
        assert "tree" in ((await cluster.phase("broken", "failed")).error or "")
        await cluster.drop("stopped", desired="stop")
        assert "no model" in ((await cluster.phase("stopped", "failed")).error or "")
        await cluster.drop("j")
        await cluster.held("j", 1)
        await cluster.edit("j", l2=3.0)
        assert (await cluster.phase("j", "failed")).error == EDITED
        await cluster.user.create(cluster.paths.job("später"), json.dumps(JOB).encode())
        assert "letters" in ((await cluster.phase("später", "failed")).error or "")


async def test_deleting_a_job_removes_its_state_also_when_nobody_holds_it(cluster: Cluster) -> None:
    async with cluster.node("a") as a:
        await cluster.drop("j")
        await cluster.drop("k", desired="pause")
        await cluster.held("j", 1)
        await cluster.phase("k", "paused")
        for job_id in ("j", "k"):
            await cluster.user.delete(cluster.paths.job(job_id), -1)
            await cluster.gone(cluster.paths.job_state(job_id))
        await cluster.gone(cluster.paths.coordinator("j"))
        assert not a.office.held
        await cluster.drop("j")
        await cluster.held("j", 1)


async def test_a_node_that_leaves_hands_its_jobs_over_at_once(cluster: Cluster) -> None:
    async with cluster.node("a") as a, cluster.node("b") as b:
        for number in range(4):
            await cluster.drop(f"j{number}")
        for number in range(4):
            await cluster.held(f"j{number}", 1)
        count = len(a.office.held)
        await a.office.drain()
        assert not a.office.held

        async def all_are_held() -> bool:
            return len(b.office.held) == 4

        await until(all_are_held, 5.0, "the other node has them all")
        assert sum(fence == 2 for _, fence in b.begun) == count


async def test_others_add_themselves_to_files_while_the_coordinator_writes(cluster: Cluster) -> None:
    from zkd.jobs import FileRef

    async with cluster.node("a") as a:
        await cluster.drop("j")
        await cluster.held("j", 1)
        seat = a.office.held["j"].seat
        await seat.write(lambda state: structs.replace(state, checkpoint=FileRef("a" * 64, 3, ["a"], 1)))
        seen = await cluster.state("j")
        assert seen is not None
        added = structs.replace(seen, checkpoint=FileRef("a" * 64, 3, ["a", "b"], 1))
        await cluster.user.set(cluster.paths.job_state("j"), codec.encode(added), -1)
        await seat.write(lambda state: structs.replace(state, phase="training"))
        written = await cluster.state("j")
        assert written == structs.replace(added, phase="training")
        stolen = structs.replace(added, fence=9)
        await cluster.user.set(cluster.paths.job_state("j"), codec.encode(stolen), -1)
        with pytest.raises(Deposed):
            await seat.write(lambda state: structs.replace(state, phase="explaining"))


async def test_a_job_that_may_not_be_read_is_neither_taken_nor_removed(cluster: Cluster) -> None:
    async with cluster.node("a") as a:
        await cluster.drop("open")
        await cluster.held("open", 1)
        await cluster.user.set_acl(cluster.paths.job("open"), [Acl(Perms.WRITE | Perms.ADMIN, "world", "anyone")], -1)
        await cluster.edit("open", desired="run")  # an event; what it says cannot be read any more
        await cluster.user.create(
            cluster.paths.job("closed"), b"{}", acl=[Acl(Perms.WRITE | Perms.ADMIN, "world", "anyone")]
        )
        await cluster.drop("after")
        await cluster.held("after", 1)
        state = await cluster.state("open")
        assert state is not None
        assert (state.phase, set(a.office.held)) == ("preparing", {"open", "after"})
        assert await cluster.state("closed") is None
