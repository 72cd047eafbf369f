"""What keeps one task waiting, in words, as the leader knows it. For people, on demand: it may look at everything.

The same facts decide what happens (`zkd.core.queues`); here they are only told. One to three sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from zkd.core.limits import NEVER
from zkd.core.picture import Entry, Member, Phase
from zkd.records import CHARGED

if TYPE_CHECKING:
    from zkd.core.dispatch import Dispatch

NAMED_MAX = 5  # tasks or nodes in one sentence


def tell(mind: Dispatch, task_id: str, now: float) -> str:
    """Why this task is not done; empty if the leader knows nothing of it."""
    entry = mind.tasks.get(task_id)
    if entry is None:
        return ""
    if entry.phase is Phase.ENDING:
        return "The leader is ending it: its result is about to be there."
    if entry.phase in (Phase.LOOKING, Phase.PINNING):
        return "The leader is looking for its dataset, and for the version that it is about."
    if entry.phase is Phase.SPREADING and entry.family is not None:
        return f"A task for each of the {len(entry.family.parts)} parts of {entry.family.dataset} is being dropped."
    if entry.phase is Phase.ORPHANED:
        return (
            f"It was held by {entry.lost_by}, which was lost; the leader is taking it back to give it to another node."
        )
    if entry.phase is Phase.ASSIGNED:
        return _held(entry, now)
    text = _waiting(mind, entry, now) if entry.phase is Phase.WAITING else _ready(mind, entry, now)
    if entry.expires_at is not None:
        text += f" It expires in {_seconds(entry.expires_at - now)}."
    return text + _history(entry)


def _held(entry: Entry, now: float) -> str:
    copy = f" A second copy is on {entry.copy}; the first to end counts." if entry.copy else ""
    return (
        f"It is held by {entry.node} since {_seconds(now - entry.given_at)}, as attempt {entry.attempt}, and starts "
        f"there as soon as a worker is free.{copy}"
    )


def _waiting(mind: Dispatch, entry: Entry, now: float) -> str:
    told = []
    if entry.due_at > now:
        is_pause = bool(entry.attempts) and entry.attempts[-1].cause in CHARGED
        left = _seconds(entry.due_at - now)
        told.append(
            f"It pauses between two attempts, for another {left}."
            if is_pause
            else f"Its delay is not over: {left} are left."
        )
    pending = sorted(mind.dependencies.pending.get(entry.id, ()))
    if pending and entry.family is not None and mind.partwork.is_child(pending[0], entry):
        done = len(entry.family.parts) - len(pending)
        told.append(
            f"{done} of the {len(entry.family.parts)} parts of {entry.family.dataset} are done; it waits for the rest."
        )
    elif pending:
        promised = [task_id for task_id in pending if task_id not in mind.tasks]
        told.append(f"It waits for {_count(len(pending), 'task')} to be done: {_names(pending)}.")
        if promised:
            told.append(f"Neither a task nor a result is there of {_names(promised)}.")
    return " ".join(told)


def briefly(mind: Dispatch, entry: Entry, now: float) -> str:
    """What a task that is ready waits for, without those that go before it: finding these takes a look at all."""
    return _ready(mind, entry, now, place=lambda *_: "")


def _ready(mind: Dispatch, entry: Entry, now: float, place: Callable[[Dispatch, Entry], str] | None = None) -> str:
    need, place = entry.need, _place if place is None else place
    if not mind.members:
        return "No node is here."
    if entry.id in mind.partwork.crowded and entry.family is not None:
        return f"So much waits that there is no room for the {len(entry.family.parts)} tasks that it is made of."
    if entry.part is not None and entry.homes is not None:
        able, refusal = _at_home(mind, entry, entry.homes)
        if refusal:
            return refusal
    elif not entry.lanes:
        return f"No node has a kernel {need.kernel!r}. If none with it comes at once, the task is rejected."
    else:
        able = [mind.members[name] for name in sorted(mind.members)]
    for passed, refusal in _sieves(able, entry):
        if not passed:
            return refusal
        able = passed
    limit = mind.limits.of(need.kernel)
    opens_at = mind.limits.opens_at(need.kernel, now)
    if limit is not None and opens_at > now:
        held = mind.limits.held(need.kernel)
        if opens_at == NEVER:
            return f"{need.kernel} is limited to {limit.at_once} at once, and {held} are held now.{place(mind, entry)}"
        return (
            f"{need.kernel} is limited to {limit.per_s:g} starts a second; the next one is in "
            f"{_seconds(opens_at - now)}.{place(mind, entry)}"
        )
    if entry.patient_until is not None and entry.patient_until > now:
        return (
            f"It waits for {' or '.join(entry.near)}, which it prefers, another {_seconds(entry.patient_until - now)}."
        )
    return _room(mind, entry, able, now) + place(mind, entry)


def _at_home(mind: Dispatch, entry: Entry, homes: tuple[str, ...]) -> tuple[list[Member], str]:
    """The nodes of its part that are here, or what to say if there is none."""
    if not homes:
        return [], f"It works on {entry.part}, and no node keeps data."
    here = [mind.members[name] for name in homes if name in mind.members]
    kept = f"It works on {entry.part}, which is kept by {' and '.join(homes)}"
    if entry.need.node is not None and entry.need.node not in homes:
        return [], f"{kept}, and must run on node {entry.need.node}, which does not keep it."
    if not here:
        return [], f"{kept}: none of them is here."
    return here, ""


def _sieves(nodes: list[Member], entry: Entry) -> Iterator[tuple[list[Member], str]]:
    """Each demand of the task, with the nodes that are left after it and what to say if none is."""
    need = entry.need
    if need.node is not None:
        nodes = [node for node in nodes if node.record.node == need.node]
        yield nodes, f"It must run on node {need.node}, which is not here."
    nodes = [node for node in nodes if need.kernel in node.kernels]
    yield nodes, f"The nodes that had the kernel {need.kernel} are not here."
    if need.labels:
        wanted = ", ".join(f"{name}={value}" for name, value in need.labels)
        nodes = [node for node in nodes if all(node.record.labels.get(name) == value for name, value in need.labels)]
        yield nodes, f"No node that could run it carries the labels {wanted}."
    most = max((node.record.slots for node in nodes), default=0)
    nodes = [node for node in nodes if need.slots <= node.record.slots]
    yield nodes, f"It wants {need.slots} slots of one node, and none that could run it has more than {most}."
    if need.memory is not None:
        memory = need.memory
        nodes = [node for node in nodes if node.memory is None or memory <= node.memory]
        yield nodes, f"It wants {memory} bytes of memory, more than any node that could run it has."
    closed = ", ".join(
        f"{node.record.node} is {'draining' if node.record.draining else node.state}" for node in nodes[:NAMED_MAX]
    )
    nodes = [node for node in nodes if node.takes_work]
    yield nodes, f"The nodes that could run it take no work: {closed}."


def _room(mind: Dispatch, entry: Entry, able: list[Member], now: float) -> str:
    need = entry.need
    kept = next((node for node, lane in mind.queues.kept.items() if lane in entry.lanes), None)
    if kept is not None:
        free = mind.members[kept].free_slots
        return f"It wants {need.slots} slots of one node; {kept} is kept free for it and has {free} by now."
    with_slots = [node for node in able if node.free_slots >= need.slots]
    if not with_slots:
        wanted = "a free slot" if need.slots == 1 else f"{need.slots} free slots of one node"
        busy = ", ".join(
            f"{node.record.node} has {max(0, node.free_slots)} of {node.record.slots} free" for node in able[:3]
        )
        more = f" and {_count(len(able) - 3, 'more node')} are full" if len(able) > 3 else ""
        return f"It waits for {wanted}: {busy}{more}."
    memory = need.memory or 0
    if all(node.memory is not None and memory > node.memory - node.memory_held for node in with_slots):
        return f"It waits for {memory} bytes of memory: what the nodes with free slots hold already leaves less."
    kept_for_others = [node.record.node for node in with_slots if node.record.node in mind.queues.kept]
    if len(kept_for_others) == len(with_slots):
        return f"{_names(kept_for_others)} has room, and is kept free for a task that takes more slots."
    return f"{_names([node.record.node for node in with_slots])} has room: it is about to be given out."


def _place(mind: Dispatch, entry: Entry) -> str:
    """How many go before it, of those that compete for the same nodes."""
    above = same = own = 0
    for lane in entry.lanes[-1:]:
        for other in mind.tasks.values():
            if lane in other.lanes:
                above += other.priority > entry.priority
                if other.priority == entry.priority and other is not entry:
                    is_own = other.submitter == entry.submitter
                    same += not is_own
                    own += is_own and (other.czxid, other.id) < (entry.czxid, entry.id)
    told = []
    if above:
        told.append(f"{above} of higher priority")
    if own:
        told.append(f"{own} that are older" + (f" of {entry.submitter}" if entry.submitter else ""))
    if same:
        told.append(f"by turns those of other submitters, who have {same}")
    return f" Before it go {', '.join(told)}." if told else ""


def _history(entry: Entry) -> str:
    if not entry.attempts:
        return ""
    last = entry.attempts[-1]
    return f" {_count(len(entry.attempts), 'attempt')} so far; the last, on {last.node}, ended by {last.cause}."


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):.3g} s"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
