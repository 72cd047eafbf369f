"""Planted bugs, each a small patch of the product that only this room makes: what the simulation must catch.

They are mistakes that were made somewhere once, here or in the systems that docs/reliability.md names. A bug that
is not caught says that the scenario or the witness is too weak.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import msgspec

import zkd.endings
from tests.simulation.doubles import Patch
from zkd.client.dropbox import DropBox
from zkd.core import lifecycle
from zkd.core.clock import ServerClock
from zkd.core.dispatch import Dispatch
from zkd.core.lifecycle import TryAgain
from zkd.endings import Ending, Endings
from zkd.errors import OutcomeUnknown, SessionExpired, Unavailable
from zkd.node.dispatcher import Dispatcher
from zkd.node.election import Election, Reign
from zkd.node.executor import Executor
from zkd.node.membership import Membership
from zkd.records import Assignment, Attempt
from zkd.zk import Check, Delete, SetData, State, StateChange, multi
from zkd.zk.connection import Connection
from zkd.zk.link import Link
from zkd.zk.watches import Watches

BUGS: dict[str, Callable[[], list[Patch]]] = {}


def planted(bug: Callable[[], list[Patch]]) -> Callable[[], list[Patch]]:
    BUGS[bug.__name__.replace("_", "-")] = bug
    return bug


def wherever(original: Any, double: Any) -> list[Patch]:
    """Put the double in the place of a function in every module that has imported it."""
    product = [module for name, module in sorted(sys.modules.items()) if name.startswith("zkd.")]
    found = [(module, name, double) for module in product for name, it in vars(module).items() if it is original]
    assert found, original
    return found


# --- fences -------------------------------------------------------------------------------------------------


@planted
def publish_without_the_version() -> list[Patch]:
    """A stale owner publishes whatever became of its task."""
    return [(zkd.endings, "Delete", lambda path, version: Delete(path, -1))]


@planted
def take_back_without_moving_the_version() -> list[Patch]:
    """The leader gives a lost node's task away as it stands."""
    return [(Dispatch, "_lost_holder", lambda mind, entry, node, *_: mind._make_ready(entry))]


@planted
def write_as_leader_without_the_epoch() -> list[Patch]:
    take_office = Election._take_office

    async def unchecked(election: Election, incarnation: str) -> Reign:
        reign = await take_office(election, incarnation)
        return Reign(reign.epoch, reign.session_id, Check(reign.check.path, -1))

    return [(Election, "_take_office", unchecked)]


@planted
def queue_into_the_next_session() -> list[Patch]:
    """A request that finds no connection waits for one, whichever session that is of."""
    send = Link.send

    def sent(link: Link, *args: Any) -> Any:
        anywhere = (*args[:6], None, *args[7:])
        try:
            return send(link, *anywhere)
        except Unavailable:
            waiting = asyncio.get_running_loop().create_future()

            def again(change: StateChange) -> None:
                if change.state is State.CONNECTED:
                    unsubscribe()
                    send(link, *anywhere).add_done_callback(answered)

            def answered(reply: Any) -> None:
                if waiting.done():
                    return
                if reply.exception() is not None:
                    waiting.set_exception(reply.exception())
                else:
                    waiting.set_result(reply.result())

            unsubscribe = link.subscribe(again)
            return waiting

    return [(Link, "send", sent)]


@planted
def keep_the_incarnation_over_an_expiry() -> list[Patch]:
    join = Membership._join

    async def joined(membership: Membership) -> Any:
        record = membership._record
        first = vars(membership).setdefault("_first", [])

        def same(incarnation: str) -> Any:
            first.append(incarnation)
            return record(first[0])

        membership._record = same
        try:
            return await join(membership)
        finally:
            membership._record = record

    return [(Membership, "_join", joined)]


@planted
def work_on_the_list_of_a_former_life() -> list[Patch]:
    take = Executor._take

    def taken(executor: Executor, assignment: Assignment, fresh: Any) -> None:
        take(executor, Assignment(assignment.epoch, executor._incarnation or "", assignment.tasks), fresh)

    return [(Executor, "_take", taken)]


@planted
def forget_what_the_former_leader_gave() -> list[Patch]:
    return [(Dispatch, "assignment_found", lambda *_, **__: None)]


# --- lost answers ---------------------------------------------------------------------------------------------


@planted
def take_a_lost_answer_for_a_failure() -> list[Patch]:
    """The holder lets its task go when it does not know how its commit went."""
    commit = zkd.endings.Endings._commit

    async def hasty(endings: Endings, ops: Any, within: int) -> Any:
        try:
            await endings._writes.commit(ops, within=within)
        except OutcomeUnknown:
            raise SessionExpired from None
        except Exception:
            return await commit(endings, ops, within)

    return [(Endings, "_commit", hasty)]


@planted
def take_a_lost_answer_for_a_success() -> list[Patch]:
    commit = zkd.endings.Endings._commit

    async def hasty(endings: Endings, ops: Any, within: int) -> Any:
        try:
            await endings._writes.commit(ops, within=within)
        except (OutcomeUnknown, Unavailable):
            return None
        except Exception:
            return await commit(endings, ops, within)

    return [(Endings, "_commit", hasty)]


