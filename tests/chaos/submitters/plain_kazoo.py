"""A program of somebody who has only kazoo: `python -m tests.chaos.submitters.plain_kazoo ORDER`.

Persistent, sequential and ephemeral tasks, some of them deleted again to cancel them. It knows nothing of zkd but
docs/protocol.md.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError

from tests.chaos.history import Cancel, Cancelled, Ended, Lost, Mode, Outcome, Seen, Submit, Submitted, seen_of
from tests.chaos.submitters.desk import Desk, Order

MODES: dict[Mode, int] = {"persistent": 5, "sequential": 3, "ephemeral": 2}
CANCELLED = 0.05
MADE_AGAIN = 0.5
CALL_S = 30.0
LOOK_S = 2.0


class Submitter:
    def __init__(self, desk: Desk, client: KazooClient) -> None:
        self.desk = desk
        self.client = client
        self.tasks = f"{desk.order.root}/tasks"
        self.results = f"{desk.order.root}/results"

    def one(self, plan: Submit, rng: random.Random) -> None:
        journal = self.desk.journal
        outcome, name, why = self.drop(plan, is_made_again=rng.random() < MADE_AGAIN)
        journal.write(Submitted(plan.key, name, outcome, why))
        if outcome == "ok" and rng.random() < CANCELLED:
            time.sleep(rng.random() * 0.1)
            journal.write(Cancel(plan.key, name))
            journal.write(Cancelled(plan.key, name, self.cancel(name)))
        if name != f"{plan.key}-":
            journal.write(Ended(plan.key, name, self.see(name)))

    def drop(self, plan: Submit, *, is_made_again: bool) -> tuple[Outcome, str, str]:
        is_ephemeral, is_sequential = plan.mode == "ephemeral", plan.mode == "sequential"
        is_in_doubt = False
        while True:
            try:
                creating = self.client.create_async(
                    f"{self.tasks}/{plan.id}", self.desk.data(plan), ephemeral=is_ephemeral, sequence=is_sequential
                )
                path = creating.get(timeout=CALL_S)
            except NodeExistsError:
                return "ok", plan.id, "it was there"
            except (KazooException, KazooTimeoutError) as error:
                if is_made_again and plan.mode == "persistent":
                    is_in_doubt = True
                    time.sleep(0.1)
                    continue
                return "unknown", plan.id, type(error).__name__
            return "ok", path.rpartition("/")[2], "again" if is_in_doubt else ""

    def cancel(self, name: str) -> Outcome:
        try:
            self.client.delete_async(f"{self.tasks}/{name}").get(timeout=CALL_S)
        except NoNodeError:
            return "fail"
        except (KazooException, KazooTimeoutError):
            return "unknown"
        return "ok"

    def see(self, name: str) -> Seen | None:
        """Wait for the result, or for its being clear that there is none."""
        path = f"{self.results}/{name}"
        is_missing = False
        while True:
            changed = threading.Event()
            try:
                if self.client.exists_async(path, watch=lambda _, e=changed: e.set()).get(timeout=CALL_S):  # type: ignore[misc]
                    return seen_of(self.client.get_async(path).get(timeout=CALL_S)[0])
                if not self.client.exists_async(f"{self.tasks}/{name}").get(timeout=CALL_S):
                    self.client.sync_async(path).get(timeout=CALL_S)
                    if is_missing and not self.client.exists_async(path).get(timeout=CALL_S):
                        return None
                    is_missing = True
                changed.wait(LOOK_S)
            except NoNodeError:
                continue
            except (KazooException, KazooTimeoutError):
                time.sleep(0.1)


def submit_all(desk: Desk) -> None:
    order = desk.order
    client = KazooClient(order.hosts, timeout=order.timeout_s, logger=logging.getLogger("kazoo"))

    def changed(state: str) -> None:
        if state == KazooState.LOST:
            desk.journal.write(Lost())

    client.add_listener(changed)
    client.start(timeout=60)
    submitter = Submitter(desk, client)
    plans = desk.plans(MODES)
    turn = threading.Lock()

    def work() -> None:
        while True:
            with turn:
                plan = next(plans, None)
                if plan is None:
                    return
                rng = random.Random(desk.rng.random())
            submitter.one(plan, rng)
            with turn:
                desk.ended()

    threads = [threading.Thread(target=work) for _ in range(order.window)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    submit_all(Desk(Order.parse(sys.argv)))
