"""Rows of one table that are placed from several threads: no row that came is said to be missing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from zkd.manifests import Column
from zkd.tables.arena import BLOCK_BYTES, Arena
from zkd.tables.assemble import Assembly

ROWS = 1000
OVERTAKEN_S = 1.0  # for a second placer to end in the middle of the first; who has to wait does not


class _Marks(np.ndarray[Any, np.dtype[np.bool_]]):
    """What is there of a table. The first who marks it has read it, and not written it yet, when `meanwhile` runs."""

    meanwhile: Callable[[], None] | None = None

    def __ior__(self, there: Any) -> Any:
        seen = np.array(self)
        if (meanwhile := _Marks.meanwhile) is not None:
            _Marks.meanwhile = None
            meanwhile()
        np.copyto(self.view(np.ndarray), seen | there)
        return self


def test_two_who_place_rows_of_one_window_do_not_undo_each_others_marks() -> None:
    assembly = Assembly(ROWS, [Column("x", "<i8")])
    assembly._is_there = assembly._is_there.view(_Marks)
    numbers = np.arange(ROWS)
    other = threading.Thread(target=assembly.place)

    def second() -> None:
        assembly.add((numbers[1::2], {"x": numbers[1::2] * 10}))
        other.start()
        other.join(OVERTAKEN_S)

    _Marks.meanwhile = second
    assembly.add((numbers[::2], {"x": numbers[::2] * 10}))
    assembly.place()
    other.join()
    assert np.array_equal(assembly.finish()["x"], numbers * 10)


def test_memory_is_lent_again_only_when_nothing_lies_there_any_more() -> None:
    arena = Arena()
    size = BLOCK_BYTES // 4

    def lent(value: int) -> np.ndarray[Any, Any]:
        array = np.frombuffer(arena.take(size), np.uint8)
        array[:] = value
        return array

    kept = [lent(value) for value in range(4)]  # one block
    some = kept[2][10:20]
    places = {array.ctypes.data for array in kept}
    del kept
    others = [lent(99) for _ in range(4)]
    assert not places & {array.ctypes.data for array in others}, "a slice of the first block is in use"
    assert some.tolist() == [2] * 10
    del some
    assert {lent(7).ctypes.data for _ in range(4)} == places
