"""A program that uses zkd's own client: `python -m tests.chaos.submitters.client ORDER`."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import msgspec

import zkd
from tests.chaos import work
from tests.chaos.history import Cancel, Cancelled, Ended, Mode, Seen, Submit, Submitted
from tests.chaos.submitters.desk import Desk, Order
from zkd import Client, Handle
from zkd.client.calls import Calls
from zkd.records import Result

MODES: dict[Mode, int] = {"client": 9, "forget": 1}
CANCELLED = 0.03


def calls_of(client: Client, kind: str) -> Calls:
    task = work.task_of(kind, "", 0)
    return client.options(**{name: value for name, value in task.items() if name not in ("kernel", "args")})


def seen_in(result: Result) -> Seen:
    return Seen(
        result.status,
        result.node,
        result.attempt,
        result.owner,
        result.czxid,
        None if result.value is msgspec.UNSET else bytes(result.value).decode(),
        result.error.kind if result.error else "",
        [attempt.cause for attempt in result.attempts],
        result.ref.blob if result.ref else "",
    )


async def one(desk: Desk, client: Client, calls: Calls, plan: Submit, cancel_after_s: float | None) -> None:
    journal = desk.journal
    try:
        kernel = work.task_of(plan.kind, "", 0)["kernel"]
        handle = await calls.submit(kernel, plan.key, plan.n)
    except zkd.ZooKeeperError as error:
        journal.write(Submitted(plan.key, "", "unknown", str(error)))
        return
    journal.write(Submitted(plan.key, handle.id, "ok"))
    if cancel_after_s is not None:
        await asyncio.sleep(cancel_after_s)
        await cancel(desk, handle, plan)
    journal.write(Ended(plan.key, handle.id, await see(handle, plan)))


async def cancel(desk: Desk, handle: Handle, plan: Submit) -> None:
    desk.journal.write(Cancel(plan.key, handle.id))
    try:
        has_won = await handle.cancel()
    except zkd.ZooKeeperError:
        desk.journal.write(Cancelled(plan.key, handle.id, "unknown"))
        return
    desk.journal.write(Cancelled(plan.key, handle.id, "ok" if has_won else "fail"))


async def see(handle: Handle, plan: Submit) -> Seen | None:
    while True:
        try:
            result = await handle.outcome()
            break
        except zkd.TaskCancelled:
            return None
        except zkd.ZooKeeperError:
            await asyncio.sleep(0.1)
    if plan.mode == "forget":
        with contextlib.suppress(zkd.TaskError, zkd.ResultLost):  # a file in another namespace cannot be had
            await handle.result(forget=True)
    return seen_in(result)


async def submit_all(desk: Desk) -> None:
    order = desk.order
    room = asyncio.Semaphore(order.window)

    async def run(plan: Submit, cancel_after_s: float | None) -> None:
        try:
            await one(desk, client, calls[plan.kind], plan, cancel_after_s)
        finally:
            room.release()
            desk.ended()

    async with (
        Client(order.hosts, order.root, session_timeout_s=order.timeout_s, connect_timeout_s=60.0) as client,
        asyncio.TaskGroup() as group,
    ):
        calls = {kind: calls_of(client, kind) for kind in work.MIX}
        for plan in desk.plans(MODES, with_garbage=False):
            await room.acquire()
            is_cancelled = desk.rng.random() < CANCELLED
            group.create_task(run(plan, desk.rng.random() * 0.1 if is_cancelled else None))
            await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(submit_all(Desk(Order.parse(sys.argv))))
