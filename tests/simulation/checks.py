"""What must hold at any time, when all has settled, and when all has stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.loop import Machine, Power
from tests.simulation.world import LATE_S, UNKNOWN
from zkd import codec
from zkd.records import Assignment
from zkd.zk import Session, State

if TYPE_CHECKING:
    from tests.simulation.nodes import Node
    from tests.simulation.scenario import Cluster
    from tests.simulation.world import World

# A leader in doubt can write nothing; it lets go of its office once it knows that its last question is not answered.
STEP_DOWN_S = 0.3
SILENCE = 1 / 3


def now(cluster: Cluster) -> None:
    """The invariants of every moment."""
    world = cluster.world
    for node in cluster.nodes:
        machine, daemon = node.machine, node.daemon
        if machine is None or machine.power is not Power.ON or daemon is None:
            continue
        dispatcher = getattr(daemon, "dispatcher", None)
        mind = None if dispatcher is None else dispatcher.mind
        if mind is not None:
            for fault in mind.check():
                world.broken(f"{machine}: {fault}")
        session = getattr(daemon, "session", None)
        if session is not None:
            _session(world, machine, session)
            reign = daemon.election.reign if hasattr(daemon, "election") else None
            # Timers stand still in a suspended machine: it asks and learns the truth before they are due.
            if reign is not None and is_awake(machine) and not machine.slept_s:
                silent_s = _silent_s(world, machine, reign.session_id)
                if silent_s > STEP_DOWN_S + world.ensemble.timeouts[reign.session_id] * SILENCE:
                    world.broken(f"{machine} still leads, in doubt since {silent_s:.2f} s")
    if sum(_believes_to_lead(node) for node in cluster.nodes) > 1:
        world.happened("two daemons believed to lead")
    for submitter in (*cluster.submitters, cluster.operator):
        if submitter.machine.power is Power.ON:
            for session in submitter.sessions[-1:]:
                _session(world, submitter.machine, session)


def _believes_to_lead(node: Node) -> bool:
    daemon = node.daemon
    if daemon is None or node.machine is None or not node.machine.is_up or not hasattr(daemon, "election"):
        return False
    return daemon.election.reign is not None


def is_awake(machine: Machine) -> bool:
    """Whether it has run for long enough since its last pause to know what time it is."""
    return machine.loop.now - machine.resumed_at > 0.3


def _silent_s(world: World, machine: Machine, session_id: int) -> float:
    """How long the last answered request of this session is past the moment of doubt."""
    answered_at = world.answered.get((machine.name, session_id))
    if answered_at is None:
        return 0.0
    return world.loop.now - answered_at - UNKNOWN * world.ensemble.timeouts[session_id]


def _session(world: World, machine: Machine, session: Session) -> None:
    """What the session layer promises, by the network's knowledge."""
    if not is_awake(machine):
        return
    silent_s = _silent_s(world, machine, session.session_id)
    state = session.state
    if silent_s > LATE_S and (state is State.CONNECTED or (state is State.SUSPENDED and not machine.slept_s)):
        world.broken(
            f"{machine}: {state.value} though nothing was answered for {silent_s:.2f} s beyond 2/3 of the timeout"
        )
    connection = session._link._connection
    if connection is not None:
        for request in (*connection._sent, *connection._waiting):
            if not request.future.done() and world.loop.now - machine.slept_s > request.deadline + LATE_S:
                world.broken(f"{machine}: a request about {request.path} hangs beyond its deadline")


def unsettled(cluster: Cluster) -> str:
    """What is still on its way, in words; empty when all has settled."""
    return undone(cluster) or unheard(cluster)


