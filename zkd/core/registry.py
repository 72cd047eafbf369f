"""Registered models: what stands below ``models/<name>`` believed as far as it can be checked, how aliases change, and
which files belong on which node.

    NAME            the newest version        NAME@3    a version        NAME@live    what the alias points to

An alias's history is a stack with a record: a move to a version puts it on top, a rollback takes the top away and is
written down as a line of its own. So two rollbacks in a row go back two versions, not to and fro.

A version's file belongs on the first `REPLICAS` live keepers of the ring by rendezvous hash of its digest, and what an
alias points to, or its canary, on every node. Whoever has the ring and the tree computes the same: nothing says where
files lie.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from zkd import codec
from zkd.core.placement import place
from zkd.errors import BadRecord, ModelInUse, ModelNotFound
from zkd.manifests import Keeper, Ring
from zkd.paths import NodeId
from zkd.registry import HISTORY_MAX, VERSION_BYTES_MAX, Alias, Canary, ModelHead, ModelVersion, Move

REPLICAS = 3
NEWEST = "latest"  # no alias has this name
NAME_RULE = "1 to 128 letters, digits and _ . -, the first a letter or digit"
ALIAS_RULE = f"1 to 128 letters, digits and _ . -, the first a letter, and not {NEWEST!r}"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}\Z")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}\Z")


# --- Names --------------------------------------------------------------------------------------------------


class ModelRef(NamedTuple):
    """One model as people name it. Neither a version nor an alias: the newest version."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        at = self.version if self.version is not None else self.alias
        return self.name if at is None else f"{self.name}@{at}"


def is_model_name(text: str) -> bool:
    return _NAME.match(text) is not None


def is_alias_name(text: str) -> bool:
    return _ALIAS.match(text) is not None and text != NEWEST


def version_number(text: str) -> int | None:
    return int(text) if _NUMBER.match(text) else None


def split_ref(text: str) -> ModelRef:
    """The model that this names, or `BadRecord`."""
    name, at, rest = text.partition("@")
    if is_model_name(name):
        if not at or rest == NEWEST:
            return ModelRef(name)
        if (version := version_number(rest)) is not None:
            return ModelRef(name, version=version)
        if is_alias_name(rest):
            return ModelRef(name, alias=rest)
    raise BadRecord("$.model", f"expected NAME, NAME@VERSION or NAME@ALIAS, got {text[:200]!r}")


# --- What stands in the tree ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Registered:
    """A model: its versions and aliases, those that could be believed; `refused` says why others were not."""

    name: str
    head: ModelHead
    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    aliases: Mapping[str, Alias] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)  # "versions/3" -> why

    def number(self, ref: ModelRef) -> int:
        """The version that is meant now. Raises `ModelNotFound`."""
        if not self.versions:
            raise ModelNotFound(f"there is no model {self.name}")
        if ref.version is not None:
            number = ref.version
        elif ref.alias is not None:
            if ref.alias not in self.aliases:
                known = ", ".join(sorted(self.aliases)) or "none"
                raise ModelNotFound(f"model {self.name} has no alias {ref.alias}; it has {known}")
            number = self.aliases[ref.alias].version
        else:
            number = max(self.versions)
        if number not in self.versions:
            said = self.refused.get(f"versions/{number}")
            raise ModelNotFound(f"model {self.name} has no version {number}{f' that can be read: {said}' * bool(said)}")
        return number

    def pointing(self, version: int) -> list[str]:
        """The aliases that point to this version, or have it as canary."""
        return sorted(name for name, alias in self.aliases.items() if version in served(alias))


def read_head(text: bytes) -> ModelHead:
    """What stands at ``models/<name>``, or `BadRecord`."""
    return codec.decode(text, ModelHead)


def read_version(text: bytes) -> ModelVersion:
    """What stands at ``models/<name>/versions/<n>``, or `BadRecord`."""
    if len(text) > VERSION_BYTES_MAX:
        raise BadRecord("$", f"expected at most {VERSION_BYTES_MAX} bytes, got {len(text)}")
    version = codec.decode(text, ModelVersion)
    names = [feature.name for feature in version.features]
    if not names or len(set(names)) < len(names):
        raise BadRecord("$.features", "expected at least one, and each name once")
    if version.classes is not None and (
        len(version.classes) < 2 or len({(type(each) is bool, each) for each in version.classes}) < len(version.classes)
    ):
        raise BadRecord("$.classes", "expected at least two, each of them once")
    return version


def read_alias(text: bytes) -> Alias:
    """What stands at ``models/<name>/aliases/<alias>``, or `BadRecord`."""
    alias = codec.decode(text, Alias)
    if alias.history and alias.history[-1].version != alias.version:
        raise BadRecord("$.history", f"expected {alias.version} in the last line, got {alias.history[-1].version}")
    if alias.canary is not None and alias.canary.version == alias.version:
        raise BadRecord("$.canary.version", f"expected another version than {alias.version}, which is served")
    return alias


def checked_version(version: ModelVersion) -> bytes:
    """The text of a version that may be published, or `BadRecord`."""
    for name, value in version.metrics.items():
        if not math.isfinite(value):
            raise BadRecord(f"$.metrics.{name[:128]}", f"expected a finite number, got {value}")
    text = codec.encode(version)
    read_version(text)
    return text


# --- Changes of an alias --------------------------------------------------------------------------------------


class Hand(NamedTuple):
    """Who changes something, when, and why."""

    by: str
    at_ms: int
    why: str = ""


