"""The rounds of a job, told to everybody who looks on, from any of them: in order, each once, to the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable

from zkd.jobs import Round

LINES_AT_ONCE = 1000
EACH_S = 0.02  # quick rounds are told several at a time: a message each would cost a tenth of such a round


class Telling:
    def __init__(self) -> None:
        self.rounds: list[Round] = []
        self._is_over = False
        self._news = asyncio.Event()

    def add(self, rounds: Iterable[Round]) -> None:
        """Rounds that were told before are not told again: a brain that begins anew goes through some twice."""
        last = self.rounds[-1].number if self.rounds else 0
        new = [each for each in rounds if each.number > last]
        self.rounds += new
        if new:
            self._tell()

    def end(self, line: Round | None) -> None:
        """No more rounds are told here: the job is over, as this line says, or goes on elsewhere."""
        if line is not None:
            self.rounds.append(line)
        self._is_over = True
        self._tell()

    async def follow(self, after: int) -> AsyncGenerator[list[Round]]:
        """Those after this number, as they come; ends with the telling. Unbounded: as long as the job takes."""
        at = 0
        while at < len(self.rounds) and self.rounds[at].ended is None and self.rounds[at].number <= after:
            at += 1
        loop = asyncio.get_running_loop()
        told_s = -EACH_S
        while True:
            news = self._news
            if at < len(self.rounds):
                await asyncio.sleep(told_s + EACH_S - loop.time())
                some = self.rounds[at : at + LINES_AT_ONCE]
                at += len(some)
                yield some
                told_s = loop.time()
            elif self._is_over:
                return
            else:
                await news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
