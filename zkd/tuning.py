"""A node's settings over time: what its machine says, and what the tree says for many nodes, merged and applied.

    tree --- ConfigReader --- judge --- on disk --- merged with what the machine says --- the live part applied
                                 \\-- refused: the last good revision stays, and the heartbeat says why

Revisions are judged by `zkd.core.config`. What was taken over is on the disk before it counts, so a restart without
ZooKeeper begins with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from structlog.typing import FilteringBoundLogger as Log

from zkd.configs import ConfigStanding, OwnValue
from zkd.core.config import Effective, Refusal, Snapshot, judge, kept_text, layers_of, merge, own_of, plain, read_kept
from zkd.credentials import read_auth, tls_context
from zkd.errors import BadSettings, DataDamaged, ZooKeeperError
from zkd.node.config import ConfigReader, Texts, read
from zkd.paths import Paths
from zkd.settings import Settings, changed, flat, with_live
from zkd.store import ConfigFile
from zkd.zk import Session

FIRST_LOOK_S = 1.0  # a start waits so long for ZooKeeper, before it begins with what was kept


class Tuning:
    """`settings` is what holds now. `tell` hears of every change of it, and of refusals."""

    def __init__(
        self,
        local: Settings,
        origins: Mapping[str, str] | None,
        file: ConfigFile,
        zkd: str,
        log: Log,
        tell: Callable[[], None],
    ) -> None:
        self.settings = local
        self._local = local
        self._own = own_of(local, origins)
        self._file = file
        self._zkd = zkd
        self._log = log
        self._tell = tell
        self._paths = Paths(local.zookeeper.root)
        self._cluster = f"{local.zookeeper.hosts}{local.zookeeper.root}"
        self.layers = layers_of(local.node.name, local.node.labels)
        self._held = Snapshot()
        self._refusal: Refusal | None = None
        self._source: Literal["tree", "disk", "none"] = "none"
        self._need_restart: list[str] = []

    # --- A node's beginning -----------------------------------------------------------------------------

    async def begin(self) -> None:
        """Have settings to begin with, also those that only hold from a start on: from the tree, or as kept."""
        self._read_kept()
        texts = await self._first_look()
        if texts is not None:
            found = judge(self._held, *texts, self._zkd)
            if isinstance(found, Refusal):
                self._refuse(found)
            else:
                if found != self._held:
                    await self._keep(found)
                self._held, self._source = found, "tree" if found.revision else "none"
        self.settings = self._merged().settings
        if self._held.revision:
            self._log.info("config.begun", revision=self._held.revision, source=self._source)

    def _read_kept(self) -> None:
        try:
            text = self._file.read()
            kept = None if text is None else read_kept(self._cluster, text)
        except (OSError, DataDamaged, BadSettings) as error:
            self._log.warning("config.kept_unusable", error=str(error), next="it is replaced by what the tree says")
            return
        if kept is not None:
            self._held, self._source = kept, "disk"

    async def _first_look(self) -> Texts | None:
        """What the tree says, if it can be asked soon. A session of its own: the node's begins when it can work."""
        where = self._local.zookeeper
        session = Session(
            where.hosts, timeout_s=where.session_timeout_s, auth=read_auth(where), tls=tls_context(where.tls)
        )
        try:
            async with asyncio.timeout(FIRST_LOOK_S), session:
                await session.connected(FIRST_LOOK_S)
                await session.sync(self._paths.root)
                return await read(session, self._paths, self.layers)
        except (ZooKeeperError, TimeoutError) as error:
            self._log.info("config.not_asked", error=str(error) or f"no answer in {FIRST_LOOK_S:g} s")
            return None

    # --- While it runs ----------------------------------------------------------------------------------

    async def run(self, session: Session) -> None:
        """Follow the tree. Unbounded: for as long as the node lives."""
        newest: asyncio.Queue[Texts] = asyncio.Queue(1)

        def take(texts: Texts) -> None:
            if newest.full():
                newest.get_nowait()  # whoever flaps ten times a second is followed as fast as the disk is
            newest.put_nowait(texts)

        reader = ConfigReader(session, self._paths, self.layers, self._log)
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.run(take))
            while True:
                await self._take(await newest.get())

    async def _take(self, texts: Texts) -> None:
        found = judge(self._held, *texts, self._zkd)
        if isinstance(found, Refusal):
            if found != self._refusal:
                self._refuse(found)
                self._tell()
            return
        source: Literal["tree", "none"] = "tree" if found.revision else "none"
        if found == self._held and self._refusal is None and self._source == source:
            return
        if found != self._held:
            if found.revision < self._held.revision:
                self._log.warning("config.went_back", held=self._held.revision, found=found.revision)
            await self._keep(found)
        self._held, self._refusal, self._source = found, None, source
        live = self._apply()
        self._log.info(
            "config.applied",
            revision=found.revision,
            changed=live,
            need_restart=self._need_restart,
            own=list(self._own),
        )
        self._tell()

    async def _keep(self, snapshot: Snapshot) -> None:
        try:
            await asyncio.to_thread(self._file.write, kept_text(self._cluster, snapshot))
        except OSError as error:  # a full disk, say: it holds all the same, until the next start without ZooKeeper
            self._log.warning("config.not_kept", revision=snapshot.revision, error=str(error))

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self._log.error(
            "config.refused", revision=refusal.revision, held=self._held.revision, because="; ".join(refusal.faults)
        )

    def _merged(self) -> Effective:
        return merge(self._local, self._own, self._held.layers)

    def _apply(self) -> list[str]:
        """Take over what may change while it runs; the keys of which that is."""
        wanted = self._merged().settings
        live, self._need_restart = changed(self.settings, wanted)
        self.settings = with_live(self.settings, wanted)
        return live

    def reload(self, local: Settings, origins: Mapping[str, str] | None) -> list[str]:
        """The machine says something else now; gives the changed keys that need a restart."""
        self._local, self._own = local, own_of(local, origins)
        live = self._apply()
        self._log.info("settings.reloaded", changed=live, need_restart=self._need_restart)
        self._tell()
        return self._need_restart

    # --- What people see --------------------------------------------------------------------------------

    def standing(self) -> ConfigStanding:
        values = flat(self._local)
        return ConfigStanding(
            revision=self._held.revision,
            source=self._source,
            refused=None if self._refusal is None else self._refusal.revision,
            faults=[] if self._refusal is None else self._refusal.faults,
            need_restart=self._need_restart,
            own={key: OwnValue(plain(values[key]), origin) for key, origin in self._own.items()},
        )

    @property
    def fault(self) -> str | None:
        """Why the newest revision is not in force, in a line."""
        if self._refusal is None:
            return None
        return f"config revision {self._refusal.revision or '?'} refused, {self._held.revision} holds"

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_config_revision", {}, self._held.revision
        yield "zkd_config_refused", {}, float(self._refusal is not None)
        yield "zkd_config_need_restart", {}, len(self._need_restart)
