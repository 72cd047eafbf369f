"""Sums of floats that do not depend on order or grouping.

Adding floats rounds, and rounds differently in another order. So each partial is first cut, element by element, into
FOLD digits of WIDTH bits on a grid of quanta 2^(26 k) that is the same for everybody: whole numbers, whose sums are
exact and therefore associative. The largest partial of an element says where its window of digits lies; what falls
below it is dropped by everybody alike (the indexed sums of Demmel and Nguyen, "Parallel Reproducible Summation",
IEEE Trans. Comp. 64(7), 2015). No bound on the sums has to be known beforehand.

The price: 14 bytes an element for 8 while few partials are added, 26 for many; and for each partial an error of at most
2^-52 of the largest partial of its element, which is what adding floats one by one may lose as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zkd.errors import BadTraining

Vector = npt.NDArray[np.float64]

WIDTH = 26  # bits a digit: three hold the 53 bits of a float wherever it lies between two quanta
FOLD = 3
PARTIALS_MAX = 1 << (53 - (WIDTH - 1))  # sums of digits stay whole below 2^53
BLOCK = 1 << 15  # elements that are cut at a time: they and what is in between stay in the second cache
LOWEST = -1100 // WIDTH  # of zero, below the smallest float
NOT_FINITE = 1100 // WIDTH  # above the largest


@dataclass(frozen=True, slots=True)
class Binned:
    """The sum of `count` vectors of m elements: digits (FOLD, m), whole numbers; tops (m,), which quantum is theirs."""

    digits: Vector
    tops: npt.NDArray[np.int16]
    count: int

    def value(self) -> Vector:
        """The sums as floats, (m,): NaN where a partial was not finite, infinite where a float cannot hold them."""
        total = self.digits[FOLD - 1]
        for digit in self.digits[FOLD - 2 :: -1]:
            total = digit + np.ldexp(total, -WIDTH)
        with np.errstate(over="ignore"):
            value: Vector = np.ldexp(total, WIDTH * self.tops.astype(np.int32))
        return value

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For the wire: digits as int32 where they fit, which is so up to 64 partials."""
        is_small = np.all(np.abs(self.digits) < 2**31)  # False for NaN
        return {"digits": self.digits.astype(np.int32) if is_small else self.digits, "tops": self.tops}


def binned(x: Vector) -> Binned:
    """One vector (m,), ready to be added to others."""
    return binned_rows(x[None, :])


def binned_rows(x: Vector) -> Binned:
    """The sum of n vectors at once, (n, m); n is 1 or more."""
    digits, tops = np.empty((FOLD, x.shape[1])), np.empty(x.shape[1], np.int16)
    step = max(1, BLOCK // len(x))
    for start in range(0, x.shape[1], step):
        stop = start + step
        _cut(x[:, start:stop], digits[:, start:stop], tops[start:stop])
    return Binned(digits, tops, len(x))


def _cut(x: Vector, digits: Vector, tops: npt.NDArray[np.int16]) -> None:
    """The digits and tops of the columns' sums."""
    _, exponents = np.frexp(x)
    each = (exponents // WIDTH).astype(np.int16)
    is_finite = np.isfinite(x)
    each[x == 0.0] = LOWEST
    each[~is_finite] = NOT_FINITE
    each.max(axis=0, out=tops)
    # |x| < 2^(WIDTH (top + 1) - 1), so all digits above `tops` would be 0, and each digit is at most 2^(WIDTH - 1).
    rest = np.ldexp(np.where(is_finite, x, np.nan), -WIDTH * tops.astype(np.int32))
    for digit in digits:
        whole = np.rint(rest)
        whole.sum(axis=0, out=digit)
        rest -= whole
        rest *= 2.0**WIDTH


def add(sums: Iterable[Binned]) -> Binned:
    """The sum of sums of vectors of one length. At least one; raises ValueError for none or different lengths."""
    total: Binned | None = None
    for item in sums:
        if total is None:
            total = item
            continue
        if item.tops.shape != total.tops.shape:
            raise ValueError(f"expected sums of {total.tops.size} elements, got {item.tops.size}")
        tops = np.maximum(total.tops, item.tops)
        count = total.count + item.count
        assert count <= PARTIALS_MAX, count
        total = Binned(_in_window(total, tops) + _in_window(item, tops), tops, count)
    if total is None:
        raise ValueError("expected at least one sum, got none")
    return total


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]], count: int) -> Binned:
    """What `Binned.arrays` gave, from somebody else: raises `BadTraining` unless it is a sum of `count` vectors."""
    digits, tops = arrays["digits"], arrays["tops"]
    if digits.dtype not in (np.float64, np.int32) or tops.dtype != np.int16 or tops.ndim != 1:
        raise BadTraining(f"sums: expected float64 or int32 digits and int16 tops, got {digits.dtype} and {tops.dtype}")
    if digits.shape != (FOLD, tops.size):
        raise BadTraining(f"sums: expected {FOLD} digits for each of {tops.size} elements, got shape {digits.shape}")
    if not 1 <= count <= PARTIALS_MAX:
        raise BadTraining(f"sums: expected a count from 1 to {PARTIALS_MAX}, got {count}")
    if not _is_whole(digits, count * 2.0 ** (WIDTH - 1)):
        raise BadTraining(f"sums: expected whole digits of at most {count} x 2^{WIDTH - 1}")
    if tops.size and not LOWEST <= int(tops.min()) <= int(tops.max()) <= NOT_FINITE:
        raise BadTraining(f"sums: expected tops from {LOWEST} to {NOT_FINITE}")
    return Binned(digits.astype(np.float64), tops, count)


def _is_whole(digits: npt.NDArray[Any], most: float) -> bool:
    """Whether all are whole numbers up to `most`, but for NaN and infinite ones."""
    if digits.dtype == np.int32:
        return not digits.size or max(-int(digits.min()), int(digits.max())) <= most
    finite = digits[np.isfinite(digits)]
    return bool(np.all(np.rint(finite) == finite) and np.all(np.abs(finite) <= most))


def _in_window(item: Binned, tops: npt.NDArray[np.int16]) -> Vector:
    """The digits of `item` as they stand in windows that begin at `tops`, no lower than its own."""
    down = tops - item.tops
    if not down.any():
        return item.digits
    digits = np.empty_like(item.digits)
    for place, digit in enumerate(digits):
        digit[:] = 0.0
        for by in range(place + 1):
            np.copyto(digit, item.digits[place - by], where=down == by)
    return digits
