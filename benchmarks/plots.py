"""Figures from result files: time and memory against N, share of the machine's peak, roofline."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.loss_table import SHORT_DTYPE
from benchmarks.results import Results, Row

COLOURS = {
    "ours": "#c1272d",
    "official": "#1f5fa8",
    "official-compiled": "#6fa8dc",
    "naive": "#777777",
    "tiled": "#2e8b57",
    "flex-attention": "#b8860b",
}
MARKERS = {"float32": "o", "float32-high": "D", "bfloat16": "s", "float16": "^"}
LINES = {"float32": "-", "float32-high": "-.", "bfloat16": "--", "float16": ":"}
HATCHES = {"float32": None, "float32-high": "..", "bfloat16": "//"}

#: Same file, same bytes: no dates and no random identifiers inside.
_STYLE = {"svg.hashsalt": "cac_ext"}


def _style(row: Row) -> dict:
    return {
        "color": COLOURS.get(row.implementation, "black"),
        "marker": MARKERS.get(row.dtype, "x"),
        "label": f"{row.implementation} {SHORT_DTYPE.get(row.dtype, row.dtype)}",
    }


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7)


def _measured(results: Results) -> list[Row]:
    return [row for row in results.rows if row.phase == "both" and row.status == "ok"]


def series_in_n(results: Results) -> set[str]:
    """The largest set of cases that differ in N alone."""
    sets: dict[tuple, set[str]] = defaultdict(set)
    fixed = ("A", "C", "K", "active_share", "background_share")
    for name, case in results.cases.items():
        sets[tuple(case[key] for key in fixed)].add(name)
    return max(sets.values(), key=len, default=set())


def _against_n(
    results: Results, value: Callable[[Row], float | None], title: str, unit: str
) -> Figure | None:
    names = series_in_n(results)
    lines: dict[tuple[str, str], list[tuple[int, float, Row]]] = defaultdict(list)
    for row in _measured(results):
        if row.case in names and value(row):
            point = (results.cases[row.case]["N"], value(row), row)
            lines[row.implementation, row.dtype].append(point)
    if len({point[0] for points in lines.values() for point in points}) < 3:
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (_, dtype), points in lines.items():
        points.sort(key=lambda point: point[0])
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            linestyle=LINES.get(dtype, "-"),
            **_style(points[0][2]),
        )
    axes.set(xscale="log", yscale="log", xlabel="negatives N", ylabel=unit, title=title)
    _finish(axes)
    return figure


def time_against_n(results: Results) -> Figure | None:
    """Log-log; None if fewer than three values of N were measured."""
    A = max((case["A"] for case in results.cases.values()), default=0)
    return _against_n(
        results, lambda row: row.median, f"Loss and gradient, A = {A:,}", "seconds (median)"
    )


def memory_against_n(results: Results) -> Figure | None:
    """Log-log; None if fewer than three values of N were measured."""
    return _against_n(
        results,
        lambda row: row.extra_memory and row.extra_memory / 2**20,
        "Peak memory beyond the inputs",
        "MiB",
    )


def share_of_peak(results: Results) -> Figure | None:
    """Executed operations against the matrix-product rate of the same run and type."""
    rows = [row for row in _measured(results) if row.share_of_matrix_rate]
    if not rows:
        return None
    cases = list(dict.fromkeys(row.case for row in rows))
    contenders = list(dict.fromkeys((row.implementation, row.dtype) for row in rows))
    figure = Figure(figsize=(max(5.0, 1.2 * len(cases) + 3), 4.0), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(contenders)
    for i, (implementation, dtype) in enumerate(contenders):
        own = {
            row.case: row
            for row in rows
            if (row.implementation, row.dtype) == (implementation, dtype)
        }
        axes.bar(
            [cases.index(case) + (i + 0.5) * width - 0.4 for case in own],
            [100 * row.share_of_matrix_rate for row in own.values()],
            width=width,
            color=COLOURS.get(implementation, "black"),
            hatch=HATCHES.get(dtype, "//"),
            edgecolor="white",
            label=f"{implementation} {SHORT_DTYPE.get(dtype, dtype)}",
        )
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set_xlim(-1, len(cases))
    axes.set_xticks(range(len(cases)), cases, rotation=30 if len(cases) > 3 else 0)
    axes.set(ylabel="% of the matrix-product rate", title="Executed operations against the peak")
    _finish(axes)
    return figure


def roofline(results: Results) -> Figure | None:
    """Rate over arithmetic intensity, both of the bytes and operations that cannot be avoided."""
    rows = [row for row in _measured(results) if row.executed_operations and row.compulsory_bytes]
    bandwidth = results.limits.get("memory_bandwidth")
    peaks = results.limits.get("matrix_rate", {})
    if not rows or not bandwidth or not peaks:
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    intensities = [row.executed_operations / row.compulsory_bytes for row in rows]
    span = [min(1.0, *intensities), 3 * max(intensities)]
    for dtype, limit in peaks.items():
        peak = limit["operations_per_second"]
        knee = peak / bandwidth
        axes.plot(
            [span[0], knee, max(span[1], knee)],
            [span[0] * bandwidth / 1e9, peak / 1e9, peak / 1e9],
            color="black",
            linewidth=1,
            linestyle=LINES.get(dtype, "-"),
            label=f"limit {SHORT_DTYPE.get(dtype, dtype)}",
        )
    labelled = set()
    for row, intensity in zip(rows, intensities, strict=True):
        style = _style(row)
        if style["label"] in labelled:
            style.pop("label")
        else:
            labelled.add(style["label"])
        axes.plot(intensity, row.executed_operations / row.median / 1e9, linestyle="", **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="executed operations per byte of inputs and outputs",
        ylabel="Gop/s",
        title="Roofline, limits measured in the same run",
    )
    _finish(axes)
    return figure


def loss_figures(results: Results) -> dict[str, Figure]:
    """Name -> figure, for those that the result has the rows for."""
    made = {
        "time": time_against_n(results),
        "memory": memory_against_n(results),
        "share-of-peak": share_of_peak(results),
        "roofline": roofline(results),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


#: A distance of nothing is drawn here, at about the resolution of float32.
FLOOR = 3e-8


def step_figures(results: Results) -> dict[str, Figure]:
    """Time and memory of a whole step against the number of negatives."""
    rows = [row for row in results.rows if row.status == "ok" and row.samples]
    if len({row.case for row in rows}) < 2:
        return {}
    figures = {}
    for name, unit, value in (
        ("step-time", "seconds (median)", lambda row: row.median),
        ("step-memory", "peak memory, MiB", lambda row: (row.extra_memory or 0) / 2**20),
    ):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for loss in dict.fromkeys(row.implementation for row in rows):
            own = [row for row in rows if row.implementation == loss]
            axes.plot(
                [results.cases[row.case]["negatives"] for row in own],
                [value(row) for row in own],
                color=COLOURS.get(loss, "black"),
                marker="o",
                label=loss,
            )
        axes.set(xscale="log", xlabel="negatives N", ylabel=unit, title="Whole training step")
        axes.set_ylim(bottom=0)
        _finish(axes)
        figures[name] = figure
    return figures


def convergence_figures(results: Results) -> dict[str, Figure]:
    """Loss curves, and how far each is from the first."""
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = {name: curve["loss"] for name, curve in results.extra["curves"].items()}
    (first, yardstick), *others = curves.items()
    for i, (name, curve) in enumerate(curves.items()):
        left.plot(curve, label=name, linewidth=3 - i, linestyle=["-", "--", ":"][i % 3])
    for name, curve in others:
        distances = [max(abs(a - b) / abs(b), FLOOR) for a, b in zip(curve, yardstick, strict=True)]
        right.plot(distances, label=name)
    left.set(xlabel="iteration", ylabel="loss", title="Training loss")
    right.set(xlabel="iteration", title=f"Relative distance from {first}")
    right.set_yscale("log")
    _finish(left)
    _finish(right)
    return {"convergence": figure}


def to_svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save_figures(figures: dict[str, Figure], folder: Path, prefix: str) -> list[Path]:
    """``folder/prefix-name.png`` and ``.svg`` for each figure."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        path = folder / f"{prefix}-{name}"
        figure.savefig(path.with_suffix(".png"), dpi=150)
        path.with_suffix(".svg").write_bytes(to_svg(figure))
        written += [path.with_suffix(".png"), path.with_suffix(".svg")]
    return written
