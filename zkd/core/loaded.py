"""Which models are open: as many bytes as are allowed, the one used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container


class Loaded:
    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self.evicted = 0

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, file: str) -> bool:
        return file in self._sizes

    def use(self, file: str, size: int, in_use: Container[str]) -> list[str] | None:
        """Have this one open, as the last one used; gives those that have to be closed for it, none of them `in_use`.

        None if there is no room before others are not in use any more, or ever: then nothing is changed.
        """
        if file in self._sizes:
            self._sizes.move_to_end(file)
            return []
        free, going = self.bytes_max - self.size, list[str]()
        for each, other in self._sizes.items():
            if free >= size:
                break
            if each not in in_use:
                going.append(each)
                free += other
        if free < size:
            return None
        for each in going:
            del self._sizes[each]
        self.evicted += len(going)
        self._sizes[file] = size
        return going

    def close(self, file: str) -> None:
        self._sizes.pop(file, None)

    def close_all(self) -> None:
        self._sizes.clear()
