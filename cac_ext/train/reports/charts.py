"""Curves as the numbers of an SVG, which the page draws in its own colors and fonts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 36  # margins
_COLORS, _DASHES = 7, 4  # kinds of both in style.css; dashes are for more runs than colors
_MOST_POINTS = 300  # of a line; more are averaged
_MOST_DOTS = 40  # points of a line up to which each has a dot


class Look(NamedTuple):
    """How a run is drawn everywhere: numbers of a color and of a kind of dashes."""

    color: int
    dash: int


def look_of(index: int) -> Look:
    """The look of the run with this number; looks repeat after 28 runs."""
    return Look(index % _COLORS, index // _COLORS % _DASHES)


class Series(NamedTuple):
    """A curve; a value that is None interrupts it. ``faint``: it belongs to another one."""

    label: str
    look: Look
    points: Sequence[tuple[float, float | None]]
    faint: bool = False


class Tick(NamedTuple):
    """A number on an axis, and its place in the drawing."""

    place: float
    text: str


class Line(NamedTuple):
    """A curve in the drawing: ``path`` is that of the SVG."""

    path: str
    look: Look
    faint: bool


class Dot(NamedTuple):
    """A point of a curve; ``text`` says its numbers."""

    x: float
    y: float
    look: Look
    faint: bool
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing of `WIDTH` x `HEIGHT`.

    Attributes:
        title: what the curves show, with its unit.
        x_label: of the axis.
        x_ticks, y_ticks: numbers on the axes.
        lines, dots: the curves.
        summary: the last values in words, for readers who do not see it.
        averaged: logged values in a point; 1 if each is shown.
    """

    title: str
    x_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line]
    dots: Sequence[Dot]
    summary: str
    averaged: int

    left, right = _LEFT, WIDTH - _RIGHT
    top, bottom = _TOP, HEIGHT - _BOTTOM


def draw(title: str, x_label: str, series: Sequence[Series]) -> Chart | None:
    """Draws curves over one another; None if no curve has a point."""
    averaged = max(-(-len(one.points) // _MOST_POINTS) for one in series) if series else 1
    curves = [one._replace(points=_averaged(one.points)) for one in series]
    known = [(x, y) for one in curves for x, y in one.points if y is not None]
    if not known:
        return None
    xs, ys = zip(*known, strict=True)
    x_axis = _Axis(min(0, *xs), max(xs), _LEFT, WIDTH - _RIGHT, whole=True)
    low, high = min(ys), max(ys)
    if 0 <= low <= high / 2:
        low = 0
    y_axis = _Axis(low, high, HEIGHT - _BOTTOM, _TOP)
    lines, dots, last = [], [], []
    for one in curves:
        lines.append(Line(_path(one.points, x_axis, y_axis), one.look, one.faint))
        seen = [(x, y) for x, y in one.points if y is not None]
        if seen:
            last.append(f"{one.label}: {seen[-1][1]:.4g} at {x_label} {seen[-1][0]:g}")
        if len(seen) <= _MOST_DOTS:
            for x, y in seen:
                text = f"{one.label}, {x_label} {x:g}: {y:.4g}"
                dots.append(Dot(x_axis.place(x), y_axis.place(y), one.look, one.faint, text))
    summary = f"{title}; the last values: {'; '.join(last)}"
    return Chart(title, x_label, x_axis.ticks(), y_axis.ticks(), lines, dots, summary, averaged)


class _Axis:
    """Numbers from ``low`` to ``high`` at places from ``start`` to ``end``."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, whole: bool = False
    ) -> None:
        room = 0.04 * (high - low)
        if high == low:
            room = abs(low) / 2 or 0.5
        self.low, self.high = low - (low != 0 and not whole) * room, high + room * (not whole)
        if self.high == self.low:
            self.high += 1
        self.start, self.end = start, end
        self.whole = whole

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        numbers = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self.whole)
        return [
            Tick(self.place(value), f"{value:,.6g}")
            for value in map(float, numbers.tick_values(self.low, self.high))
            if self.low <= value <= self.high
        ]


def _path(points: Sequence[tuple[float, float | None]], x_axis: _Axis, y_axis: _Axis) -> str:
    """``M`` to each point behind a gap, ``L`` to the others; a lone point is a dot."""
    parts: list[str] = []
    for index, (x, y) in enumerate(points):
        if y is None:
            continue
        first = index == 0 or points[index - 1][1] is None
        alone = first and (index + 1 == len(points) or points[index + 1][1] is None)
        parts.append(f"{'M' if first else 'L'}{x_axis.place(x)} {y_axis.place(y)}{'h0' * alone}")
    return "".join(parts)


def _averaged(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most `_MOST_POINTS` points: means of as many neighbors as needed."""
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return list(points)
    means: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [y for _, y in part if y is not None]
        means.append((fmean(x for x, _ in part), fmean(known) if known else None))
    return means
