"""Keeps the files of models on this node's disk that belong here, and removes those that no version needs any more.

Decides anew when a model or the ring changed, and now and then: a file that vanished or was written to is fetched
again, and each is read and compared with its digest once an hour. Files come from whichever node has them, its homes
first. They are named by their digest, so a copy too many is only a copy: what is not wanted here any more stays until
no version needs it, and an alias can go back to it at once.

Nothing is removed while the picture is not complete, while a record cannot be read (who knows which file it needs), or
in a tree without any model, which is more likely to be another one than to have lost them all: heads stay.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger as Log

from zkd import codec
from zkd.core.registry import Need, Registered, disposable, homes, needs, wanted
from zkd.errors import BadRecord, DataDamaged, DataUnavailable, ZooKeeperError
from zkd.manifests import Keeper
from zkd.paths import NodeId, Paths
from zkd.records import Node
from zkd.registry import FILES_URL
from zkd.store.digest_files import DigestFiles
from zkd.zk import Session, State

if TYPE_CHECKING:
    import ssl

    import aiohttp

GRACE_S = 60.0  # without a version that needs it
ARRIVAL_GRACE_S = 600.0  # since it was sent: a push makes its version when all copies are durable
GATHER_S = 0.05  # changes come in swarms
LOOK_S = 5.0  # between looks at the directory
VERIFY_S = 3600.0  # between two readings of a file from the disk
RETRY_S = 2.0  # after a fetch that failed
FETCHES_AT_ONCE = 4
SOURCES_MAX = 16  # nodes that are asked for a file in one go


class ModelKeeper:
    def __init__(
        self,
        session: Session,
        paths: Paths,
        node: NodeId,
        store: DigestFiles,
        models: Callable[[], Mapping[str, Registered]],
        is_complete: Callable[[], bool],
        keepers: Callable[[], Sequence[Keeper]],
        token: Callable[[], str | None],
        log: Log,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`keepers` are those that are here now."""
        self._session = session
        self._paths = paths
        self._node = node
        self._store = store
        self._models = models
        self._is_complete = is_complete
        self._keepers = keepers
        self._token = token
        self._log = log
        self._tls = tls
        self._wake = asyncio.Event()
        self._unneeded_since: dict[str, float] = {}
        self._verified_at: dict[str, float] = {}
        self._retry_at: dict[str, float] = {}
        self._fetching: set[str] = set()
        self._asked: dict[str, int] = {}  # files that belong elsewhere, and are wanted here now
        self._faults: dict[str, str] = {}  # of the last try
        self._turns = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._listeners: list[Callable[[], None]] = []
        self.wanted: dict[str, int] = {}  # that belong here, with their sizes
        self.fetched = self.removed = self.damaged = 0

    def look(self) -> None:
        """A model, the ring or the directory changed."""
        self._wake.set()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call back after files came or went, until the returned function is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def path(self, file_id: str) -> Path | None:
        """Where a file is, if it is here and good."""
        return self._store.path(file_id)

    async def bring(self, file_id: str, size: int) -> None:
        """Returns when this file is here, wherever it belongs. Unbounded: the caller knows how long he has.

        Raises `DataUnavailable` when no node has it.
        """
        came = asyncio.Event()
        unsubscribe = self.subscribe(came.set)
        self._faults.pop(file_id, None)
        self._asked[file_id] = size
        self._wake.set()
        try:
            while self._store.path(file_id) is None:
                if file_id in self._faults:
                    raise DataUnavailable(self._faults[file_id])
                await came.wait()
                came.clear()
        finally:
            unsubscribe()

    async def run(self) -> None:
        """Ends only by cancellation."""
        from zkd.net.fetch import session

        async with session(self._tls) as http, asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                if self._is_complete():
                    await self._round(group, http)
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S if self._retry_at else LOOK_S):
                        await self._wake.wait()
                        await asyncio.sleep(GATHER_S)

    # --- One round --------------------------------------------------------------------------------------

    async def _round(self, group: asyncio.TaskGroup, http: aiohttp.ClientSession) -> None:
        needed = needs(self._models().values())
        self._asked = {file_id: size for file_id, size in self._asked.items() if file_id in needed}
        self.wanted = self._asked | wanted(needed, self._node, self._keepers())
        await self._verify(needed)
        now = self._now()
        missing = [
            file_id
            for file_id in self._missing()
            if file_id not in self._fetching and self._retry_at.get(file_id, 0.0) <= now
        ]
        if missing:
            await self._fetch_all(group, http, missing)
        self._remove(needed)

    def _missing(self) -> list[str]:
        return [file_id for file_id in self.wanted if self._store.path(file_id) is None]

    async def _verify(self, needed: Mapping[str, Need]) -> None:
        """Read what was never read here, what was written to, and what was not read for long."""
        for file_id in self._store.ids() & needed.keys():
            due = self._verified_at.get(file_id, -VERIFY_S) + VERIFY_S <= self._now()
            if not due and self._store.path(file_id) is not None:
                continue
            try:
                await self._store.verify(file_id)
                self._verified_at[file_id] = self._now()
                self._tell()
            except DataDamaged as error:
                self.damaged += 1
                self._log.warning("model_file.damaged", file=file_id, error=str(error))
                self._tell()
            except DataUnavailable as error:
                self._log.warning("model_file.not_read", file=file_id, error=str(error))

    async def _fetch_all(self, group: asyncio.TaskGroup, http: aiohttp.ClientSession, missing: Sequence[str]) -> None:
        try:
            addresses = await self._addresses()
        except ZooKeeperError as error:
            self._log.info("model_keeper.interrupted", error=str(error))
            return

        async def one(file_id: str, size: int) -> None:
            try:
                async with self._turns:
                    await self._fetch(http, file_id, size, addresses)
            finally:
                self._fetching.discard(file_id)

        for file_id in missing:
            self._fetching.add(file_id)
            group.create_task(one(file_id, self.wanted[file_id]))

    async def _fetch(
        self, http: aiohttp.ClientSession, file_id: str, size: int, addresses: Mapping[NodeId, str]
    ) -> None:
        from zkd.net.files import fetch_into

        first = [node for node in homes(file_id, self._keepers()) if node in addresses]
        others = [node for node in addresses if node not in first]
        random.shuffle(first)  # so that a served file does not come from one node alone
        random.shuffle(others)
        urls = [f"{addresses[node]}{FILES_URL}/{file_id}" for node in [*first, *others][:SOURCES_MAX]]
        began = self._now()
        try:
            await fetch_into(self._store, http, urls, self._token() or "", file_id, size)
        except (DataUnavailable, OSError) as error:
            self._retry_at[file_id] = self._now() + RETRY_S
            self._faults[file_id] = str(error)[:500]
            self._log.warning("model_file.not_fetched", file=file_id, error=str(error)[:500])
            self._tell()
            return
        self.fetched += 1
        self._verified_at[file_id] = self._now()
        self._retry_at.pop(file_id, None)
        self._faults.pop(file_id, None)
        self._log.info("model_file.fetched", file=file_id, took_s=round(self._now() - began, 3))
        self._tell()

    async def _addresses(self) -> dict[NodeId, str]:
        """Of the data planes of all others who are here, as they say."""
        names = [name for name in await self._session.children(self._paths.nodes) if name != self._node]
        found: dict[NodeId, str] = {}
        for name, got in zip(
            names, await self._session.get_many([self._paths.node(name) for name in names]), strict=True
        ):
            if not isinstance(got, ZooKeeperError):
                with suppress(BadRecord):
                    address = codec.decode(got.data, Node).address
                    if address is not None:
                        found[name] = address
        return found

    def _remove(self, needed: Mapping[str, Need]) -> None:
        models = self._models()
        is_sure = (
            self._session.state is State.CONNECTED
            and self._is_complete()
            and bool(models)
            and not any(model.refused for model in models.values())
        )
        here = self._store.ages()
        now = self._now()
        if not is_sure:
            self._unneeded_since.clear()
            return
        self._unneeded_since = {
            file_id: self._unneeded_since.get(file_id, now) for file_id in here if file_id not in needed
        }
        for file_id in disposable(
            needed, here, self._unneeded_since, now, grace_s=GRACE_S, arrival_grace_s=ARRIVAL_GRACE_S
        ):
            try:
                self._store.remove(file_id)
            except OSError as error:
                self._log.warning("model_file.not_removed", file=file_id, error=str(error))
                continue
            self.removed += 1
            self._log.info("model_file.removed", file=file_id)
            self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_model_files", {"state": "here"}, len(self._store.ids())
        yield "zkd_model_files", {"state": "missing"}, len(self._missing())
        yield "zkd_model_files_fetched_total", {}, self.fetched
        yield "zkd_model_files_removed_total", {}, self.removed
        yield "zkd_model_files_damaged_total", {}, self.damaged
