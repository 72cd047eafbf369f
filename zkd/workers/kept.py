"""Rows that a kernel gave for a part, as a segment on this node's disk: made here, taken in by the store if asked for.

    <made_dir>/<run>.tmp/    being written
    <made_dir>/<id>/         whole, not synced; nobody knows of it but who waits for the run

The numbers of the rows are those of the part, so that what is computed of a dataset is in its order. The same rows
give the same segment, whoever makes it: to make one twice does no harm.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zkd.errors import NotData
from zkd.kernels.rows import Rows
from zkd.store.segment_files import npy_size, write
from zkd.store.segments import FREE_SHARE
from zkd.tables.columns import described
from zkd.tables.partition import octets


def keep(rows: Rows, numbers: Callable[[], Any] | None, made_dir: Path | None, name: str) -> dict[str, Any]:
    """Write these rows as a segment; which it is, as the value of the run. Raises `NotData`, `OSError`."""
    if numbers is None or made_dir is None:
        raise NotData("$", "rows can be kept for a part of a dataset only, by a node that keeps data")
    which = np.ascontiguousarray(numbers())
    given = {each: np.asarray(array) for each, array in rows.columns.items()}
    wrong = [f"{each} of shape {array.shape}" for each, array in given.items() if array.shape[:1] != which.shape]
    if wrong:
        raise NotData("$", f"expected columns of the part's {len(which)} rows, got {', '.join(wrong)}")
    columns = [described(each, array) for each, array in given.items()]
    stored = [np.ascontiguousarray(array, column.dtype) for column, array in zip(columns, given.values(), strict=True)]
    _expect_room(made_dir, sum(npy_size(column, len(which)) for column in columns))
    directory = made_dir / f"{name}.tmp"
    shutil.rmtree(directory, ignore_errors=True)  # of a run that failed here
    ref = write(directory, len(which), columns, [[octets(array)] for array in (which, *stored)])
    try:
        directory.rename(made_dir / ref.id)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(directory)  # the same rows were made before, and nobody has asked for them yet
    return {"segment": [ref.id, ref.rows, ref.size], "value": rows.value}


def _expect_room(directory: Path, size: int) -> None:
    disk = shutil.disk_usage(directory)
    if size > disk.free - FREE_SHARE * disk.total:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size} bytes to write, {disk.free} free")
