"""Answers that were given before, by the version that gave them and the digest of what was asked: bounded, oldest out.

Only who knows what a model means now may ask it: without a version nothing is found and nothing kept.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zkd.client.prediction_wire import Answer

ENTRY_BYTES = 1000  # of what is around the arrays
COLUMNS = ("prediction", "probabilities", "score", "attributions", "base")


class AnswerCache:
    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[tuple[int, bytes], tuple[Answer, int]] = OrderedDict()

    def find(self, digest: bytes, version: int | None) -> Answer | None:
        found = None if version is None else self._kept.get((version, digest))
        if found is None or version is None:
            return None
        self._kept.move_to_end((version, digest))
        return found[0]

    def keep(self, digest: bytes, version: int | None, answer: Answer) -> None:
        """Unless another version answered than is known to be meant, or it is too large."""
        arrays = {name: array for name in COLUMNS if (array := getattr(answer, name)) is not None}
        size = ENTRY_BYTES + sum(array.nbytes for array in arrays.values())
        if version is None or answer.version != version or size > self._bytes_max or (version, digest) in self._kept:
            return
        own = {name: array.copy() for name, array in arrays.items()}
        for array in own.values():
            array.flags.writeable = False  # it is given to all who ask
        kept = replace(answer, **own)
        self._kept[version, digest] = kept, size
        self._bytes += size
        while self._bytes > self._bytes_max:
            _, (_, size) = self._kept.popitem(last=False)
            self._bytes -= size
