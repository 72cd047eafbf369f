"""What one part of a dataset says about its rows, and how to put together what all parts said.

A kernel `x` gives a summary of one part, `combine_x` takes the list of all of them, in part order, and its result may
be combined again. So a table that fits nowhere is described by parts, wherever they lie:

    map_parts("group_sums", "flights", columns=["carrier", "delay"], combine="combine_group_sums")

Parts may be empty. Nothing depends on which node computed what, only on how the rows were cut into parts; counts, and
sums of whole numbers, not even on that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from zkd.kernels.declaration import kernel
from zkd.kernels.shapes import Floats, Labels, Matrix, Numbers, rows_of, side_by_side

Size = Annotated[int, msgspec.Meta(ge=2, le=1_000_000)]
Column: TypeAlias = npt.NDArray[Any]

SKETCH_SIZE = 1024


@dataclass(frozen=True)
class Histogram:
    """Counts in bins between edges, as `histogram` gives them."""

    counts: Numbers
    edges: Floats


@dataclass(frozen=True)
class Groups:
    """Of each key, in ascending order: how many rows, and the sum of each column over them."""

    keys: Column
    counts: Labels
    sums: list[Column]


@dataclass(frozen=True)
class Sketch:
    """Of each column (axis 1): values in ascending order, each standing for as many rows as its weight says.

    The number of rows that are at most v, by weights, is wrong by at most `rank_error` rows, for any v.
    """

    count: Annotated[int, msgspec.Meta(ge=0)]
    values: Matrix
    weights: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    min: Floats
    max: Floats
    rank_error: Annotated[int, msgspec.Meta(ge=0)]
    size: Size = SKETCH_SIZE


@kernel
def gather(values: list[Any]) -> list[Any]:
    """The values of all parts, in part order: what a task on all parts of a dataset gives that combines nothing."""
    return values


@kernel
def combine_histograms(parts: list[Histogram]) -> Histogram:
    """The histogram of all rows from those of the parts, which have the same edges. Exact.

    Give `histogram` its edges, or `bins` and `range`: the range of each part alone is another one. Raises ValueError
    for other edges, and for densities, which do not add up.
    """
    if not parts:
        raise ValueError("expected at least one part, got none")
    edges = parts[0].edges
    for part in parts:
        if part.edges.shape != edges.shape or not np.array_equal(part.edges, edges):
            raise ValueError("expected the same edges in all parts: give `histogram` its edges, or bins and a range")
        if not np.array_equal(part.counts, np.trunc(part.counts)):
            raise ValueError("expected counts, got densities, which do not add up")
    counts = np.zeros(len(edges) - 1, np.int64)
    for part in parts:
        counts += part.counts.astype(np.int64)
    return Histogram(counts, edges)


# --- Groups -------------------------------------------------------------------------------------------


@kernel
def group_sums(key: Column, *columns: npt.NDArray[np.number[Any]]) -> Groups:
    """Rows and column sums for each value of `key`: numbers or text, one a row. The part of one part.

    Sums of whole numbers are exact, those of floats are added pairwise. Raises ValueError for columns of other
    lengths, for keys that are no vector, and OverflowError where a sum of whole numbers does not fit into 64 bits.
    """
    if key.ndim != 1:
        raise ValueError(f"expected one key a row, got shape {list(key.shape)}")
    for column in columns:
        if column.shape != key.shape:
            raise ValueError(f"expected columns of {len(key)} numbers, as there are keys, got {list(column.shape)}")
    keys, index, counts = np.unique(key, return_inverse=True, return_counts=True)
    order = np.argsort(index, kind="stable")  # rows of one key beside each other, in their order
    starts = np.cumsum(counts) - counts
    return Groups(keys, counts, [_sums(column[order], starts) for column in columns])


def _sums(column: Column, starts: npt.NDArray[np.intp]) -> Column:
    if column.dtype.kind not in "biu":
        wide = np.result_type(column.dtype, np.float64)
        return np.add.reduceat(column.astype(wide), starts) if len(starts) else np.zeros(0, wide)
    if len(column) and max(abs(int(column.min())), abs(int(column.max()))) * len(column) >= 2**63:
        raise OverflowError("a sum of whole numbers may not fit into 64 bits: give the column as floats")
    return np.add.reduceat(column.astype(np.int64), starts) if len(starts) else np.zeros(0, np.int64)


@kernel
def combine_group_sums(parts: list[Groups]) -> Groups:
    """Rows and column sums of all keys from those of the parts. Sums are rounded once, however many parts there are.

    Raises ValueError for parts of different columns, and for none.
    """
    if not parts:
        raise ValueError("expected at least one part, got none")
    if len({len(part.sums) for part in parts}) > 1:
        raise ValueError("expected the same columns in all parts")
    full = [part for part in parts if len(part.keys)] or parts[:1]  # an empty list has no dtype of its own
    keys, index = np.unique(np.concatenate([part.keys for part in full]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, index, np.concatenate([part.counts for part in full]))
    sums = [
        _added(np.concatenate([part.sums[column] for part in full]), index, len(keys))
        for column in range(len(full[0].sums))
    ]
    return Groups(keys, counts, sums)


def _added(terms: Column, index: npt.NDArray[np.intp], keys: int) -> Column:
    """For each key the sum of its terms: exact for whole numbers, else exact until it is rounded once."""
    each: list[list[Any]] = [[] for _ in range(keys)]
    for place, term in zip(index.tolist(), terms.tolist(), strict=True):
        each[place].append(term)
    if terms.dtype.kind in "biu":
        return np.array([sum(some) for some in each], np.int64)
    if terms.dtype.kind == "c":
        return np.array([complex(math.fsum(t.real for t in some), math.fsum(t.imag for t in some)) for some in each])
    return np.array([_fsum(some) for some in each], np.float64)


def _fsum(terms: list[float]) -> float:
    try:
        return math.fsum(terms)
    except (OverflowError, ValueError):  # beyond the largest float; or both infinities, which numpy makes NaN
        return float(np.sum(terms))


# --- Quantiles ----------------------------------------------------------------------------------------


@kernel
def quantile_sketch(*columns: Floats, size: Size = SKETCH_SIZE) -> Sketch:
    """Of each column up to `size` values from which its quantiles can be told. The part of one part.

    Exact for up to `size` rows. Else the n sorted rows are cut into `size` blocks, and the middle row stands for its
    block. For any v at most one block has rows on both sides of v, and counting it wholly or not at all, as its middle
    says, is wrong by at most half of it: n/(2 size) rows. Over parts these errors add up, to N/(2 size) of all N rows
    where parts are long, and `combine_quantile_sketches` adds as much again when it brings all to `size` values: a rank
    is off by at most N/size rows, 0.1 % for 1024. Each result says its own bound (`rank_error`, in rows), which holds
    for any parts. Nothing is random. After Agarwal et al., "Mergeable Summaries" (PODS 2012), for one level of merging.

    Raises ValueError for NaN, and for columns of different lengths.
    """
    rows, width = rows_of(columns)
    ordered = np.sort(side_by_side(columns, 0, rows), axis=0)
    if rows and np.isnan(ordered[-1]).any():
        raise ValueError("expected numbers, got NaN, which has no place among them")
    low, high = (ordered[0], ordered[-1]) if rows else (np.full(width, np.inf), np.full(width, -np.inf))
    if rows <= size:
        return Sketch(rows, ordered, np.ones((rows, width), np.int64), low, high, 0, size)
    edges = np.arange(size + 1) * rows // size
    lengths = np.diff(edges)
    weights = np.repeat(lengths[:, None], width, axis=1)
    middles = edges[:-1] + (lengths - 1) // 2
    return Sketch(rows, ordered[middles], weights, low, high, int(lengths.max()) // 2, size)


@kernel
def combine_quantile_sketches(parts: list[Sketch]) -> Sketch:
    """The sketch of all rows from those of the parts, of the smallest of their sizes.

    Exact as long as that many rows suffice; `rank_error` says how wrong a rank can be. Raises ValueError for parts of
    different columns, and for none.
    """
    if not parts:
        raise ValueError("expected at least one part, got none")
    for part in parts:
        if part.values.shape != part.weights.shape or part.min.shape != part.values.shape[1:]:
            raise ValueError("expected a weight for each value, and a least and a largest one for each column")
    full = [part for part in parts if part.count] or parts[:1]
    if len({part.values.shape[1] for part in full}) > 1:
        raise ValueError("expected the same columns in all parts")
    count, size = sum(part.count for part in full), min(part.size for part in full)
    values = np.concatenate([part.values for part in full])
    weights = np.concatenate([part.weights for part in full])
    order = np.argsort(values, axis=0, kind="stable")
    values, weights = np.take_along_axis(values, order, 0), np.take_along_axis(weights, order, 0)
    error = sum(part.rank_error for part in full)
    if len(values) > size:
        kept = [_thinned(values[:, column], weights[:, column], size) for column in range(values.shape[1])]
        values = np.stack([each[0] for each in kept], axis=1)
        weights = np.stack([each[1] for each in kept], axis=1)
        error += max(each[2] for each in kept)
    low = np.min([part.min for part in full], axis=0)
    high = np.max([part.max for part in full], axis=0)
    return Sketch(count, values, weights, low, high, error, size)


def _thinned(values: Floats, weights: Labels, size: int) -> tuple[Floats, Labels, int]:
    """`size` of these weighted values, and by how many rows a rank may be more wrong with them.

    Row r of all rows, in order, is the value whose weights reach r; the middle row of each of `size` blocks stands for
    its block, as in `quantile_sketch`. A value whose weight reaches over an edge is cut there, which changes no rank.
    """
    total = int(weights.sum())
    edges = np.arange(size + 1) * total // size
    lengths = np.diff(edges)
    middles = edges[:-1] + (lengths - 1) // 2
    reach = np.cumsum(weights)
    chosen = values[np.searchsorted(reach, middles, side="right")]
    return chosen, lengths, int(lengths.max()) // 2


@kernel
def sketch_quantiles(sketch: Sketch, q: Floats) -> dict[str, Any]:
    """The quantiles `q` (from 0 to 1) of each column: ``{"values": one row for each q, "rank_error": share of rows}``.

    A value's rank is off by at most that share. Where it is 0 they are numpy's, linearly interpolated; 0 and 1 give the
    least and the largest value in any case. Raises ValueError for `q` outside of 0 to 1, and for no rows.
    """
    if sketch.count == 0:
        raise ValueError("expected at least one row, got none")
    wanted = np.atleast_1d(q)
    if not ((wanted >= 0) & (wanted <= 1)).all():
        raise ValueError("expected quantiles from 0 to 1")
    if sketch.rank_error == 0:
        return {"values": np.quantile(sketch.values, wanted, axis=0), "rank_error": 0.0}
    place = wanted * (sketch.count - 1)
    below, above = np.floor(place).astype(np.int64), np.ceil(place).astype(np.int64)
    columns = []
    for column in range(sketch.values.shape[1]):
        reach = np.cumsum(sketch.weights[:, column])
        low, high = (_at(rows, reach, sketch.values[:, column], sketch, column) for rows in (below, above))
        columns.append(low + (high - low) * (place - below))
    return {"values": np.stack(columns, axis=1), "rank_error": sketch.rank_error / sketch.count}


def _at(rows: Labels, reach: Labels, values: Floats, sketch: Sketch, column: int) -> Floats:
    """The values at these rows, counted from 0 in ascending order."""
    found = values[np.minimum(np.searchsorted(reach, rows, side="right"), len(values) - 1)]
    found = np.where(rows == 0, sketch.min[column], found)
    return np.where(rows == sketch.count - 1, sketch.max[column], found)
