"""Keeps a node's picture of the registered models true: their versions and aliases, as they stand in the tree.

Read over one recursive watch, which only says where to look: a model that an event named is read again. Versions are
immutable and their numbers are not given twice, so they are read once a connection. What lies is refused with a line in
the log, and is as if it were not there.

While there is no connection the picture stands as it was, and `is_complete` says that it may be old: requests go on
being answered by the aliases that were known last.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from structlog.typing import FilteringBoundLogger as Log

from zkd.core.registry import Registered, is_alias_name, is_model_name, read_alias, read_head, read_version
from zkd.core.registry import version_number as number_of
from zkd.errors import BadRecord, NoAuth, NoNode, ZooKeeperError
from zkd.paths import Paths
from zkd.picture import Picture
from zkd.registry import Alias, ModelVersion
from zkd.zk import Event, Session, ensure_path

READ_AT_ONCE = 16  # versions: some kB each, and a reply has no limit at the server

Key = TypeVar("Key", int, str)


class RegistryView:
    def __init__(self, session: Session, paths: Paths, log: Log) -> None:
        self._session = session
        self._paths = paths
        self._log = log
        self._picture = Picture(
            session,
            log,
            "models",
            watched=[(paths.models, True)],
            saw=self._saw,
            read=self._bring_up_to_date,
            size=self._size,
        )
        self._dirty: dict[str, None] = {}  # models to look at again
        self.models: dict[str, Registered] = {}

    @property
    def is_complete(self) -> bool:
        """Whether there is a connection, on which all of it was read."""
        return self._picture.is_complete

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change of the picture, until the returned function is called."""
        return self._picture.subscribe(listener)

    async def look(self, name: str) -> None:
        """Read this model now: for whom it has to be as new as something that he has just seen.

        Raises what ZooKeeper answers when it cannot.
        """
        if is_model_name(name):
            async with self._picture.looking():
                await self._read_model(name, is_anew=False)

    # --- Watching ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ends only by cancellation, or with the session."""
        await self._picture.run()

    def _saw(self, event: Event) -> None:
        name = event.path.removeprefix(self._paths.models).strip("/").partition("/")[0]
        if name:
            self._dirty[name] = None

    async def _bring_up_to_date(self, is_due: bool) -> None:
        if is_due:
            self._dirty.update(dict.fromkeys(await self._names()))
        await self._look_again()

    def _size(self) -> dict[str, int]:
        return {"models": len(self.models), "versions": sum(len(model.versions) for model in self.models.values())}

    # --- Reading ----------------------------------------------------------------------------------------

    async def _names(self) -> set[str]:
        """All that may have changed: what is there, and what we thought was."""
        try:
            there = await self._session.children(self._paths.models)
        except NoNode:
            await ensure_path(self._session, self._paths.models)  # somebody has deleted it
            there = []
        return {*there, *self.models}

    async def _look_again(self) -> None:
        names, self._dirty = list(self._dirty), {}
        for number, name in enumerate(names):
            if not is_model_name(name):
                self._log.warning("model.name_refused", name=name[:150])
                continue
            try:
                await self._read_model(name, is_anew=not self.is_complete)
            except NoAuth as error:  # costs this one, until the next look at everything
                self._log.warning("model.not_read", name=name, error=str(error))
            except ZooKeeperError:
                self._dirty.update(dict.fromkeys(names[number:]))
                raise

    async def _read_model(self, name: str, *, is_anew: bool) -> None:
        """`is_anew`: also versions that we know; others may stand there since."""
        former = self.models.get(name)
        refused: dict[str, str] = {}
        try:
            head = read_head((await self._session.get(self._paths.model(name))).data)
        except NoNode:
            if self.models.pop(name, None) is not None:
                self._log.info("model.gone", name=name)
            return
        except BadRecord as error:
            self._refuse(name, former, refused, "", error)
            self.models.pop(name, None)
            return
        known = {} if former is None or is_anew else former.versions
        numbers = {
            number for leaf in await self._children(self._paths.model_versions(name)) if (number := number_of(leaf))
        }
        versions = {number: known[number] for number in numbers & known.keys()}
        async for number, text in self._texts(
            {each: self._paths.model_version(name, each) for each in numbers - known.keys()}
        ):
            try:
                versions[number] = read_version(text)
            except BadRecord as error:
                self._refuse(name, former, refused, f"versions/{number}", error)
        aliases: dict[str, Alias] = {}
        leaves = filter(is_alias_name, await self._children(self._paths.aliases(name)))
        async for alias, text in self._texts({each: self._paths.alias(name, each) for each in leaves}):
            try:
                aliases[alias] = read_alias(text)
            except BadRecord as error:
                self._refuse(name, former, refused, f"aliases/{alias}", error)
        self._say(former, name, versions, aliases)
        self.models[name] = Registered(name, head, dict(sorted(versions.items())), aliases, refused)

    async def _children(self, path: str) -> list[str]:
        try:
            return await self._session.children(path)
        except NoNode:
            return []

    async def _texts(self, paths: dict[Key, str]) -> AsyncIterator[tuple[Key, bytes]]:
        """What stands at these; what went meanwhile is left out, its event is on its way."""
        keys = list(paths)
        for start in range(0, len(keys), READ_AT_ONCE):
            some = keys[start : start + READ_AT_ONCE]
            for key, got in zip(some, await self._session.get_many([paths[each] for each in some]), strict=True):
                if isinstance(got, NoNode):
                    continue
                if isinstance(got, ZooKeeperError):
                    raise got
                yield key, got.data

    # --- Telling ----------------------------------------------------------------------------------------

    def _refuse(
        self, name: str, former: Registered | None, refused: dict[str, str], where: str, error: BadRecord
    ) -> None:
        if former is None or former.refused.get(where) != str(error):
            self._log.warning("model.refused", name=name, where=where, error=str(error)[:500])
        refused[where] = str(error)

    def _say(
        self, former: Registered | None, name: str, versions: dict[int, ModelVersion], aliases: dict[str, Alias]
    ) -> None:
        if not self.is_complete:
            return
        for number in versions.keys() - (former.versions if former is not None else {}).keys():
            self._log.info("model.registered", name=name, version=number, file=versions[number].file.id[:12])
        before = {} if former is None else former.aliases
        for alias in aliases.keys() | before.keys():
            new, old = aliases.get(alias), before.get(alias)
            if new != old:
                self._log.info(
                    "alias.changed",
                    name=name,
                    alias=alias,
                    version=None if new is None else new.version,
                    canary=None if new is None or new.canary is None else new.canary.version,
                )

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "zkd_models", {}, sum(bool(model.versions) for model in self.models.values())
        yield "zkd_model_versions", {}, sum(len(model.versions) for model in self.models.values())
        yield "zkd_model_records_refused", {}, sum(len(model.refused) for model in self.models.values())
