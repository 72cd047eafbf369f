"""Tells how far the tour is: a live line and tables on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from tour.checks import Check
from tour.lbfgs import Round

PIPE_WIDTH = 200
ROUNDS_A_LINE = 50  # where no line can be overwritten


class Teller:
    def __init__(self, name: str) -> None:
        self._name = name
        # What goes to a file or a pipe is not wrapped.
        self.console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPE_WIDTH)
        self._status: Status | None = None
        self._since = time.monotonic()
        self._stage = ""

    def begin(self, stage: str) -> None:
        self._stage, self._since = stage, time.monotonic()
        if self.console.is_terminal:
            self._status = self.console.status(f"{stage:<12}")
            self._status.start()

    def end(self, what: str) -> None:
        self.stop()
        self._line(self._stage, what, time.monotonic() - self._since)

    def stop(self) -> None:
        """Leave no live line behind, whatever happened."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def say(self, what: str) -> None:
        self._line("", what, time.monotonic() - self._since, style="bold yellow")

    def well(self, what: str) -> None:
        self.console.print(f"{self._name}: all well, {what}")

    def wrong(self, what: str) -> None:
        self.stop()
        self.console.print(Text(f"{self._name}: WRONG, {what}", style="bold red"))

    def round(self, number: int, found: Round) -> None:
        line = f"round {number:3}   loss {found.loss:14.9f}   |gradient| {found.gradient_norm:.1e}"
        if self._status is not None:
            self._status.update(f"{self._stage:<12}{line}")
        elif number % ROUNDS_A_LINE == 0:
            self._line("", line, time.monotonic() - self._since)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0)
        )
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right", header_style="dim", no_wrap=True)
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        self.console.print()
        self.console.print(table)

    def checks(self, checks: Sequence[Check]) -> None:
        self.console.print()
        width = max(len(check.claim) for check in checks)
        for check in checks:
            mark = Text("ok   " if check.holds else "OFF  ", style="green" if check.holds else "bold red")
            self.console.print(
                mark + Text(f"{check.claim:<{width}}   ") + Text(check.detail, style="dim"), soft_wrap=True
            )
        self.console.print()

    def _line(self, stage: str, what: str, took_s: float, style: str = "") -> None:
        self.console.print(Text(f"{stage:<12}") + Text(what, style=style) + Text(f"   {took_s:.1f} s", style="dim"))
