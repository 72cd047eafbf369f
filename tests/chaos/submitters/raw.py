"""A bare ZooKeeper session behind a proxy that cuts its connections: `python -m tests.chaos.submitters.raw ORDER`.

The cuts fall before a request reaches the server and after it was carried out, so that many creations and deletions
have an unknown outcome. Some are made again under the same id, some are left in doubt.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

from tests.chaos.history import Cancel, Cancelled, Ended, Lost, Mode, Seen, Submit, Submitted, seen_of
from tests.chaos.submitters.desk import Desk, Order
from tests.faults.proxy import Proxy
from zkd.errors import NodeExists, NoNode, OutcomeUnknown, SessionExpired, Unavailable
from zkd.paths import Paths
from zkd.zk import Session, State, StateChange

MODES: dict[Mode, int] = {"persistent": 8, "ephemeral": 2}
CANCELLED = 0.05
MADE_AGAIN = 0.5
CUT_EVERY_S = 4.0
CREATE_OR_DELETE = (1, 2, 15)
DOUBT_S = 2.0  # a request of a dead connection may still be under way for a moment
AWAY = (Unavailable, OutcomeUnknown, SessionExpired)


class Submitter:
    def __init__(self, desk: Desk, session: Session) -> None:
        self.desk = desk
        self.session = session
        self.paths = Paths(desk.order.root)

    async def one(self, plan: Submit, *, is_made_again: bool, cancel_after_s: float | None) -> None:
        journal = self.desk.journal
        outcome = await self.drop(plan, is_made_again=is_made_again)
        if outcome == "fail":
            return
        if cancel_after_s is not None:
            await asyncio.sleep(cancel_after_s)
            journal.write(Cancel(plan.key, plan.id))
            journal.write(Cancelled(plan.key, plan.id, await self.cancel(plan.id)))
        journal.write(Ended(plan.key, plan.id, await self.see(plan.id)))

    async def drop(self, plan: Submit, *, is_made_again: bool) -> str:
        data, path = self.desk.data(plan), self.paths.task(plan.id)
        is_in_doubt = False
        while True:
            try:
                await self.session.create(path, data, ephemeral=plan.mode == "ephemeral")
                outcome, why = "ok", "again" if is_in_doubt else ""
            except NodeExists:
                outcome, why = "ok", "it was there"
            except Unavailable:
                await asyncio.sleep(0.05)
                continue
            except (OutcomeUnknown, SessionExpired) as error:
                if isinstance(error, SessionExpired) and not is_in_doubt:
                    continue
                is_in_doubt = True
                if is_made_again and plan.mode == "persistent":
                    continue
                outcome, why = "unknown", str(error)
            self.desk.journal.write(Submitted(plan.key, plan.id, outcome, why))  # type: ignore[arg-type]
            return outcome

    async def cancel(self, task_id: str) -> str:
        while True:
            try:
                await self.session.delete(self.paths.task(task_id), -1)
            except NoNode:
                return "fail"
            except Unavailable:
                await asyncio.sleep(0.05)
                continue
            except (OutcomeUnknown, SessionExpired):
                return "unknown"
            return "ok"

    async def see(self, task_id: str) -> Seen | None:
        """Wait for the result, or for its being clear that there is none."""
        path = self.paths.result(task_id)
        is_missing = False
        while True:
            changed = asyncio.Event()
            try:
                if await self.session.exists(path, watch=lambda _, changed=changed: changed.set()) is not None:  # type: ignore[misc]
                    return seen_of((await self.session.get(path)).data)
                if await self.session.exists(self.paths.task(task_id)) is None:
                    await self.session.sync(path)
                    if is_missing and await self.session.exists(path) is None:
                        return None
                    is_missing = True
                async with asyncio.timeout(DOUBT_S):
                    await changed.wait()
            except AWAY:
                await asyncio.sleep(0.05)
            except (NoNode, TimeoutError):
                continue


async def cut(desk: Desk, proxies: list[Proxy]) -> None:
    """Arm a cut every now and then."""
    while True:
        await asyncio.sleep(desk.rng.expovariate(1 / CUT_EVERY_S))
        moment, how = desk.rng.choice(["before", "after"]), desk.rng.choice(["fin", "rst"])
        armed = [proxy.cut(*CREATE_OR_DELETE, moment=moment, how=how) for proxy in proxies]
        while not any(fault.struck.is_set() for fault in armed):
            await asyncio.sleep(0.05)
        for fault in armed:
            fault.times = 0


async def submit_all(desk: Desk) -> None:
    order = desk.order
    room = asyncio.Semaphore(order.window)

    def changed(change: StateChange) -> None:
        if change.state is State.EXPIRED:
            desk.journal.write(Lost())

    async with AsyncExitStack() as stack:
        proxies = []
        for host in order.hosts.split(","):
            address, _, port = host.rpartition(":")
            proxies.append(await stack.enter_async_context(Proxy(int(port), upstream_host=address)))
        hosts = ",".join(proxy.connect_string for proxy in proxies)
        session = await stack.enter_async_context(Session(hosts, timeout_s=order.timeout_s))
        stack.callback(session.subscribe(changed))
        await session.connected(60.0)
        submitter = Submitter(desk, session)

        async def run(plan: Submit, *, is_made_again: bool, cancel_after_s: float | None) -> None:
            try:
                await submitter.one(plan, is_made_again=is_made_again, cancel_after_s=cancel_after_s)
            finally:
                room.release()
                desk.ended()

        async with asyncio.TaskGroup() as cutting:
            cutter = cutting.create_task(cut(desk, proxies))
            async with asyncio.TaskGroup() as group:
                for plan in desk.plans(MODES):
                    await room.acquire()
                    cancel_after_s = desk.rng.random() * 0.1 if desk.rng.random() < CANCELLED else None
                    is_made_again = desk.rng.random() < MADE_AGAIN
                    group.create_task(run(plan, is_made_again=is_made_again, cancel_after_s=cancel_after_s))
            cutter.cancel()


if __name__ == "__main__":
    asyncio.run(submit_all(Desk(Order.parse(sys.argv))))
