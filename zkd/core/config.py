"""Central configuration: what layers of the tree and a node's own machine say together, and whether that can be.

    default < config/cluster < config/labels/<name=value> < config/nodes/<node> < file < environment < command line

What a machine says of itself holds there: its file pins what nobody may override from afar, and no remote mistake
makes a machine unlike what is written on it. A revision is taken whole or not at all. Pure: texts in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from zkd import codec
from zkd.configs import HEAD_BYTES_MAX, LAYER_BYTES_MAX, ConfigHead, ConfigLayer, ConfigRevision, Values
from zkd.errors import BadRecord, BadSettings
from zkd.paths import NodeId, is_name, label_layer
from zkd.settings import KEYS, Settings, flat, value_of, with_values
from zkd.sources import suggestion

CLUSTER = "cluster"
FAULTS_MAX = 10  # more do not help anybody, and travel in heartbeats
FAULT_CHARS_MAX = 300

CENTRAL_KEYS = [key for key, about in KEYS.items() if about.is_central]


class Layer(Struct, frozen=True):
    """What one znode says. `name` is its path below ``config/``."""

    name: str
    values: Values


class Snapshot(Struct, frozen=True):
    """One revision as it concerns a node: the layers that apply to it, the strongest last."""

    revision: int = 0  # nothing was ever said
    layers: tuple[Layer, ...] = ()


class Refusal(Struct, frozen=True):
    """A revision that is not taken over; 0 if not even its number can be read."""

    revision: int
    faults: list[str]


class Effective(Struct, frozen=True):
    """Settings, where each value comes from, and the keys for which the machine speaks for itself."""

    settings: Settings
    origins: dict[str, str]
    own: list[str]


def layers_of(node: NodeId, labels: Mapping[str, str]) -> list[str]:
    """The layers that apply to a node, the strongest last: among labels the alphabet decides, for want of a reason."""
    return [CLUSTER, *sorted(label_layer(name, value) for name, value in labels.items()), f"nodes/{node}"]


def expect_layer(name: str) -> str:
    """`name` if a layer can have it. Raises `BadSettings`."""
    kind, _, rest = name.partition("/")
    is_label = kind == "labels" and "=" in rest and "/" not in rest
    if name == CLUSTER or is_label or (kind == "nodes" and is_name(rest)):
        return name
    raise BadSettings(f"{name}: expected cluster, labels/NAME=VALUE or nodes/NODE")


# --- Is it what it should be ------------------------------------------------------------------------------------


def read_head(text: bytes | None) -> ConfigHead | None:
    """None: nothing was ever said. Raises `BadRecord`."""
    if not text:
        return None
    if len(text) > HEAD_BYTES_MAX:
        raise BadRecord("$", f"expected at most {HEAD_BYTES_MAX} bytes, got {len(text)}")
    return codec.decode(text, ConfigHead)


def read_layer(text: bytes) -> ConfigLayer:
    """Raises `BadRecord`; whether there are such settings is not looked at here."""
    if len(text) > LAYER_BYTES_MAX:
        raise BadRecord("$", f"expected at most {LAYER_BYTES_MAX} bytes, got {len(text)}")
    layer = codec.decode(text, ConfigLayer)
    codec.refuse_duplicate_names(text)
    return layer


def expect_named(head: ConfigHead, name: str, layer: ConfigLayer | None) -> None:
    """Raises `BadRecord` if this is not the layer that the head means."""
    if head.layers is None:
        return
    wanted, got = head.layers.get(name), None if layer is None else layer.revision
    if wanted != got:
        expected = "nothing" if wanted is None else f"what revision {wanted} put there"
        raise BadRecord("$.revision", f"expected {expected}, got {'nothing' if got is None else got}")


def faults_of(values: Mapping[str, Any]) -> list[str]:
    """Why these cannot be said centrally, a line each; nothing if they can."""
    faults = []
    for key, value in values.items():
        about = KEYS.get(key)
        if about is None:
            faults.append(f"{key}: unknown setting{suggestion(key, CENTRAL_KEYS)}")
        elif not about.is_central:
            faults.append(f"{key}: expected a setting for many nodes; this one is for each machine's own file to say")
        else:
            try:
                value_of(key, value)
            except (ValueError, msgspec.ValidationError) as error:
                faults.append(f"{key}: {error} (is {value!r})")
    return [fault if len(fault) <= FAULT_CHARS_MAX else f"{fault[:FAULT_CHARS_MAX]}..." for fault in faults]


def judge(
    held: Snapshot, head: bytes | None, layers: Iterable[tuple[str, bytes | None]], zkd: str
) -> Snapshot | Refusal:
    """What a node makes of the texts it found: the next revision, or why it stays with the one it holds."""
    try:
        found = read_head(head)
    except BadRecord as error:
        return Refusal(0, [f"config: {error}"])
    if found is None:
        if held.revision:
            return Refusal(
                0, [f"config: expected revision {held.revision} or a later one, got nothing: it was removed"]
            )
        return held
    read: list[Layer] = []
    faults: list[str] = []
    for name, text in layers:
        try:
            layer = read_layer(text) if text else None
            expect_named(found, name, layer)
            if layer is not None:
                read.append(Layer(name, layer.values))
                faults += (f"config/{name}: {fault}" for fault in faults_of(layer.values))
        except BadRecord as error:
            faults.append(f"config/{name}: {error}")
    if not faults:
        return Snapshot(found.revision, tuple(read))
    more = [f"and {len(faults) - FAULTS_MAX} more"] if len(faults) > FAULTS_MAX else []
    if found.zkd and found.zkd != zkd:
        more.append(f"it was written by zkd {found.zkd}, this node runs {zkd}")
    return Refusal(found.revision, [*faults[:FAULTS_MAX], *more])


# --- What it means ----------------------------------------------------------------------------------------------


def own_of(settings: Settings, origins: Mapping[str, str] | None) -> dict[str, str]:
    """Which of the keys that could be said centrally this machine says itself, and where.

    Without origins, as of settings that a program made: those that are not the default.
    """
    if origins is not None:
        return {key: origins[key] for key in CENTRAL_KEYS if origins.get(key, "default") != "default"}
    mine, usual = flat(settings), flat(Settings())
    return {key: "program" for key in CENTRAL_KEYS if mine[key] != usual[key]}


def merge(local: Settings, own: Mapping[str, str], layers: Sequence[Layer]) -> Effective:
    """What holds on a node. The layers have been judged: there is nothing wrong with their values."""
    values: dict[str, Any] = {}
    origins = {key: own.get(key, "default") for key in CENTRAL_KEYS}
    for layer in layers:
        for key, value in layer.values.items():
            if key not in own:
                values[key] = value_of(key, value)
                origins[key] = f"config/{layer.name}"
    return Effective(with_values(local, values), origins, list(own))


def plain(value: Any) -> Any:
    """A setting's value as it stands in JSON."""
    return msgspec.to_builtins(value, enc_hook=str)


