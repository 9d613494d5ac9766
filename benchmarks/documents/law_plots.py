"""Figures of the fitted laws: time and memory of the loss against each of its sizes."""

from __future__ import annotations

from matplotlib.figure import Figure

from benchmarks.documents.plots import LINES, finish, style_of
from benchmarks.loss.scaling import (
    SIZES,
    Law,
    Size,
    contenders_of,
    fit,
    points_of,
    series_in,
)
from benchmarks.measure.results import Results, Row

_NAMES = {"A": "anchors A", "N": "negatives N", "C": "channels C", "K": "classes K"}
_UNITS = {"time": (1.0, "seconds (median)"), "memory": (2.0**20, "MiB beyond the inputs")}


def law_figures(results: Results) -> dict[str, Figure]:
    """Points and fitted lines, log-log, a figure for time and one for memory, if there are laws."""
    made = {f"{quantity}-laws": _laws(results, quantity) for quantity in _UNITS}
    return {name: figure for name, figure in made.items() if figure is not None}


def _laws(results: Results, quantity: str) -> Figure | None:
    found: dict[Size, list[tuple[str, str, list[tuple[int, float]], Law]]] = {}
    for size in SIZES:
        for implementation, dtype in contenders_of(results):
            points = points_of(results, size, quantity, implementation, dtype)
            law = fit(points)
            if law is not None:
                found.setdefault(size, []).append((implementation, dtype, points, law))
    if not found:
        return None
    figure = Figure(figsize=(4.2 * len(found) + 0.6, 4.2), layout="constrained")
    scale, unit = _UNITS[quantity]
    for axes, (size, laws) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for implementation, dtype, points, law in laws:
            style = style_of(Row("", implementation, dtype, "both"))
            style["label"] += f": {law.exponent_text()}".replace("+-", "\u00b1")
            ends = [points[0][0], points[-1][0]]
            axes.plot(
                ends,
                [law.at(end) / scale for end in ends],
                color=style["color"],
                linestyle=LINES.get(dtype, "-"),
                linewidth=1,
            )
            values = [value / scale for _, value in points]
            axes.plot([point[0] for point in points], values, linestyle="", **style)
        fixed = next(iter(series_in(results, size).values()))
        others = ", ".join(f"{other} = {fixed[other]:,}" for other in SIZES if other != size)
        axes.set(xscale="log", yscale="log", xlabel=_NAMES[size], ylabel=unit)
        axes.set_title(others, fontsize=9)
        finish(axes)
    figure.suptitle(f"{quantity.capitalize()} of loss and gradient, with fitted exponents")
    return figure
