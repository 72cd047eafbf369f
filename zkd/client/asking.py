"""Asks what keeps a task waiting: the leader over HTTP, who knows, else the tree, which shows most of it.

The leader weighs all that waits against each other; what it says of a waiting task is the reason. When nobody
leads, no node serves HTTP or no answer comes soon, the same picture that any client can draw has to do.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zkd import codec
from zkd.client.explain import Picture, explain, is_waiting
from zkd.client.schedules import explain_schedule
from zkd.errors import BadRecord, NoNode, ZooKeeperError
from zkd.paths import is_name
from zkd.records import Assignment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zkd.client.client import Client
    from zkd.client.dropbox import DropBox
    from zkd.paths import TaskId

LEADER_ANSWERS_S = 1.0
ANSWER_BYTES_MAX = 64 * 1024


async def why(client: Client, box: DropBox, task: TaskId) -> str:
    """In words, of a task or of a schedule; empty if the tree has neither of this name."""
    picture = await _picture(client, box, task)
    if is_waiting(picture):
        words = await _leader_says(picture, client, box)
        if words:
            return words
    return explain(picture) or await _of_schedule(client, task)


async def _of_schedule(client: Client, name: str) -> str:
    """When the schedule of this name fires next; empty if there is none."""
    seen = await client.scheduled(name)
    if seen is None:
        return ""
    last = seen.state.task if seen.state is not None else None
    is_unfinished = last is not None and await client.session.exists(client.paths.task(last)) is not None
    return explain_schedule(seen, await client.leader(), datetime.now(UTC), is_unfinished=is_unfinished)


async def _leader_says(picture: Picture, client: Client, box: DropBox) -> str:
    """What the leader knows; empty if it cannot be asked."""
    leader = picture.nodes.get(picture.leader.node) if picture.leader is not None else None
    if leader is None or leader.address is None or not is_name(picture.id):
        return ""
    import aiohttp

    from zkd.net.fetch import session

    try:
        token = (await box.read(client.paths.token)).data.decode()
        timeout = aiohttp.ClientTimeout(total=LEADER_ANSWERS_S)
        url, headers = f"{leader.address}/v1/why/{picture.id}", {"Authorization": f"Bearer {token}"}
        async with (
            session(client.data_tls, timeout) as http,
            http.get(url, headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                return ""
            return (await answer.content.read(ANSWER_BYTES_MAX)).decode().strip()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, ZooKeeperError):
        return ""  # whatever it is, the tree is left


async def _picture(client: Client, box: DropBox, task: TaskId) -> Picture:
    """All that may have to do with a task's waiting. The task is read before its result: what is in neither then
    was in neither, but for a cancelled task's."""
    paths = client.paths
    read, malformed, age_s = None, "", 0.0
    try:
        znode = await box.read(paths.task(task))
        age_s = max(0.0, time.time() - znode.stat.ctime / 1000)  # for people: nothing is decided by it
        read = codec.decode_task(znode.data)
    except NoNode:
        pass
    except BadRecord as error:
        malformed = str(error)
    result, dead = await client.outcome(task), await client.dead_task(task)
    if result is not None or (read is None and not malformed):
        return Picture(task, result=result, dead=dead)
    unfinished, promised = await _missing(client, read.after if read is not None else [])
    box_stat = await client.session.exists(paths.tasks)
    return Picture(
        task,
        task=read,
        malformed=malformed,
        age_s=age_s,
        dead=dead,
        leader=await client.leader(),
        nodes=await client.nodes(),
        statuses=await client.statuses(),
        states={node: state.state for node, state in (await client.node_states()).items()},
        assignments=await client.records(paths.assignments, Assignment),
        unfinished=unfinished,
        promised=promised,
        limit=(await client.limits()).get(read.kernel) if read is not None else None,
        waiting=box_stat.num_children if box_stat is not None else 0,
    )


async def _missing(client: Client, after: Sequence[TaskId]) -> tuple[list[TaskId], list[TaskId]]:
    """Of these tasks, those in the drop box, and those that are neither there nor have a result."""
    paths, session = client.paths, client.session
    there = await session.children_many([paths.task(task) for task in after])
    unfinished = [task for task, found in zip(after, there, strict=True) if not isinstance(found, ZooKeeperError)]
    others = [task for task in after if task not in unfinished]
    ended = await session.children_many([paths.result(task) for task in others])
    return unfinished, [task for task, found in zip(others, ended, strict=True) if isinstance(found, ZooKeeperError)]
