"""One picture of how the copies of a dataset fared: how many each part had, and where they lay, over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

INK, FAINT, ALARM = "#222222", "#9a9a9a", "#c1121f"
NODE_COLOURS = ["#2a6f97", "#ffb703", "#2a6f4e", "#6a4c93"]


@dataclass(frozen=True)
class Moment:
    """What the nodes that were here said they held, at one moment."""

    at: float  # seconds since the tour began
    copies: list[int]  # of each part
    where: dict[str, int]  # parts on each node
    what: str = ""  # what was done just then


def draw(moments: Sequence[Moment], nodes: Sequence[str], copies: int, path: Path) -> None:
    """Write the picture, as PNG. Needs no display."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        times = np.array([moment.at for moment in moments])
        full = np.array([sum(count >= copies for count in moment.copies) for moment in moments])
        none = np.array([sum(count == 0 for count in moment.copies) for moment in moments])
        parts = len(moments[-1].copies)
        above.step(times, full, where="post", color=INK, label=f"with all {copies} copies")
        above.step(times, none, where="post", color=ALARM, label="without any")
        above.set_ylim(-0.03 * parts, 1.08 * parts)
        above.set_title(f"{parts} parts on {len(nodes)} nodes")
        above.legend(frameon=False, loc="center")
        for node, colour in zip(nodes, NODE_COLOURS, strict=False):
            held = [moment.where.get(node, 0) for moment in moments]
            below.step(times, held, where="post", color=colour, label=node)
        below.set_ylim(bottom=0)
        below.set_title("copies that lie on each node, as the nodes that are here say")
        below.set_xlabel("seconds")
        below.legend(frameon=False, loc="center")
        for axis in (above, below):
            for moment in moments:
                if moment.what:
                    axis.axvline(moment.at, color=ALARM, linewidth=0.8, linestyle=":")
        for moment in moments:
            if moment.what:
                above.annotate(moment.what, (moment.at, 1.02 * parts), color=ALARM, fontsize=8, ha="center")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
