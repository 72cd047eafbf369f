"""What a program gives as a table, on its way to parts: arrays, iterators with or without `async`, files.

Sync iterators are advanced in a thread, and so is all sorting: the loop stays free. The number of parts follows from
the size of the table where that is known soon.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zkd.client.sending import Progress
from zkd.errors import BadRows
from zkd.manifests import PARTS_MAX, Column

if TYPE_CHECKING:
    from zkd.client.copies import Scene
    from zkd.tables.columns import Columns
    from zkd.tables.partition import Partition

PARTS_MIN = 64
PARTS_A_NODE = 100  # copies of parts that each node has, so that shares even out
PART_BYTES = 4 * 2**20  # smaller ones are not worth a segment each,
PART_BYTES_SMALL = 16 * 2**10  # unless there would be too few to keep all processors busy
BUFFER_BYTES_MAX = 2**30
PEEK_BYTES_MAX = 256 * 2**20  # of a stream are read before it is decided how many parts there are


@dataclass(frozen=True)
class Wanted:
    """What a version is to be."""

    key: str | None
    label: str | None
    parts: int | None
    replicas: int
    quorum: int  # copies that are durable before it is visible
    columns: list[Column] = field(default_factory=list)  # that it has to have; empty: any
    first_row: int = 0


def source_of(data: Any, header: bool | None, dtypes: Mapping[str, str] | None) -> Any:
    """Something to iterate over, with or without `async`."""
    from zkd.tables.ingest import CSV_ENDINGS, batches, from_file

    if isinstance(data, str | os.PathLike):
        is_csv = os.fspath(data).lower().endswith(CSV_ENDINGS)
        return from_file(data, header=header, dtypes=dtypes if is_csv else None)
    return data if hasattr(data, "__aiter__") else batches(data)


async def _batches(source: Any) -> AsyncIterator[Columns]:
    if hasattr(source, "__aiter__"):
        async for batch in source:
            yield batch
        return
    end = object()
    while (batch := await asyncio.to_thread(next, source, end)) is not end:
        yield batch


@asynccontextmanager
async def partitioned(
    source: Any, wanted: Wanted, scene: Scene, directory: Path, progress: Callable[[Progress], None] | None
) -> AsyncIterator[Partition]:
    """All rows by part. Some batches are looked at first, to see whether the table is a small one."""
    from zkd.tables.columns import checked
    from zkd.tables.partition import Partition

    usual = parts_for(len(scene.keepers), wanted.replicas)
    first: list[Columns] = []
    size = rows = 0
    stream = _batches(source)
    if wanted.parts is None:
        async for batch in stream:
            first.append(await asyncio.to_thread(checked, batch))
            size += sum(array.nbytes for array in first[-1].values())
            rows += len(next(iter(first[-1].values())))
            if size >= min(usual * PART_BYTES, PEEK_BYTES_MAX):
                break
    parts = wanted.parts or fewer_for(usual, size, rows)
    with Partition(
        parts,
        wanted.key,
        directory,
        buffer_bytes=buffer_bytes(),
        label=wanted.label,
        first_row=wanted.first_row,
        columns=wanted.columns,
    ) as partition:
        told = 0
        while first:
            await asyncio.to_thread(partition.add, first.pop(0))
        async for batch in stream:
            await asyncio.to_thread(partition.add, batch)
            if progress is not None and partition.rows - told >= 100_000:
                told = partition.rows
                progress(Progress(told, 0, 0, 0))
        if not partition.columns:
            raise BadRows("rows", "expected at least one batch, which says what the columns are")
        yield partition


def parts_for(nodes: int, replicas: int) -> int:
    """How many parts a large table has on so many nodes."""
    count = -(-PARTS_A_NODE * nodes // replicas)
    return min(PARTS_MAX, max(PARTS_MIN, 1 << max(0, count - 1).bit_length()))


def fewer_for(parts: int, size: int, rows: int) -> int:
    """`parts`, or fewer where they would be small."""
    while parts > PARTS_MIN and size // parts < PART_BYTES:
        parts //= 2
    while parts > 1 and (size // parts < PART_BYTES_SMALL or rows < parts):
        parts //= 2
    return parts


def buffer_bytes() -> int:
    """Rows are held in so much memory, and spilled beyond: 1 GiB, or a quarter of what is free if that is less."""
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = BUFFER_BYTES_MAX
    return max(64 * 2**20, min(BUFFER_BYTES_MAX, free // 4))
