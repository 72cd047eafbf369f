"""How converters say that a value is not what was expected, before they know where it lies.

The place is put in front on the way out, so that converting costs nothing for values that are right.
"""

from __future__ import annotations

from typing import Any

from zkd.arrays import describe
from zkd.errors import BadRecord


class Mismatch(Exception):
    def __init__(self, expected: str, got: Any, *, suffix: str = "", detail: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.got = got
        self.suffix = suffix
        self.detail = detail

    def inside(self, step: str) -> Mismatch:
        """The same one level further out, where `step` led here."""
        return Mismatch(self.expected, self.got, suffix=step + self.suffix, detail=self.detail)

    def at(self, where: str) -> BadRecord:
        message = self.detail or f"expected {self.expected}, got {describe(self.got)}"
        return BadRecord(where + self.suffix, message)
