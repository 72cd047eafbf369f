"""While this node leads: removes from the tree what writers left there who died before their version was visible.

    datasets/<name>                 without a version
    datasets/<name>/chunks/<id>     that no version names

It goes when nobody has been writing to the dataset, and it has been like this, for an hour of this leader's time. Each
removal checks that no version was published since it was judged; a writer who comes in that moment makes anew what he
misses. Their segments are the keepers' business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.datasets import is_dataset_name
from zkd.errors import BadRecord, MultiFailed, NoNode, Unavailable, ZooKeeperError
from zkd.manifests import Manifest
from zkd.paths import Paths, leaf
from zkd.zk import Check, Delete, Session, Znode

ROUND_S = 300.0
ABANDONED_S = 3600.0
READ_AT_ONCE = 16  # manifests: some kB each


class Sweeper:
    def __init__(self, session: Session, paths: Paths, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._log = log
        self._since: dict[str, float] = {}  # path -> when it was first seen abandoned
        self.removed = 0  # by this node

    async def run(self, check: Check) -> None:
        """One reign. Ends only by cancellation."""
        self._since.clear()
        while True:
            await asyncio.sleep(ROUND_S)
            try:
                await self._round(check)
            except Unavailable:
                pass  # the next round will do
            except ZooKeeperError as error:
                self._log.info("sweeper.interrupted", error=str(error))

    async def _round(self, check: Check) -> None:
        now = asyncio.get_running_loop().time()
        former, self._since = self._since, {}
        for name in sorted(filter(is_dataset_name, await self._session.children(self._paths.datasets))):
            try:
                head = await self._session.get(self._paths.dataset(name))
                rests = await self._rests(name, head)
            except (NoNode, BadRecord):
                continue  # it changed while we looked, or nobody knows what it names
            self._since |= {path: former.get(path, now) for path in rests}
            due = [path for path in rests if self._since[path] <= now - ABANDONED_S]
            if due:
                await self._remove(check, name, head, due)

    async def _rests(self, name: str, head: Znode) -> list[str]:
        """What could go from this dataset, the leaves first. `BadRecord` if a manifest cannot be read."""
        paths = self._paths
        if await self._children(paths.writers(name)):
            return []
        versions = [f"{paths.versions(name)}/{each}" for each in await self._children(paths.versions(name))]
        chunks = {paths.chunk(name, each) for each in await self._children(paths.chunks(name))}
        for start in range(0, len(versions), READ_AT_ONCE):
            for got in await self._session.get_many(versions[start : start + READ_AT_ONCE]):
                if isinstance(got, ZooKeeperError):
                    raise got
                chunks -= {paths.chunk(name, each) for each in codec.decode(got.data, Manifest).chunks}
        rests = sorted(chunks)
        if not versions and not head.data:
            rests.append(paths.dataset(name))
        return rests

    async def _remove(self, check: Check, name: str, head: Znode, due: Iterable[str]) -> None:
        dataset = self._paths.dataset(name)
        same = Check(dataset, head.stat.version)
        for path in due:
            if path == dataset:
                below = [each for each in await self._children(dataset) if each in ("chunks", "versions", "writers")]
                ops = [*(Delete(f"{dataset}/{each}", -1) for each in below), Delete(dataset, head.stat.version)]
            else:
                ops = [Delete(path, -1)]
            try:
                await self._session.multi([check, same, *ops])
            except MultiFailed as refusal:  # deposed; or a version or a writer came, and all is well
                self._log.info("rest.not_removed", path=path, error=str(refusal.cause))
                return
            self.removed += 1
            self._log.info("rest.removed", name=name, of=leaf(path))

    async def _children(self, path: str) -> list[str]:
        try:
            return await self._session.children(path)
        except NoNode:
            return []
