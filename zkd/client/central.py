"""The settings that are said for many nodes at once: `client.settings`.

Every change is one transaction that writes the head at the version that was read: the layers, the head, the history and
what falls out of it. Somebody else's change in between means: read again, and make the same edit of what there is now.
A change whose answer is lost is found again in the history, by its id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec

from zkd import codec
from zkd.client.desired import whoami
from zkd.client.dropbox import ANY_VERSION, OUTAGE_MAX_S
from zkd.client.outstanding import NO_ANSWER
from zkd.configs import REVISIONS_KEPT, ConfigChange, ConfigHead, ConfigLayer, ConfigRevision, ConfigStanding, Values
from zkd.core.config import (
    CLUSTER,
    Layers,
    edited,
    expect_layer,
    expect_named,
    expect_valid,
    plain,
    read_head,
    read_layer,
    said_at,
    without_empty,
)
from zkd.errors import (
    BadRecord,
    BadSettings,
    BadVersion,
    ConfigConflict,
    ConfigNotFound,
    DataDamaged,
    MultiFailed,
    NodeExists,
    NoNode,
    ZooKeeperError,
)
from zkd.settings import KEYS, value_of
from zkd.zk import Create, Delete, SetData, Znode, ensure_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zkd.client.client import Client
    from zkd.client.dropbox import DropBox
    from zkd.paths import NodeId, Paths
    from zkd.zk import Op


FORGOTTEN_AT_ONCE = 20  # revisions that fall out of the history with one change


@dataclass(frozen=True)
class Central:
    """All that is said centrally, at one revision; `unreadable` layers are there and make no sense."""

    revision: int
    layers: Layers
    unreadable: dict[str, str] = field(default_factory=dict)
    _versions: dict[str, int] = field(default_factory=dict)  # of the znodes, the head's under ""
    _named: dict[str, int] = field(default_factory=dict)  # the revisions that the head names, or would


Edit = Callable[[Central], Awaitable[Layers]]


class CentralSettings:
    """`layer` is ``cluster``, ``nodes/<node>``, or ``labels/<name>=<value>`` (`zkd.paths.label_layer`)."""

    def __init__(self, client: Client, box: DropBox) -> None:
        self._client = client
        self._box = box
        self._paths = box.paths
        self._zkd = version("zkd")

    # --- Reading ----------------------------------------------------------------------------------------

    async def read(self) -> Central:
        """What is said now, all of one revision. A head that makes no sense is told as the layer ``""``."""
        paths = self._paths
        while True:  # bounded by how often people change it
            try:
                head = await self._box.read(paths.config)
            except NoNode:
                return Central(0, {})
            names = [CLUSTER]
            for kind, directory in (("labels", paths.config_labels), ("nodes", paths.config_nodes)):
                names += [f"{kind}/{name}" for name in sorted(await self._box.children(directory))]
            found = await self._box.get_many([*map(paths.config_layer, names), paths.config])
            again = found.pop()
            if isinstance(again, ZooKeeperError) or again.stat.mzxid != head.stat.mzxid:
                continue
            told, unreadable = None, {}
            try:
                told = read_head(head.data)
                revision = 0 if told is None else told.revision
            except BadRecord as error:
                unreadable[""] = str(error)
                revision = max(await self._numbers(), default=0)
            central = Central(revision, {}, unreadable, {"": head.stat.version})
            for name, each in zip(names, found, strict=True):
                _sort_in(central, told, name, each)
            for name in told.layers or () if told is not None else ():
                if name not in names:
                    central.unreadable[name] = "it was removed"
            return central

    async def history(self, limit: int = REVISIONS_KEPT) -> list[ConfigRevision]:
        """What the last revisions changed, the newest first; what makes no sense is left out."""
        numbers = (await self._numbers())[:limit]
        found = []
        for each in await self._box.get_many([self._paths.config_revision(number) for number in numbers]):
            with suppress(BadRecord):
                if not isinstance(each, ZooKeeperError):
                    found.append(codec.decode(each.data, ConfigRevision))
        return found

    async def at(self, revision: int, now: Central | None = None) -> Layers:
        """What was said at a revision. Raises `ConfigNotFound` if that is not kept."""
        now = await self.read() if now is None else now
        if not 0 <= revision <= now.revision:
            raise ConfigNotFound(f"there is no revision {revision}; the newest is {now.revision}")
        layers = said_at(revision, now.revision, now.layers, await self.history())
        if layers is None:
            raise ConfigNotFound(f"revision {revision} cannot be told: too little of what changed since is kept")
        return layers

    async def standings(self) -> dict[NodeId, ConfigStanding | None]:
        """How far each node that is here is with it; None of one that does not say."""
        statuses, here = await self._client.statuses(), await self._client.nodes()
        return {
            node: statuses[node].config
            if node in statuses and statuses[node].incarnation == here[node].incarnation
            else None
            for node in sorted(here)
        }

    # --- Changing ---------------------------------------------------------------------------------------

    async def set(
        self, values: Mapping[str, Any], *, layer: str = CLUSTER, why: str = "", expect: int | None = None
    ) -> ConfigRevision | None:
        """Say these settings, by dotted key; what else the layer says stays. The new revision, None if nothing changes.

        Raises `BadSettings` with every fault, a line each; then nothing was written. `expect`: the revision that this
        is a change of; `ConfigConflict` if there is another by now.
        """
        given = {key: _plain(key, value) for key, value in values.items()}
        return await self._edit(layer, given, (), why, expect)

    async def unset(
        self, keys: Iterable[str], *, layer: str = CLUSTER, why: str = "", expect: int | None = None
    ) -> ConfigRevision | None:
        """Say nothing of these any more in this layer."""
        return await self._edit(layer, {}, list(keys), why, expect)

    async def _edit(
        self, layer: str, given: Values, dropped: Sequence[str], why: str, expect: int | None
    ) -> ConfigRevision | None:
        expect_layer(layer)
        expect_valid({layer: given})

        async def edit(now: Central) -> Layers:
            for broken in {"", layer} & now.unreadable.keys():
                path = self._paths.config_layer(broken).rstrip("/")
                raise DataDamaged(f"{path}: {now.unreadable[broken]}; `zkd config rollback` or `apply` mends it")
            return edited(now.layers, layer, given, dropped)

        return await self._change(edit, why, expect, replaces=False)

    async def replace(
        self, layers: Mapping[str, Values], *, why: str = "", expect: int | None = None
    ) -> ConfigRevision | None:
        """Say this and nothing else."""
        wanted = {name: {key: _plain(key, value) for key, value in values.items()} for name, values in layers.items()}
        expect_valid(wanted)

        async def edit(_: Central) -> Layers:
            return without_empty(wanted)

        return await self._change(edit, why, expect, replaces=True)

    async def rollback(self, revision: int, *, why: str = "", expect: int | None = None) -> ConfigRevision | None:
        """Say again what was said at a revision, as a new one. Raises `ConfigNotFound`, `BadSettings`."""
        return await self._change(partial(self.at, revision), why, expect, replaces=True)

    async def _change(self, edit: Edit, why: str, expect: int | None, *, replaces: bool) -> ConfigRevision | None:
        paths, ours = self._paths, os.urandom(8).hex()
        sent: list[int] = []

        async def attempt() -> ConfigRevision | None:
            for number in sent:
                with suppress(NoNode, BadRecord):
                    entry = codec.decode((await self._box.read(paths.config_revision(number))).data, ConfigRevision)
                    if entry.id == ours:
                        return entry
            now = await self.read()
            if expect is not None and now.revision != expect:
                raise ConfigConflict(f"expected revision {expect}, it is {now.revision} by now; nothing was changed")
            if "" not in now._versions:
                await self._mend()
                now = await self.read()
            wanted = await edit(now)
            broken = now.unreadable.keys() - {""} if replaces else set()
            touched = {*now.layers, *wanted, *broken}
            changes = [
                ConfigChange(name, now.layers.get(name), wanted.get(name))
                for name in sorted(touched)
                if name in broken or now.layers.get(name) != wanted.get(name)
            ]
            if not changes and "" not in now.unreadable:
                return None
            expect_valid({change.layer: change.after for change in changes if change.after is not None})
            numbers = await self._numbers()
            number = max([now.revision, *numbers]) + 1
            at = datetime.now(UTC).isoformat(timespec="seconds")
            entry = ConfigRevision(number, changes, at, whoami(), why, ours, self._zkd)
            forgotten = numbers[REVISIONS_KEPT - 1 :][-FORGOTTEN_AT_ONCE:]  # the oldest
            ops: list[Op] = [
                SetData(paths.config, self._head(number, ours, now, changes), now._versions[""]),
                *_writes(paths, changes, number, now._versions),
                Create(paths.config_revision(number), codec.encode(entry)),
                *(Delete(paths.config_revision(each), ANY_VERSION) for each in forgotten),
            ]
            sent.append(number)
            await self._box.session.multi(ops)
            return entry

        give_up = time.monotonic() + OUTAGE_MAX_S
        while True:
            try:
                return await attempt()
            except MultiFailed as error:
                if not isinstance(error.cause, BadVersion | NodeExists | NoNode):
                    raise error.cause from None
                if time.monotonic() >= give_up:
                    raise ConfigConflict("others change it all the time; nothing was changed") from None
                if isinstance(error.cause, NoNode):
                    await self._mend()
            except NO_ANSWER as error:
                await self._box.catch_up(give_up, error)

    def _head(self, number: int, ours: str, now: Central, changes: Sequence[ConfigChange]) -> bytes:
        named = {**now._named, **{change.layer: number for change in changes}}
        gone = {change.layer for change in changes if change.after is None}
        layers = {name: revision for name, revision in sorted(named.items()) if name not in gone}
        text = codec.encode(ConfigHead(number, layers, ours, self._zkd))
        read_head(text)  # too many layers are an error of this line
        return text

    async def _mend(self) -> None:
        """Make the directories that are missing: no daemon of this release has run yet, or somebody took them."""
        paths = self._paths
        for path in (paths.config, paths.config_labels, paths.config_nodes, paths.config_history):
            await ensure_path(self._box.session, path)

    # --- Asking -----------------------------------------------------------------------------------------

    async def _numbers(self) -> list[int]:
        """Of the revisions that are kept, the newest first."""
        names = await self._box.children(self._paths.config_history)
        return sorted((int(name) for name in names if name.isdecimal() and len(name) <= 16), reverse=True)


def _plain(key: str, value: Any) -> Any:
    """The value as it stands in the tree: bytes as a number, however written. Bad ones stay, to be refused as given."""
    try:
        return plain(value_of(key, value)) if key in KEYS else value
    except (ValueError, msgspec.ValidationError):
        return value


def _sort_in(central: Central, head: ConfigHead | None, name: str, found: Znode | ZooKeeperError) -> None:
    try:
        expect_layer(name)
    except BadSettings:
        return  # no node looks there
    named = None if head is None or head.layers is None else head.layers.get(name)
    if named is not None:
        central._named[name] = named
    try:
        if isinstance(found, ZooKeeperError) and not isinstance(found, NoNode):
            raise BadRecord("$", str(found))
        layer = None
        if isinstance(found, Znode):
            central._versions[name] = found.stat.version
            layer = read_layer(found.data) if found.data else None
        if head is not None:
            expect_named(head, name, layer)
        if layer is not None:
            central._named[name] = layer.revision
            central.layers.update({name: layer.values} if layer.values else {})
    except BadRecord as error:
        central.unreadable[name] = str(error)


def _writes(paths: Paths, changes: Sequence[ConfigChange], number: int, versions: Mapping[str, int]) -> Iterator[Op]:
    for change in changes:
        path, is_there = paths.config_layer(change.layer), change.layer in versions
        text = b"" if change.after is None else codec.encode(ConfigLayer(number, change.after))
        if text and is_there:
            yield SetData(path, text, versions[change.layer])
        elif text:
            yield Create(path, text)
        elif is_there:
            yield Delete(path, versions[change.layer])
