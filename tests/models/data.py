"""Real data with known answers: scikit-learn's own sets, and two textbook sets small enough to be written down.

Row i is a test row if and only if the upper half of splitmix64(i) is a multiple of 5: a split that does not depend on
any library.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn import datasets

from zkd.models.fit import Prepared, RawPart, prepare, split_rows
from zkd.models.split import splitmix64

# NIST Statistical Reference Datasets, Longley (JASA 62, 1967): employment; then GNP deflator, GNP, unemployed, armed
# forces, population, year.
LONGLEY = np.array(
    [
        [60323, 83.0, 234289, 2356, 1590, 107608, 1947],
        [61122, 88.5, 259426, 2325, 1456, 108632, 1948],
        [60171, 88.2, 258054, 3682, 1616, 109773, 1949],
        [61187, 89.5, 284599, 3351, 1650, 110929, 1950],
        [63221, 96.2, 328975, 2099, 3099, 112075, 1951],
        [63639, 98.1, 346999, 1932, 3594, 113270, 1952],
        [64989, 99.0, 365385, 1870, 3547, 115094, 1953],
        [63761, 100.0, 363112, 3578, 3350, 116219, 1954],
        [66019, 101.2, 397469, 2904, 3048, 117388, 1955],
        [67857, 104.6, 419180, 2822, 2857, 118734, 1956],
        [68169, 108.4, 442769, 2936, 2798, 120445, 1957],
        [66513, 110.8, 444546, 4681, 2637, 121950, 1958],
        [68655, 112.6, 482704, 3813, 2552, 123366, 1959],
        [69564, 114.2, 502601, 3931, 2514, 125368, 1960],
        [69331, 115.7, 518173, 4806, 2572, 127852, 1961],
        [70551, 116.9, 554894, 4007, 2827, 130081, 1962],
    ]
)

# Spector and Mazzeo (1980), as in Greene, "Econometric Analysis": GPA, TUCE, PSI; whether the grade improved.
SPECTOR = np.array(
    [
        [2.66, 20, 0, 0],
        [2.89, 22, 0, 0],
        [3.28, 24, 0, 0],
        [2.92, 12, 0, 0],
        [4.00, 21, 0, 1],
        [2.86, 17, 0, 0],
        [2.76, 17, 0, 0],
        [2.87, 21, 0, 0],
        [3.03, 25, 0, 0],
        [3.92, 29, 0, 1],
        [2.63, 20, 0, 0],
        [3.32, 23, 0, 0],
        [3.57, 23, 0, 0],
        [3.26, 25, 0, 1],
        [3.53, 26, 0, 0],
        [2.74, 19, 0, 0],
        [2.75, 25, 0, 0],
        [2.83, 19, 0, 0],
        [3.12, 23, 1, 0],
        [3.16, 25, 1, 1],
        [2.06, 22, 1, 0],
        [3.62, 28, 1, 1],
        [2.89, 14, 1, 0],
        [3.51, 26, 1, 0],
        [3.54, 24, 1, 1],
        [2.83, 27, 1, 1],
        [3.39, 17, 1, 1],
        [2.67, 24, 1, 0],
        [3.65, 21, 1, 1],
        [4.00, 23, 1, 1],
        [3.10, 21, 1, 0],
        [2.39, 19, 1, 1],
    ]
)


def is_test(rows: int) -> np.ndarray:
    return (splitmix64(np.arange(rows).astype(np.uint64)) >> np.uint64(32)) % np.uint64(5) == 0


@cache
def loaded(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training rows and targets, test rows and targets."""
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    test = is_test(len(x))
    return x[~test], y[~test], x[test], y[test]


@cache
def prepared(kind: str, name: str, parts: int = 3) -> Prepared:
    """Training rows of a set, in a number of parts."""
    x, y, _, _ = loaded(name)
    return prepare(kind, split_rows(RawPart([x], y), parts))  # type: ignore[arg-type]


def standardised(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `loaded`, standardised by the training rows, without any code of ours: for oracles."""
    x, y, test_x, test_y = loaded(name)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    return (x - mean) / scale, y, (test_x - mean) / scale, test_y
