"""`zkd predict MODEL --rows FILE`: rows from here, answered by nodes that serve the model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from zkd.cli.output import write_rows
from zkd.errors import BadRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from zkd.client import Client
    from zkd.client.prediction_wire import Answer

ROWS_AT_ONCE = 512  # in a request
SHOWN_AT_ONCE = 10_000  # in a table, whose columns are as wide as what stands in them
STDIN = "-"


async def predict_rows(
    client: Client,
    model: str,
    rows: Sequence[str],
    file: str | None,
    output: str,
    key: str | None,
    options: Mapping[str, Any],
) -> None:
    """Print a line a row, in order. `rows` are JSON objects; `file` a table, or - for JSON lines on stdin."""
    models = model.split(",")
    features = [feature.name for feature in (await client.models.get(models[0])).version.features]
    if file is None or file == STDIN:
        stdin = (line for line in sys.stdin.buffer if line.strip())
        batches: Iterator[Any] = _of_json("--row", map(str.encode, rows)) if file is None else _of_json("line", stdin)
    else:
        batches = _of_file(file, features)
    held: list[dict[str, Any]] = []
    async with client.predictor(model if len(models) == 1 else models, **options) as predictor:
        async for answer in predictor.many(batches, key=key):
            held += _lines(answer)
            if output == "jsonl" or len(held) >= SHOWN_AT_ONCE:
                write_rows(held, output)
                held = []
    if held:
        write_rows(held, output)


def _lines(answer: Answer) -> list[dict[str, Any]]:
    """As they are printed. What all rows have in common is in none of them but the version."""
    given = {
        name: column.tolist()
        for name in ("prediction", "probabilities", "score", "attributions")
        if (column := getattr(answer, name)) is not None
    }
    about = {} if answer.version is None else {"version": answer.version}
    return [dict(zip(given, values, strict=True)) | about for values in zip(*given.values(), strict=True)]


def _of_json(where: str, texts: Iterator[bytes]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for number, text in enumerate(texts, 1):
        try:
            batch.append(msgspec.json.decode(text, type=dict[str, Any]))
        except msgspec.DecodeError as error:
            raise BadRows(f"{where} {number}", f'expected a JSON object such as {{"x": 1}}: {error}') from None
        if len(batch) == ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _of_file(path: str, features: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Of a table's columns those that are features, so many rows at a time."""
    from zkd.tables.ingest import from_file

    for table in from_file(path):
        there = {name: table[name] for name in features if name in table}
        if len(there) < len(features):
            lacking = ", ".join(name for name in features if name not in table)
            raise BadRows(path, f"expected the columns {lacking}, too")
        rows = len(next(iter(there.values())))
        for start in range(0, rows, ROWS_AT_ONCE):
            yield {name: column[start : start + ROWS_AT_ONCE] for name, column in there.items()}
