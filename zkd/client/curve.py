"""The course of a training job as a picture: an SVG that needs nothing to be drawn and any browser to be seen.

Above the mean loss of training and held-out rows, below the norm of the gradient, over rounds. A scale is logarithmic
where values span so much that most of a linear one would be empty. Trials of a line search are dots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zkd.jobs import Round

WIDTH, LEFT, RIGHT = 820, 78, 26
TOP, LOSS_HEIGHT, GAP, SLOPE_HEIGHT, BOTTOM = 66, 250, 34, 130, 50
LOG_FROM = 20.0  # largest over smallest value
POINTS_MAX = 1500  # of a line
TRAINING, HELD_OUT, SLOPE, INK, PALE = "#1f6fb4", "#d1495b", "#4a7c59", "#333", "#ddd"

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """Something that happened before this round, such as the loss of a node."""

    round: int
    words: str


@dataclass(frozen=True)
class Scale:
    low: float
    high: float
    start: float  # where `low` is drawn
    stop: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(each) if self.is_log else each for each in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (value - low) / (high - low)

    def ticks(self, about: int = 5) -> list[float]:
        if self.is_log:
            return _decades(self.low, self.high, about)
        step = _nice((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def draw(rounds: Sequence[Round], title: str, *, ending: str = "", marks: Iterable[Mark] = ()) -> str:
    """The picture as SVG text. Rounds without any loss are passed over; without rounds it says so."""
    trained = _points(rounds, lambda each: each.loss if each.is_accepted else None)
    held = _points(rounds, lambda each: each.held_loss if each.is_accepted else None)
    trials = _points(rounds, lambda each: None if each.is_accepted else each.loss)
    slopes = _points(rounds, lambda each: each.slope if each.is_accepted else None)
    height = TOP + LOSS_HEIGHT + BOTTOM + (GAP + SLOPE_HEIGHT if slopes else 0)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 26, title, size=16, weight="bold"),
        _text(LEFT, 46, ending, fill="#666"),
    ]
    if not trained:
        return "\n".join([*out, _text(LEFT, TOP + 40, "No round has told a loss yet."), "</svg>", ""])
    numbers = [number for number, _ in (*trained, *slopes)]
    first, last = min(numbers), max(numbers)
    across = Scale(first, max(last, first + 1), LEFT, WIDTH - RIGHT)
    floor = TOP + LOSS_HEIGHT
    losses = _scale([value for _, value in (*trained, *held)], floor, TOP)
    out += _axes(across, losses, "mean loss", has_numbers=not slopes)
    out += [_dot(across.at(x), losses.at(y)) for x, y in trials if losses.low <= y <= losses.high]
    out += _lines(rounds, trained, across, losses, TRAINING)
    out += _lines(rounds, held, across, losses, HELD_OUT, dashes="6 3")
    out += _legend([("training", TRAINING, "")] + ([("held-out", HELD_OUT, "6 3")] if held else []))
    if slopes:
        top = floor + GAP
        norms = _scale([value for _, value in slopes], top + SLOPE_HEIGHT, top)
        out += _axes(across, norms, "|gradient|", has_numbers=True)
        out += _lines(rounds, slopes, across, norms, SLOPE)
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 12, "round", anchor="middle"))
    out += _marks(marks, across, height - BOTTOM)
    return "\n".join([*out, "</svg>", ""])


def _points(rounds: Sequence[Round], value: Callable[[Round], float | None]) -> Points:
    found = [(float(each.number), value(each)) for each in rounds]
    return [(number, known) for number, known in found if known is not None and math.isfinite(known)]


def _scale(values: list[float], start: float, stop: float) -> Scale:
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_FROM:
        return Scale(10 ** math.floor(math.log10(low)), high * 1.3, start, stop, is_log=True)
    room = 0.06 * (high - low) or abs(high) or 1.0
    return Scale(low - room, high + room, start, stop)


def _lines(
    rounds: Sequence[Round], points: Points, across: Scale, up: Scale, colour: str, dashes: str = ""
) -> list[str]:
    """A line for each penalty of a path: the next one begins anew."""
    stages = {float(each.number): each.stage for each in rounds}
    out = []
    for stage in sorted(set(stages.values())):
        own = _thinned([(x, y) for x, y in points if stages[x] == stage])
        where = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in own)
        if len(own) == 1:
            out.append(_dot(across.at(own[0][0]), up.at(own[0][1]), colour))
        elif own:
            dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
            out.append(f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>')
    return out


def _thinned(points: Points) -> Points:
    step = -(-len(points) // POINTS_MAX)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _axes(across: Scale, up: Scale, name: str, *, has_numbers: bool) -> list[str]:
    out = []
    for tick in up.ticks():
        y = up.at(tick)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{PALE}"/>')
        out.append(_text(LEFT - 8, y + 4, _number(tick, up), anchor="end"))
    for tick in {round(each) for each in across.ticks(8)}:
        x = across.at(tick)
        if not LEFT <= x <= WIDTH - RIGHT + 0.1:
            continue
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.start}" y2="{up.start + 5}" stroke="{INK}"/>')
        if has_numbers:
            out.append(_text(x, up.start + 20, str(tick), anchor="middle"))
    out.append(f'<path d="M{LEFT} {up.stop}V{up.start}H{WIDTH - RIGHT}" fill="none" stroke="{INK}"/>')
    middle = (up.start + up.stop) / 2
    label = f"{name}, log scale" if up.is_log else name
    turned = f'transform="rotate(-90 18 {middle})"'
    return [*out, f'<text x="18" y="{middle}" text-anchor="middle" {turned}>{escape(label)}</text>']


def _legend(lines: list[tuple[str, str, str]]) -> list[str]:
    out = []
    x = WIDTH - RIGHT - 110 * len(lines)
    for name, colour, dashes in lines:
        out.append(
            f'<line x1="{x}" x2="{x + 26}" y1="42" y2="42" stroke="{colour}" stroke-width="1.8"'
            f"{f' stroke-dasharray={chr(34)}{dashes}{chr(34)}' if dashes else ''}/>"
        )
        out.append(_text(x + 32, 46, name))
        x += 110
    return out


def _marks(marks: Iterable[Mark], across: Scale, floor: float) -> list[str]:
    out = []
    for index, mark in enumerate(marks):
        if not across.low <= mark.round <= across.high:
            continue
        x = across.at(mark.round)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor}" stroke="#888" stroke-dasharray="2 3"/>')
        is_right = x > WIDTH * 0.6
        out.append(
            _text(
                x + (-5 if is_right else 5), TOP + 14 + 16 * (index % 8), mark.words, anchor="end" if is_right else ""
            )
        )
    return out


def _dot(x: float, y: float, colour: str = "#999") -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "", size: int = 0, weight: str = "", fill: str = "") -> str:
    given = {"text-anchor": anchor, "font-size": str(size or ""), "font-weight": weight, "fill": fill}
    extra = "".join(f' {name}="{value}"' for name, value in given.items() if value)
    return f'<text x="{x:.1f}" y="{y:.1f}"{extra}>{escape(words)}</text>'


def _decades(low: float, high: float, about: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, -(-(last - first) // about))
    ticks = [10.0**power for power in range(first, last + 1, step)]
    if len(ticks) < 3:  # between them, too
        between = (mantissa * 10.0**power for power in range(first - 1, last + 1) for mantissa in (1, 2, 5))
        ticks = [tick for tick in between if low * 0.999 <= tick <= high]
    return ticks


def _nice(step: float) -> float:
    """1, 2 or 5 times a power of ten, not below."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 5, 10) if nice * power >= step * 0.999)


def _number(value: float, scale: Scale) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        step = value if scale.is_log else _nice((scale.high - scale.low) / 5)
        digits = max(0, -math.floor(math.log10(abs(step)) + 1e-9)) if step else 0
        return f"{value:.{digits}f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
