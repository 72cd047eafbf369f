"""Whatever reads bytes from outside takes them or refuses them by name: a smoke of `python -m tests.fuzz`."""

from __future__ import annotations

import pytest

from tests.fuzz.run import Target, fuzz
from tests.fuzz.targets import TARGETS

INPUTS = 2_000


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_bytes_are_taken_or_refused_by_name(name: str) -> None:
    found = fuzz(TARGETS[name], INPUTS, seed=7)
    assert found.faults == []
    assert found.taken < INPUTS, "a reader that refuses nothing checks nothing"


def test_a_reader_that_breaks_is_found_out() -> None:
    def careless(data: bytes) -> object:
        if len(data) > 40:
            return bytearray(1 << 32)
        return data.decode()

    found = fuzz(Target([b"a" * 30], careless, ()), INPUTS, seed=7)
    assert any("UnicodeDecodeError" in fault for fault in found.faults)
    found = fuzz(Target([b"a" * 30], careless, (UnicodeDecodeError,)), INPUTS, seed=7)
    assert any("MemoryError" in fault for fault in found.faults)
