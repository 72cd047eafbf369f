"""The last good configuration on disk: whole, checked, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zkd.errors import DataDamaged
from zkd.store import ConfigFile


def test_what_was_written_is_read(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path)
    assert file.read() is None
    file.write(b'{"a":1}\n')
    file.write(b'{"a":2}\n\n')
    assert file.read() == b'{"a":2}\n\n'
    assert os.stat(tmp_path / "config").st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["config"]


@pytest.mark.parametrize("at", [0, 15, 30, 90, -2])
def test_one_flipped_bit_is_found(tmp_path: Path, at: int) -> None:
    file = ConfigFile(tmp_path)
    file.write(b'{"tasks.timeout_s":1}')
    text = bytearray((tmp_path / "config").read_bytes())
    text[at] ^= 4
    (tmp_path / "config").write_bytes(text)
    with pytest.raises(DataDamaged, match="digest"):
        file.read()


@pytest.mark.parametrize("size", [0, 1, 40, 84, 95])
def test_half_a_file_is_found(tmp_path: Path, size: int) -> None:
    file = ConfigFile(tmp_path)
    file.write(b'{"tasks.timeout_s":1}')
    os.truncate(tmp_path / "config", size)
    with pytest.raises(DataDamaged):
        file.read()


def test_a_write_that_fails_leaves_the_former_one(tmp_path: Path) -> None:
    file = ConfigFile(tmp_path)
    file.write(b"former")
    (tmp_path / "config.tmp").mkdir()
    with pytest.raises(OSError, match=r"config\.tmp"):
        file.write(b"next")
    assert file.read() == b"former"