def undone(cluster: Cluster) -> str:
    """What the cluster has not done yet."""
    world, paths = cluster.world, cluster.world.paths
    tree = world.ensemble.tree
    for node in cluster.nodes:
        if not node.is_serving:
            return f"{node.name} does not serve"
        executor = node.daemon.executor
        if executor._held:
            return f"{node.name} holds {[(held.line.id, held.state.value) for held in executor._held.values()]}"
        if node.daemon._pool.in_use:
            return f"{node.name} still runs {node.daemon._pool.in_use}"
        if node.name not in tree.nodes[paths.nodes].children:
            return f"{node.name} is not in nodes/"
    if tree.nodes[paths.tasks].children:
        return f"tasks are left: {list(tree.nodes[paths.tasks].children)}"
    for name, znode in tree.nodes[paths.assignments].children.items():
        assignment = codec.decode(znode.data or b"", Assignment)
        here = world.witness.here.get(name)
        # What a former life was given is nobody's any more, and stays until there is something to give.
        if assignment.tasks and here is not None and here.incarnation == assignment.incarnation:
            return f"{name} is still given {znode.data!r}"
    if paths.leader not in tree.nodes:
        return "nobody leads"
    for life in world.witness.lives.values():
        if world.witness.owes_a_cancellation(life):
            return f"{life.id} was cancelled, which nobody has published"
    return ""


def unheard(cluster: Cluster) -> str:
    """Who still waits to hear of what is done."""
    for submitter in (*cluster.submitters, cluster.operator):
        if not submitter.is_done:
            left = [errand.id for errand in submitter.errands if errand.told is None and not errand.said]
            return f"{submitter.machine} is not done, and waits for {left}"
    return ""


def settled(cluster: Cluster) -> None:
    """When nothing is left to do."""
    world = cluster.world
    for node in cluster.nodes:
        daemon = node.daemon
        runs = daemon.executor._runs
        if runs.queue or runs.slots_taken or runs.wide:
            world.broken(f"{node.name}: {runs.slots_taken} slots taken, {runs.wide} wide, {runs.queue}")
        connection = daemon.session._link._connection
        if daemon.session.state is State.CONNECTED and connection is not None and len(connection._sent) > 4:
            world.broken(f"{node.name}: {len(connection._sent)} requests are pending")
        watches = len(daemon.session._link.watches)
        if watches > 16:
            world.broken(f"{node.name}: {watches} watches")


def stopped(cluster: Cluster) -> None:
    """When every daemon was stopped in order."""
    for node in cluster.nodes:
        if node.daemon is not None:
            cluster.world.broken(f"{node.name} did not stop within 40 s")
    left = left_behind(cluster)
    if left:
        cluster.world.broken(f"left behind: {left}")


def left_behind(cluster: Cluster) -> list[str]:
    """Znodes that should be gone once every daemon has stopped."""
    tree, paths = cluster.world.ensemble.tree, cluster.world.paths
    directories = (paths.nodes, paths.candidates, paths.tasks)
    left = [f"{directory}/{name}" for directory in directories for name in tree.nodes[directory].children]
    return [*left, *([paths.leader] if paths.leader in tree.nodes else [])]


def afterwards(cluster: Cluster) -> None:
    """The submitters' story, against the log."""
    world = cluster.world
    witness = world.witness
    for submitter in cluster.submitters:
        for errand in submitter.errands:
            lives = witness.by_id.get(errand.id, [])
            if errand.accepted == "yes" and not lives:
                world.broken(f"{errand.id} was accepted, and the log knows nothing of it")
            if errand.told is not None:
                results = [life.result for life in lives]
                if errand.told not in results:
                    world.broken(f"{submitter.machine} was told {errand.told}, the log has {results}")
            # An id that is used again may be answered by what its former life was about (docs/decisions/0001).
            if (
                errand.has_cancelled
                and len(lives) == 1
                and not any(
                    life.end == "deleted" and (life.result is None or life.result.status == "cancelled")
                    for life in lives
                )
            ):
                world.broken(f"{errand.id} was cancelled, as its submitter was told, and ended as {lives}")
    for life in witness.lives.values():
        if life.end is None:
            world.broken(f"{life.id} never ended")
        elif life.end == "published" and life.result is None and not _answered(witness.by_id[life.id], life):
            world.broken(f"{life.id} ended without a result")


def _answered(lives: list, life: object) -> bool:  # type: ignore[type-arg]
    """Whether an earlier life's result, kept then, answered this one."""
    return any(other is not life and other.result is not None for other in lives)
