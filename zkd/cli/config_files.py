"""Central settings as a file: TOML or JSON in, TOML out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zkd.errors import BadSettings
from zkd.paths import label_layer, layer_title

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def layers_from(text: bytes, name: str) -> dict[str, dict[str, Any]]:
    """The layers that the tables `cluster`, `labels` and `nodes` say. Raises `BadSettings`."""
    tables = _parse(text, name)
    layers: dict[str, dict[str, Any]] = {}
    faults = []
    for table, inner in tables.items():
        if table == "revision":
            continue  # `show` says it
        if table not in ("cluster", "labels", "nodes"):
            faults.append(f"{name}: {table}: expected a table cluster, labels or nodes")
        elif not isinstance(inner, dict):
            faults.append(f"{name}: {table}: expected a table, got {inner!r}")
        elif table == "cluster":
            layers["cluster"] = dict(_flat(inner))
        else:
            for title, values in inner.items():
                label, equals, value = title.partition("=")
                if not isinstance(values, dict):
                    faults.append(f"{name}: {table}.{title}: expected a table, got {values!r}")
                elif table == "labels" and not (label and equals):
                    faults.append(f'{name}: {table}.{title}: expected a label such as [labels."gpu=yes"]')
                else:
                    layers[label_layer(label, value) if table == "labels" else f"nodes/{title}"] = dict(_flat(values))
    if faults:
        raise BadSettings("\n".join(faults))
    return layers


def _parse(text: bytes, name: str) -> dict[str, Any]:
    import tomllib

    from zkd import codec
    from zkd.errors import BadRecord

    if text.lstrip().startswith(b"{"):
        try:
            found = codec.decode(text, dict[str, Any])
            codec.refuse_duplicate_names(text)
        except BadRecord as error:
            raise BadSettings(f"{name}: {error}") from None
        return found
    try:
        return tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise BadSettings(f"{name}: expected UTF-8, got byte {error.object[error.start]:#04x}") from None
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{name}: expected TOML: {error}") from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys, whether they were written so or as tables in tables."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def tree_of(layers: Mapping[str, Mapping[str, Any]], revision: int) -> dict[str, Any]:
    """The layers as `layers_from` reads them."""
    tree: dict[str, Any] = {"revision": revision, "cluster": {}, "labels": {}, "nodes": {}}
    for layer, values in sorted(layers.items()):
        kind, _, title = layer_title(layer).partition(" ")
        if title:
            tree[f"{kind}s"][title] = dict(sorted(values.items()))
        else:
            tree["cluster"] = dict(sorted(values.items()))
    return tree


def toml_of(layers: Mapping[str, Mapping[str, Any]], revision: int) -> str:
    """The same as TOML. Numbers, texts, truths and lists of them are written in it as in JSON."""
    import json

    lines = [f"# Central settings, revision {revision}. What is not here is not said.", ""]
    tree = tree_of(layers, revision)
    tables = [("[cluster]", tree["cluster"])]
    for kind in ("labels", "nodes"):
        tables += [(f"[{kind}.{json.dumps(title, ensure_ascii=False)}]", tree[kind][title]) for title in tree[kind]]
    for heading, values in tables:
        lines += [heading, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()), ""]
    return "\n".join(lines)
