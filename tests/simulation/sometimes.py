"""What must have happened in some run, or the runs prove nothing: the rare points that a fault is aimed at.

They are told from the log of transactions, the ledger, the network and the daemons' log lines; the product has no
marks for them. A scenario that no longer reaches one has become too tame.
"""

from __future__ import annotations

from collections.abc import Mapping

POINTS = (
    # answers lost after the commit
    "the answer to a publish was lost",
    "the answer to a record was lost",
    "the answer to a assign was lost",
    "the answer to a take back was lost",
    "the answer to a office was lost",
    "the answer to a join was lost",
    "the answer to a candidate was lost",
    "the answer to a mourn was lost",
    "the answer to a drop was lost",
    "the answer to a cancel was lost",
    # what was found then
    "a node found its own lost commit",
    "a result was there already",
    # the fences
    "a stale owner was refused by the version",
    "a deposed leader's write was refused",
    "a former leader's entry stood in the way",
    "two daemons believed to lead",
    "a request of an ended session was refused",
    "a request of an abandoned connection was refused",
    # owners and leaders come and go
    "another leader took office",
    "a task was taken back from a lost node",
    "a leader mourned what a lost node held",
    "a task was handed back by a draining node",
    "a task ran more than once and has one result",
    "a node waited for the session of its former life",
    "a submitter died",
    # cancel against end
    "a cancel came before the end",
    "the end came before a cancel",
    "a task was deleted while it ran",
    "a task came and went before it was read",
    "an id was dropped again",
    # outcomes
    "a task used up its retries",
    "a task expired",
    "a task failed with what it waited for",
    "a slot of a schedule fired",
    "another leader fired the next slot",
    "a task was given to a second node, too",
    "a second copy overtook the first",
    # sessions
    "a session went on over another connection",
    "a session was in doubt",
    "a session in doubt was answered after all",
    "a client learned that its session was over",
    "a half-open connection was given up",
    "a machine slept through its session",
    # the ensemble
    "the ensemble changed its leader",
    "a write whose server was gone survived a change of leaders",
    "a read was answered by a lagging server",
    "a lagging server turned a client away",
)


def missing(reached: Mapping[str, int]) -> list[str]:
    """The points that were never reached."""
    return [point for point in POINTS if not reached.get(point)]
