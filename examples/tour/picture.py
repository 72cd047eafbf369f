"""One picture of the whole tour: what was learnt, and who computed it when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tour.checks import began_at, class_means, run_again
from tour.data import CLASSES
from tour.dropbox import DropBox

if TYPE_CHECKING:
    from digits import Tour
    from matplotlib.axes import Axes

INK, FAINT, ALARM = "#222222", "#9a9a9a", "#c1121f"
SPECTRUM = 24  # eigenvalues shown; those of constant columns are 0
KERNEL_COLOURS = {
    "moments": "#8ecae6",
    "class_means": "#219ebc",
    "combine_moments": "#219ebc",
    "standardize": "#ffb703",
    "svd": "#6a4c93",
    "bootstrap_spectrum": "#cfd8dc",
    "softmax_gradient": "#2a6f4e",
    "predict_softmax": "#fb8500",
}


def draw(tour: Tour, box: DropBox, path: Path) -> None:
    """Write the picture, as PNG. Needs no display."""
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(13, 7.6), layout="constrained")
        figure.suptitle(_headline(tour, box), x=0.01, ha="left", fontsize=12, color=INK)
        grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.05))
        _draw_means(figure.add_subplot(grid[0, 0]), tour)
        _draw_spectrum(figure.add_subplot(grid[0, 1]), tour)
        _draw_training(figure.add_subplot(grid[0, 2]), tour)
        _draw_work(figure.add_subplot(grid[1, :2]), tour, box)
        _draw_confusion(figure.add_subplot(grid[1, 2]), tour)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def _headline(tour: Tour, box: DropBox) -> str:
    return (
        f"Digits on {len(tour.nodes)} nodes: {len(box.dropped)} tasks dropped by kazoo, {len(box.results)} results, "
        f"{len(run_again(box))} of them run again after kill -9 of {tour.victim}"
    )


def _draw_means(axes: Axes, tour: Tour) -> None:
    pictures = class_means(tour).reshape(2, CLASSES // 2, 8, 8)
    gap = np.full((2, CLASSES // 2, 9, 9), np.nan)
    gap[:, :, :8, :8] = pictures
    axes.imshow(gap.transpose(0, 2, 1, 3).reshape(2 * 9, -1)[:-1, :-1], cmap="Greys", interpolation="nearest")
    axes.set_title("Class means, by parts")
    axes.set_axis_off()


def _draw_spectrum(axes: Axes, tour: Tour) -> None:
    rows = len(tour.digits.pixels)
    spectra = np.concatenate(tour.bootstraps)
    number = SPECTRUM
    low, high = np.percentile(spectra[:, :number], [2.5, 97.5], axis=0)
    ranks = np.arange(1, number + 1)
    axes.fill_between(ranks, low, high, color="#b8c4c9", label=f"95 % of {len(spectra):,} resamples", lw=0)
    axes.plot(ranks, np.median(spectra[:, :number], axis=0), color="#6b7a80", lw=0.8)
    found = np.array(tour.svd["s"]) ** 2 / (rows - 1)
    axes.plot(ranks[: len(found)], found, "o", color=KERNEL_COLOURS["svd"], ms=4, label="truncated SVD")
    axes.set(ylim=(0, None), xlabel="component", title="Spectrum of the covariance")
    axes.legend(frameon=False)


def _draw_training(axes: Axes, tour: Tour) -> None:
    assert tour.found is not None
    rounds = tour.found.rounds
    best = rounds[-1].loss
    axes.plot([found.gradient_norm for found in rounds], color=KERNEL_COLOURS["softmax_gradient"], lw=1.2)
    above = np.array([found.loss - best for found in rounds])
    above[above < 1e-12] = np.nan  # below that it is rounding
    axes.plot(above, color=FAINT, lw=1)
    axes.annotate(
        "|gradient|", (len(rounds) * 0.72, rounds[int(len(rounds) * 0.72)].gradient_norm * 8), color="#2a6f4e"
    )
    middle = int(len(rounds) * 0.3)
    axes.annotate("loss - optimum", (middle, above[middle] / 300), color="#6f6f6f", ha="right")
    axes.axvline(tour.killed_in_round, color=ALARM, lw=1)
    axes.annotate(
        f" kill -9 {tour.victim}",
        (tour.killed_in_round, 0.03),
        xycoords=("data", "axes fraction"),
        color=ALARM,
    )
    axes.set(yscale="log", xlabel="round", title="Softmax regression, a gradient task for each part")


def _draw_work(axes: Axes, tour: Tour, box: DropBox) -> None:
    """A bar for each attempt that gave a result, on a line for each slot of each node."""
    again = run_again(box)
    begins = {task_id: began_at(result) for task_id, result in box.results.items()}
    zero = min(begins.values())
    busy_until: dict[tuple[str, int], float] = {}
    seen = set()
    for task_id in sorted(begins, key=begins.__getitem__):
        result = box.results[task_id]
        start, node = begins[task_id] - zero, result["node"]
        slot = 0
        while busy_until.get((node, slot), -1.0) > start + 0.002:
            slot += 1
        busy_until[node, slot] = start + result["run_s"]
        row = tour.nodes.index(node) + (slot - 0.5) * 0.36
        # A gradient takes a millisecond: give it the width of a hair, or nobody would see it.
        axes.barh(
            row,
            max(result["run_s"], 0.006),
            left=start,
            height=0.32,
            color=KERNEL_COLOURS[result["kernel"]],
            edgecolor=ALARM if task_id in again else "none",
            lw=1.2 if task_id in again else 0,
            zorder=3 if task_id in again else 2,
        )
        seen.add(result["kernel"])
    axes.axvline(tour.killed_at - zero, color=ALARM, lw=1, zorder=1)
    axes.annotate(
        " kill -9", (tour.killed_at - zero, tour.nodes.index(tour.victim)), color=ALARM, va="center", fontsize=9
    )
    axes.set_yticks(range(len(tour.nodes)), tour.nodes)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", title="Who computed what; framed in red: run again after the loss of its node")
    patches: list[Any] = [Patch(color=colour, label=name) for name, colour in KERNEL_COLOURS.items() if name in seen]
    axes.legend(handles=patches, ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8)


def _draw_confusion(axes: Axes, tour: Tour) -> None:
    truth = tour.digits.held_out_labels
    counts = np.zeros((CLASSES, CLASSES), int)
    np.add.at(counts, (truth, tour.labels), 1)
    axes.imshow(np.sqrt(counts), cmap="Greens")
    for row, column in zip(*np.nonzero(counts), strict=True):
        is_right = row == column
        axes.text(column, row, counts[row, column], ha="center", va="center", color="white" if is_right else ALARM)
    axes.set_xticks(range(CLASSES))
    axes.set_yticks(range(CLASSES))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    right = int((truth == tour.labels).sum())
    axes.set(xlabel="predicted", ylabel="is", title=f"{right} of {len(truth)} digits held out are right")
