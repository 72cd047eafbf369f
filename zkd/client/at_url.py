"""How a version stands whose parts lie at a URL: what nodes would say of theirs, asked of the place itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zkd.client.copies import Stat

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from zkd.core.datasets import Parts
    from zkd.manifests import Manifest
    from zkd.net.remote import Remote

AT_ONCE = 8


async def stat(remote: Remote, manifest: Manifest, parts: Parts) -> Stat:
    """Health by which of its segments there are objects of. Raises `DataUnavailable` if the place does not say."""
    refs = list({ref.id: ref for part in parts for ref in part}.values())
    found = await _some_at_once([remote.has(ref) for ref in refs])
    there = {ref.id for ref, is_there in zip(refs, found, strict=True) if is_there}
    copies = [int(bool(refs) and all(ref.id in there for ref in refs)) for refs in parts]
    full, filled = sum(copies), sum(bool(refs) for refs in parts)
    return Stat(
        manifest.name,
        manifest.version,
        "full" if full == filled else "lost",
        manifest.rows,
        manifest.size,
        manifest.parts,
        manifest.replicas,
        copies,
        full,
        degraded=0,
        lost=filled - full,
        missing=filled - full,
        astray=0,
    )


async def verify(remote: Remote, parts: Parts) -> tuple[int, list[int]]:
    """Read everything: how many segments are good, and the parts of those that are not. Raises `DataUnavailable`."""
    every = [(part, ref) for part, refs in enumerate(parts) for ref in refs]
    found = await _some_at_once([remote.verify(ref) for _, ref in every])
    return sum(found), [part for (part, _), is_good in zip(every, found, strict=True) if not is_good]


async def _some_at_once(works: Sequence[Coroutine[Any, Any, bool]]) -> list[bool]:
    """Do these, some at a time; what they give, in order."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(work: Coroutine[Any, Any, bool]) -> bool:
        async with turns:
            return await work

    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one(work)) for work in works]
    except ExceptionGroup as group:
        for work in works:
            work.close()  # those that never began
        raise group.exceptions[0] from None
    return [task.result() for task in running]