def moved(alias: Alias | None, version: int, hand: Hand) -> Alias:
    """The alias, new or old, on this version; a canary ends. Itself if nothing changes."""
    if alias is not None and alias.version == version and alias.canary is None:
        return alias
    return _onto(alias, version, hand, is_rollback=False)


def with_canary(alias: Alias, canary: Canary, hand: Hand) -> Alias:
    """The alias with this canary beside its version; one that was there ends. Raises `ModelInUse`."""
    if canary.version == alias.version:
        raise ModelInUse(f"version {canary.version} is served already: a canary is another one")
    words = f"canary {canary.version}, {'shadow, ' * canary.shadow}{canary.percent:g} %"
    return replace(
        alias, canary=canary, history=_and(alias, Move(alias.version, hand.at_ms, hand.by, _said(words, hand)))
    )


def without_canary(alias: Alias, hand: Hand, *, only: Canary | None = None) -> Alias:
    """The alias without its canary; itself if it has none, or not `only` this one."""
    if alias.canary is None or only not in (None, alias.canary):
        return alias
    words = _said(f"canary {alias.canary.version} taken back", hand)
    return replace(alias, canary=None, history=_and(alias, Move(alias.version, hand.at_ms, hand.by, words)))


def promoted(alias: Alias, hand: Hand) -> Alias:
    """The alias on what was its canary. Raises `ModelInUse` if it has none."""
    if alias.canary is None:
        raise ModelInUse("there is no canary to promote")
    return _onto(alias, alias.canary.version, hand, is_rollback=False)


def rolled_back(alias: Alias, versions: Iterable[int], hand: Hand) -> Alias:
    """A canary is taken back; without one the alias goes to where it was before, as far as that is still among
    `versions`. Raises `ModelNotFound` if there is no such version."""
    if alias.canary is not None:
        return without_canary(alias, hand)
    there = set(versions)
    *before, _ = _stack(alias)
    while before:
        version = before.pop()
        if version in there and version != alias.version:
            return _onto(alias, version, hand, is_rollback=True)
    raise ModelNotFound("there is no version to go back to: the alias was nowhere else, or that version is gone")


def served(alias: Alias) -> list[int]:
    """The versions that answer requests to this alias."""
    return [alias.version] if alias.canary is None else [alias.version, alias.canary.version]


def _onto(alias: Alias | None, version: int, hand: Hand, *, is_rollback: bool) -> Alias:
    return Alias(version, None, _and(alias, Move(version, hand.at_ms, hand.by, hand.why, is_rollback)))


def _and(alias: Alias | None, move: Move) -> list[Move]:
    before = [] if alias is None else alias.history or [Move(alias.version, 0, "")]  # set by hand, without a history
    return [*before, move][-HISTORY_MAX:]


def _said(words: str, hand: Hand) -> str:
    return f"{words}: {hand.why}" if hand.why else words


def _stack(alias: Alias) -> list[int]:
    """The versions that lie one on the other, the present one on top."""
    stack: list[int] = []
    for move in alias.history:
        while move.is_rollback and stack:
            stack.pop()  # what was undone, and what lay between and was gone by then
            if stack and stack[-1] == move.version:
                break
        if not stack or stack[-1] != move.version:
            stack.append(move.version)
    return stack or [alias.version]


# --- Files ----------------------------------------------------------------------------------------------------


def live(ring: Ring) -> list[Keeper]:
    """The nodes that take files now."""
    return [keeper for keeper in ring.keepers if keeper.node not in ring.lost]


def order(file_id: str, keepers: Sequence[Keeper]) -> tuple[NodeId, ...]:
    """All of these nodes in the order in which they would have the file; zones as far apart as they can be."""
    return place(file_id, 1, len(keepers), keepers, cap=None)[0] if keepers else ()


def homes(file_id: str, keepers: Sequence[Keeper]) -> tuple[NodeId, ...]:
    """The nodes that have to hold the file, whatever aliases there are."""
    return place(file_id, 1, REPLICAS, keepers, cap=None)[0] if keepers else ()


class Need(NamedTuple):
    size: int
    is_everywhere: bool  # an alias points to it


def needs(models: Iterable[Registered]) -> dict[str, Need]:
    """The files that some version needs."""
    found: dict[str, Need] = {}
    for model in models:
        aliased = {version for alias in model.aliases.values() for version in served(alias)}
        for number, version in model.versions.items():
            known = found.get(version.file.id)
            is_everywhere = number in aliased or (known is not None and known.is_everywhere)
            found[version.file.id] = Need(version.file.size, is_everywhere)
    return found


def wanted(needed: Mapping[str, Need], node: NodeId, keepers: Sequence[Keeper]) -> dict[str, int]:
    """The files that this node should hold, with their sizes; those that it serves first."""
    here = {keeper.node for keeper in keepers}
    sorted_needs = sorted(needed.items(), key=lambda item: not item[1].is_everywhere)
    return {
        file_id: need.size
        for file_id, need in sorted_needs
        if need.is_everywhere or (node in here and node in homes(file_id, keepers))
    }


def disposable(
    needed: Mapping[str, Need],
    here: Mapping[str, float],
    unneeded_since: Mapping[str, float],
    now: float,
    *,
    grace_s: float,
    arrival_grace_s: float,
) -> list[str]:
    """The files that no version needs any more. `here` has the seconds since each came: a push brings the file before
    there is a version that needs it."""
    return [
        file_id
        for file_id, age_s in here.items()
        if file_id not in needed and age_s >= arrival_grace_s and now - unneeded_since.get(file_id, now) >= grace_s
    ]
