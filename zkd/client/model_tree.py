"""Registered models in the tree: read with doubt, changed in one transaction each.

Every change writes the head of its model at the version that was read, so changes of one model happen one after the
other, whatever else they touch: no alias can come to point to a version that goes in the same moment. A change whose
answer is lost is found again by what it would have left: a version by its text, a change of an alias by its line in
the history.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from zkd import codec
from zkd.client.dropbox import ANY_VERSION, OUTAGE_MAX_S
from zkd.client.outstanding import NO_ANSWER
from zkd.core.registry import (
    Registered,
    checked_version,
    is_alias_name,
    is_model_name,
    read_alias,
    read_head,
    read_version,
    version_number,
)
from zkd.errors import (
    BadRecord,
    BadVersion,
    DataDamaged,
    ModelInUse,
    ModelNotFound,
    MultiFailed,
    NodeExists,
    NoNode,
    ZooKeeperError,
)
from zkd.registry import Alias, ModelHead, ModelVersion
from zkd.zk import Create, Delete, SetData, ensure_path

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zkd.client.dropbox import DropBox
    from zkd.zk import Op, Znode

    Edit = Callable[[Registered, Alias | None], Alias | None]

T = TypeVar("T")

READ_AT_ONCE = 16  # versions: some kB each, and a reply has no limit at the server
REMOVED_AT_ONCE = 200


class ModelTree:
    def __init__(self, box: DropBox) -> None:
        self._box = box
        self._paths = box.paths

    # --- Reading ----------------------------------------------------------------------------------------

    async def names(self) -> list[str]:
        """Also of models whose versions are all gone."""
        return sorted(filter(is_model_name, await self._box.children(self._paths.models)))

    async def read(self, name: str) -> Registered:
        """The model, whether or not it has versions. Raises `ModelNotFound`, `DataDamaged` if its head lies."""
        return (await self._read(name))[0]

    async def _read(self, name: str) -> tuple[Registered, int]:
        """And the version of its head's znode."""
        paths = self._paths
        try:
            if not is_model_name(name):
                raise NoNode(name)
            found = await self._box.read(paths.model(name))
            head = read_head(found.data)
        except NoNode:
            raise ModelNotFound(f"there is no model {name[:150]} below {paths.root}") from None
        except BadRecord as error:
            raise DataDamaged(f"{paths.model(name)}: {error}") from None
        numbers = [
            number for leaf in await self._box.children(paths.model_versions(name)) if (number := version_number(leaf))
        ]
        names = [leaf for leaf in await self._box.children(paths.aliases(name)) if is_alias_name(leaf)]
        versions: dict[int, ModelVersion] = {}
        aliases: dict[str, Alias] = {}
        refused: dict[str, str] = {}
        for number, got in zip(
            sorted(numbers),
            await self._box.get_many([paths.model_version(name, each) for each in sorted(numbers)], READ_AT_ONCE),
            strict=True,
        ):
            try:
                if not isinstance(got, NoNode):
                    versions[number] = read_version(_data(got))
            except BadRecord as error:
                refused[f"versions/{number}"] = str(error)
        for alias, got in zip(
            sorted(names),
            await self._box.get_many([paths.alias(name, each) for each in sorted(names)], READ_AT_ONCE),
            strict=True,
        ):
            try:
                if not isinstance(got, NoNode):
                    aliases[alias] = read_alias(_data(got))
            except BadRecord as error:
                refused[f"aliases/{alias}"] = str(error)
        return Registered(name, head, versions, aliases, refused), found.stat.version

    # --- Changing ---------------------------------------------------------------------------------------

    async def publish(self, name: str, version: ModelVersion) -> int:
        """Make this the next version of a model, or the first of a new one; its number."""
        paths, text = self._paths, checked_version(version)
        sent: list[int] = []  # numbers that it may have got by tries whose answers were lost

        async def attempt() -> int:
            for number in sent:
                with suppress(NoNode):
                    if (await self._box.read(paths.model_version(name, number))).data == text:
                        return number
            try:
                model, at = await self._read(name)
            except ModelNotFound:
                ops: list[Op] = [
                    Create(paths.model(name), codec.encode(ModelHead(1))),
                    Create(paths.model_versions(name)),
                    Create(paths.aliases(name)),
                ]
                number = 1
            else:
                number = max([model.head.latest, *model.versions]) + 1
                ops = [SetData(paths.model(name), codec.encode(ModelHead(number)), at)]
            sent.append(number)
            await self._box.session.multi([*ops, Create(paths.model_version(name, number), text)])
            return number

        return await self._until_done(name, attempt)

    async def change(self, name: str, alias: str, edit: Edit) -> Alias | None:
        """Have an alias be what `edit` makes of it; None removes it, or keeps it from being."""
        paths = self._paths
        sent: list[Alias | None] = []

        async def attempt() -> Alias | None:
            model, at = await self._read(name)
            now = model.aliases.get(alias)
            if f"aliases/{alias}" in model.refused:
                raise DataDamaged(f"{paths.alias(name, alias)}: {model.refused[f'aliases/{alias}']}")
            for former in sent:
                if former == now or (former is not None and now is not None and former.history[-1] in now.history):
                    return former
            wanted = edit(model, now)
            if wanted == now:
                return now
            path = paths.alias(name, alias)
            if wanted is None:
                op: Op = Delete(path, ANY_VERSION)
            else:
                text = codec.encode(wanted)
                read_alias(text)
                op = Create(path, text) if now is None else SetData(path, text, ANY_VERSION)
            sent.append(wanted)
            await self._box.session.multi([SetData(paths.model(name), codec.encode(model.head), at), op])
            return wanted

        return await self._until_done(name, attempt)

    async def remove(self, name: str, version: int | None) -> None:
        """Remove a version that no alias points to, or all of them with the aliases. The head stays: numbers are not
        given again. Raises `ModelNotFound`, `ModelInUse`."""
        paths = self._paths
        was_sent = False

        async def attempt() -> bool:
            """Whether nothing is left to do."""
            nonlocal was_sent
            model, at = await self._read(name)
            numbers = {*model.versions, *(int(each[9:]) for each in model.refused if each.startswith("versions/"))}
            names = {*model.aliases, *(each[8:] for each in model.refused if each.startswith("aliases/"))}
            if version is None:
                if not numbers and not names and not was_sent:
                    raise ModelNotFound(f"there is no model {name} below {paths.root}")
                going = [*map(paths.alias, [name] * len(names), sorted(names))]
                going += [paths.model_version(name, number) for number in sorted(numbers)]
            else:
                if version not in numbers:
                    if was_sent:
                        return True
                    raise ModelNotFound(f"model {name} has no version {version}")
                if pointing := model.pointing(version):
                    raise ModelInUse(
                        f"version {version} of {name} is what {', '.join(pointing)} points to; move it first"
                    )
                going = [paths.model_version(name, version)]
            if not going:
                return True
            some = going[:REMOVED_AT_ONCE]
            was_sent = True
            head = SetData(paths.model(name), codec.encode(model.head), at)
            await self._box.session.multi([head, *(Delete(path, ANY_VERSION) for path in some)])
            return len(some) == len(going)

        while not await self._until_done(name, attempt):
            continue

    async def _until_done(self, name: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until nobody else changed the model between what was read and what was written."""
        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return await attempt()
            except MultiFailed as error:
                if not isinstance(error.cause, BadVersion | NodeExists | NoNode):
                    raise error.cause from None
                if time.monotonic() >= give_up:
                    raise ModelInUse(f"{name}: others change it all the time; nothing was changed") from None
                if isinstance(error.cause, NoNode):
                    await self._mend(name)
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)

    async def _mend(self, name: str) -> None:
        """Make the directories that are missing: of the first model of this root, or taken by somebody."""
        with suppress(*NO_ANSWER):
            await ensure_path(self._box.session, self._paths.models)
            if await self._box.session.exists(self._paths.model(name)) is not None:
                await ensure_path(self._box.session, self._paths.model_versions(name))
                await ensure_path(self._box.session, self._paths.aliases(name))


def _data(got: Znode | ZooKeeperError) -> bytes:
    if isinstance(got, ZooKeeperError):
        raise BadRecord("$", f"expected a znode that can be read: {got}")
    return got.data