# --- What a node keeps for a start without ZooKeeper ------------------------------------------------------------


class _Kept(Struct, frozen=True, forbid_unknown_fields=True):
    cluster: str  # hosts and root: what another cluster said is no business of ours
    snapshot: Snapshot


def kept_text(cluster: str, snapshot: Snapshot) -> bytes:
    return codec.encode(_Kept(cluster, snapshot))


def read_kept(cluster: str, text: bytes) -> Snapshot | None:
    """What was kept of this cluster, None of another. Raises `BadSettings`: a version of zkd may not know it all."""
    try:
        kept = codec.decode(text, _Kept)
    except BadRecord as error:
        raise BadSettings(str(error)) from None
    if kept.cluster != cluster:
        return None
    faults = [f"config/{layer.name}: {fault}" for layer in kept.snapshot.layers for fault in faults_of(layer.values)]
    if faults:
        raise BadSettings("\n".join(faults))
    return kept.snapshot


# --- Changing ---------------------------------------------------------------------------------------------------

Layers = dict[str, Values]  # all that is said, by layer; one that says nothing is not there


def edited(layers: Layers, layer: str, given: Mapping[str, Any], dropped: Iterable[str]) -> Layers:
    """The same with some settings of one layer given, and others dropped from it."""
    gone = set(dropped)
    values = {**{key: value for key, value in layers.get(layer, {}).items() if key not in gone}, **given}
    return without_empty({**layers, layer: values})


def without_empty(layers: Mapping[str, Values]) -> Layers:
    return {name: values for name, values in layers.items() if values}


def undone(layers: Mapping[str, Values], revision: ConfigRevision) -> Layers:
    """What was said before a revision, from what was said after it."""
    before = {**layers, **{change.layer: change.before or {} for change in revision.changes}}
    return without_empty(before)


def said_at(revision: int, now: int, layers: Layers, history: Iterable[ConfigRevision]) -> Layers | None:
    """What was said at a revision, or None if the history does not tell.

    Changes since are undone; where some of them are not known, as of what was written by hand, those before are done
    again from the first one that is kept.
    """
    known = {each.revision: each for each in history}
    since = range(now, revision, -1)
    if all(number in known for number in since):
        for number in since:
            layers = undone(layers, known[number])
        return layers
    before = range(min(known, default=0), revision + 1)
    if not all(number in known for number in before) or revision not in known:
        return None
    said: Layers = {}
    if before[0] > 1:
        said = dict(layers)
        for number in sorted(known, reverse=True):
            said = undone(said, known[number])
    for number in before:
        said |= {change.layer: change.after or {} for change in known[number].changes}
    return without_empty(said)


def expect_valid(layers: Mapping[str, Values]) -> None:
    """Raises `BadSettings` with every fault, a line each."""
    faults = []
    for name, values in layers.items():
        expect_layer(name)
        prefix = "" if name == CLUSTER else f"{name}: "
        faults += [f"{prefix}{fault}" for fault in faults_of(values)]
        size = len(codec.encode(ConfigLayer(2**53, values)))
        if size > LAYER_BYTES_MAX:
            faults.append(f"{name}: expected at most {LAYER_BYTES_MAX} bytes, got {size}")
    if faults:
        raise BadSettings("\n".join(faults))


def differences(before: Mapping[str, Values], after: Mapping[str, Values]) -> list[tuple[str, str, Any, Any]]:
    """Layer, key, and the values before and after, None where there is none; in a fixed order."""
    return [
        (layer, key, old.get(key), new.get(key))
        for layer in sorted({*before, *after})
        for old, new in [(before.get(layer) or {}, after.get(layer) or {})]
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
