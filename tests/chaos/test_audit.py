"""The judge of transactions can fail: each kind of stale write is planted once, and found."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.chaos.audit import Audit, audit
from tests.chaos.txnlog import Op, Transaction
from zkd.paths import Paths

PATHS = Paths("/zkd")
LEADER, OTHER, USER = 0x1, 0x2, 0x3
TASK, RESULT = "/zkd/tasks/a", "/zkd/results/a"


class Log:
    """A log as it should be, to which something is added."""

    def __init__(self) -> None:
        self.transactions: list[Transaction] = []
        self.write(LEADER, Op("create", "/zkd/control/epoch", b"", 0))
        for session, name in ((LEADER, "d1"), (OTHER, "d2")):
            entry = json.dumps({"incarnation": f"i{session}"}).encode()
            self.write(session, Op("create", f"/zkd/nodes/{name}", entry, 0, is_ephemeral=True))
            self.write(session, Op("create", f"/zkd/assign/{name}", self.list(session, []), 0))
        self.lists = {"d1": 0, "d2": 0}
        self.write(LEADER, Op("set", "/zkd/control/epoch", b"", 1))

    def list(self, session: int, tasks: list[tuple[str, int, int, int]]) -> bytes:
        return json.dumps({"epoch": 1, "incarnation": f"i{session}", "tasks": tasks}).encode()

    def add(self, session: int, kind: str, ops: tuple[Op, ...] = (), error: int = 0) -> int:
        self.transactions.append(Transaction(len(self.transactions) + 1, session, 0, kind, ops, error))
        return len(self.transactions)

    def write(self, session: int, *ops: Op) -> int:
        return self.add(session, "write", ops)

    def drop(self, session: int = USER, **more: bool) -> int:
        return self.write(session, Op("create", TASK, b"{}", 0, **more))

    def give(self, name: str, czxid: int, version: int = 0, *, by: int = LEADER, epoch: int = 1) -> None:
        self.lists[name] += 1
        holder = {"d1": LEADER, "d2": OTHER}[name]
        data = self.list(holder, [("a", czxid, version, 1)])
        check = Op("check", "/zkd/control/epoch", version=epoch)
        self.write(by, check, Op("set", f"/zkd/assign/{name}", data, self.lists[name]))

    def publish(self, session: int, czxid: int, *, status: str = "done", deletes: bool = True, by: str = "") -> None:
        result = {"status": status, "owner": by or f"i{session}", "czxid": czxid}
        deletion = [Op("delete", TASK)] if deletes else []
        self.write(session, *deletion, Op("create", RESULT, json.dumps(result).encode(), 0))

    def audit(self) -> Audit:
        return audit(self.transactions, PATHS)


def test_an_orderly_log_is_found_good() -> None:
    log = Log()
    czxid = log.drop()
    log.give("d2", czxid)
    log.write(LEADER, Op("check", "/zkd/control/epoch", version=1), Op("set", TASK, b"{}", 1))
    log.give("d1", czxid, 1)
    log.add(OTHER, "error", error=-103)
    log.publish(LEADER, czxid)
    log.add(OTHER, "close")
    found = log.audit()
    assert found.violations == []
    assert (found.created, found.results, found.reigns, found.refused[-103]) == (1, 1, 1, 1)


def test_an_ephemeral_task_goes_with_its_session() -> None:
    log = Log()
    log.drop(is_ephemeral=True)
    log.add(USER, "close")
    log.publish(LEADER, 0, status="cancelled", deletes=False)
    assert log.audit().violations == []


def publishes_what_it_was_not_given(log: Log) -> None:
    log.publish(OTHER, log.drop())


def publishes_what_was_taken_from_it(log: Log) -> None:
    czxid = log.drop()
    log.give("d2", czxid)
    log.write(LEADER, Op("set", TASK, b"{}", 1))
    log.publish(OTHER, czxid)


def publishes_into_another_life(log: Log) -> None:
    czxid = log.drop()
    log.give("d2", czxid)
    log.write(USER, Op("delete", TASK))
    log.drop()
    log.publish(OTHER, czxid)


def publishes_under_another_name(log: Log) -> None:
    czxid = log.drop()
    log.give("d2", czxid)
    log.publish(OTHER, czxid, by="i9")


def writes_after_its_end(log: Log) -> None:
    log.add(OTHER, "close")
    log.write(OTHER, Op("create", "/zkd/status/d2", b"", 0))


def leads_after_its_reign(log: Log) -> None:
    log.write(OTHER, Op("set", "/zkd/control/epoch", b"", 2))
    log.give("d1", log.drop(), by=LEADER, epoch=2)


def leads_without_a_check(log: Log) -> None:
    log.write(LEADER, Op("set", "/zkd/assign/d1", log.list(LEADER, []), 1))


def gives_to_two(log: Log) -> None:
    czxid = log.drop()
    log.give("d1", czxid)
    log.give("d2", czxid)


def skips_a_version(log: Log) -> None:
    log.drop()
    log.write(LEADER, Op("set", TASK, b"{}", 2))


def answers_twice(log: Log) -> None:
    czxid = log.drop()
    log.give("d2", czxid)
    log.publish(OTHER, czxid)
    log.write(USER, Op("delete", RESULT))
    log.publish(OTHER, czxid, status="cancelled", deletes=False)


def changes_a_result(log: Log) -> None:
    czxid = log.drop()
    log.give("d2", czxid)
    log.publish(OTHER, czxid)
    log.write(OTHER, Op("set", RESULT, b"{}", 1))


def answers_and_leaves_the_task(log: Log) -> None:
    log.drop()
    log.publish(OTHER, 0, status="cancelled", deletes=False)


def answers_a_deleted_task_as_done(log: Log) -> None:
    log.drop()
    log.write(USER, Op("delete", TASK))
    log.publish(OTHER, 0, deletes=False)


def deletes_without_an_answer(log: Log) -> None:
    log.drop()
    log.write(OTHER, Op("delete", TASK))


PLANTED: list[tuple[Callable[[Log], None], str]] = [
    (publishes_what_it_was_not_given, "stale"),
    (publishes_what_was_taken_from_it, "stale"),
    (publishes_into_another_life, "stale"),
    (publishes_under_another_name, "stale"),
    (writes_after_its_end, "stale"),
    (leads_after_its_reign, "stale"),
    (leads_without_a_check, "stale"),
    (gives_to_two, "stale"),
    (skips_a_version, "stale"),
    (answers_twice, "duplicated"),
    (changes_a_result, "duplicated"),
    (answers_and_leaves_the_task, "wrong"),
    (answers_a_deleted_task_as_done, "stale"),
    (deletes_without_an_answer, "lost"),
]


@pytest.mark.parametrize(("plant", "rule"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_violation_is_found(plant: Callable[[Log], None], rule: str) -> None:
    log = Log()
    plant(log)
    assert rule in {violation.rule for violation in log.audit().violations}
