"""scikit-learn's digits: 1,797 pictures of 8 x 8 pixels, each from 0 to 16, four in five of them to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

CLASSES = 10


@dataclass(frozen=True)
class Digits:
    pixels: Array  # rows x 64, as bytes: exact, and an eighth of doubles
    labels: Array
    held_out: Array
    held_out_labels: Array

    def parts(self, number: int, *, of_held_out: bool = False) -> list[tuple[Array, Array]]:
        """Pixels and labels in so many parts of nearly equal size, in order."""
        pixels, labels = (self.held_out, self.held_out_labels) if of_held_out else (self.pixels, self.labels)
        return list(zip(np.array_split(pixels, number), np.array_split(labels, number), strict=True))


def load() -> Digits:
    """The digits, split by a hash of the row number: the same split on every machine, and for ever."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    assert np.array_equal(pixels, pixels.astype(np.uint8)), "expected whole numbers of pixels"
    pixels, labels = pixels.astype(np.uint8), labels.astype(np.int64)
    is_held_out = np.array([(_splitmix64(row) >> 32) % 5 == 0 for row in range(len(pixels))])
    return Digits(pixels[~is_held_out], labels[~is_held_out], pixels[is_held_out], labels[is_held_out])


def _splitmix64(number: int) -> int:
    """Steele, Lea and Flood's mixing function: every bit of the number reaches every bit of the hash."""
    mask = 2**64 - 1
    mixed = (number + 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)