@planted
def ignore_a_failed_transaction() -> list[Patch]:
    return [(multi, "settle", lambda *_: None)]


@planted
def forget_who_waits_for_an_answer() -> list[Patch]:
    """What was sent on a lost connection is neither answered nor failed."""

    def forgotten(connection: Connection, why: str) -> None:
        connection._sent.clear()
        connection._waiting.clear()

    return [(Connection, "_fail_all", forgotten)]


@planted
def create_again_without_an_identity() -> list[Patch]:
    """A candidate that was created by a lost request is not known again."""

    async def unknown(*_: object) -> None:
        return None

    return [(Election, "_mine", unknown)]


@planted
def drop_again_without_a_look() -> list[Patch]:
    """A client whose create was not answered creates the task again, though it may have run and gone."""

    async def unseen(*_: object) -> bool:
        return False

    async def forgetful(box: DropBox, task: str, create: Any, created: Any) -> None:
        while True:
            try:
                await created
                return
            except (OutcomeUnknown, Unavailable) as error:
                await box.catch_up(float("inf"), error)
            except Exception:
                return
            created = box.writes.send([create])

    return [(DropBox, "_is_there", unseen), (DropBox, "_see_created", forgetful)]


# --- sessions -------------------------------------------------------------------------------------------------


@planted
def count_doubt_from_the_loss_of_the_connection() -> list[Patch]:
    """Curator's old mistake: the last answer is older than the moment in which its connection was seen to end."""
    lost = Link._on_lost

    def noted(link: Link, connection: Connection, why: str) -> None:
        connection.answered_at = link._clock()
        lost(link, connection, why)

    return [(Link, "_on_lost", noted)]


@planted
def never_doubt_a_session() -> list[Patch]:
    return [(Link, "_unknown_at", lambda link: float("inf"))]


@planted
def forget_to_arm_the_watches_again() -> list[Patch]:
    return [(Watches, "rearm_bodies", lambda *_: iter(()))]


# --- accounts ---------------------------------------------------------------------------------------------------


@planted
def run_again_without_counting_the_attempt() -> list[Patch]:
    def forgetful(task: Any, cause: Any, error: Any, node: str) -> TryAgain:
        return TryAgain([*task.attempts, Attempt("drain", node, error.message)])

    return wherever(lifecycle.judge, forgetful)


@planted
def count_after_the_run() -> list[Patch]:
    """A lost node's attempt is not recorded before the task is given away: only its version moves."""

    async def uncounted(dispatcher: Dispatcher, mind: Dispatch, command: Any, session_id: int, check: Any) -> None:
        path = dispatcher._paths.task(command.id)
        found = await dispatcher._session.get(path)
        await dispatcher._session.multi([check, SetData(path, found.data, command.version)], within=session_id)

    return [(Dispatcher, "_take_back", uncounted)]


@planted
def charge_a_drain() -> list[Patch]:
    def charged(task: Any, node: str) -> TryAgain:
        return TryAgain([*task.attempts, Attempt("error", node, f"{node} is being drained")])

    return wherever(lifecycle.handed_back, charged)


@planted
def compare_the_clocks_of_two_leaders() -> list[Patch]:
    observe, age_s = ServerClock.observe, ServerClock.age_s
    return [
        (ServerClock, "observe", lambda clock, server_ms, now, zxid=0: observe(clock, server_ms, now)),
        (ServerClock, "age_s", lambda clock, created_ms, now, czxid=0: age_s(clock, created_ms, now)),
    ]


# --- cancelling ---------------------------------------------------------------------------------------------------


@planted
def never_publish_a_cancellation() -> list[Patch]:
    async def silent(*_: object, **__: object) -> Ending:
        return Ending.ANSWERED

    return [(Endings, "end_deleted", silent)]


@planted
def do_not_mourn_for_a_lost_holder() -> list[Patch]:
    lost = Dispatch.node_lost

    def forgetful(mind: Dispatch, node: str, now: float) -> None:
        if node in mind.members:
            mind.members[node].ended.clear()
        lost(mind, node, now)

    return [(Dispatch, "node_lost", forgetful)]


@planted
def publish_a_value_for_a_deleted_task() -> list[Patch]:
    """The run was not in vain, so its result is published although the task was cancelled."""
    end = Endings.end

    async def kind(endings: Endings, task_id: str, version: int, result: Any, dead: Any, **where: Any) -> Ending:
        ending = await end(endings, task_id, version, result, dead, **where)
        if ending is Ending.GONE and result.status == "done":
            return await endings.end_deleted(task_id, msgspec.structs.replace(result), **where)
        return ending

    return [(Endings, "end", kind)]


# --- asyncio ------------------------------------------------------------------------------------------------------


@planted
def lose_a_cancellation_in_a_wait() -> list[Patch]:
    """As asyncio.wait_for of Python 3.11 does, when it comes in the turn of the event."""

    async def pause(election: Election, at_most_s: float | None) -> None:
        try:
            await asyncio.wait_for(election._wake.wait(), at_most_s)
        except TimeoutError:
            return

    return [(Election, "_pause", pause)]
