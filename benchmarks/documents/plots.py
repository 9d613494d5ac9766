"""Figures from result files: time and memory against N, rates beside torch's matrix product."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.convergence.table import changed_steps
from benchmarks.loss.scaling import series_in
from benchmarks.loss.table import SHORT_DTYPE
from benchmarks.measure.results import Results, Row

COLORS = {
    "ours": "#c1272d",
    "ours-avx512": "#e07b7f",
    "ours-avx2": "#f0b6b8",
    "official": "#1f5fa8",
    "official-compiled": "#6fa8dc",
    "naive": "#777777",
    "tiled": "#2e8b57",
    "flex-attention": "#b8860b",
    "flash-attention": "#e0c060",
}
MARKERS = {"float32": "o", "float32-high": "D", "bfloat16": "s", "float16": "^"}
LINES = {"float32": "-", "float32-high": "-.", "bfloat16": "--", "float16": ":"}
HATCHES = {"float32": None, "float32-high": "..", "bfloat16": "//"}


def style_of(row: Row) -> dict[str, Any]:
    """Options of `Axes.plot` for a contender."""
    return {
        "color": COLORS.get(row.implementation, "black"),
        "marker": MARKERS.get(row.dtype, "x"),
        "label": f"{row.implementation} {SHORT_DTYPE.get(row.dtype, row.dtype)}",
    }


def finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7)


def _measured(results: Results) -> list[Row]:
    return [row for row in results.rows if row.phase == "both" and row.status == "ok"]


def _against_n(
    results: Results, value: Callable[[Row], float | None], title: str, unit: str
) -> Figure | None:
    names = series_in(results, "N")
    lines: dict[tuple[str, str], list[tuple[int, float, Row]]] = defaultdict(list)
    for row in _measured(results):
        measured = value(row)
        if row.case in names and measured:
            point = (results.cases[row.case]["N"], measured, row)
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
            **style_of(points[0][2]),
        )
    axes.set(xscale="log", yscale="log", xlabel="negatives N", ylabel=unit, title=title)
    finish(axes)
    return figure


def time_against_n(results: Results) -> Figure | None:
    """Log-log; None if fewer than three values of N were measured."""
    A = max((case["A"] for case in series_in(results, "N").values()), default=0)  # all have it
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


def share_of_matrix_rate(results: Results) -> Figure | None:
    """Executed operations a second against torch's matrix product in the same run and type.

    It is a yardstick, not a limit: products made of narrower ones can pass 100%.
    """
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
            row.case: row.share_of_matrix_rate or 0.0
            for row in rows
            if (row.implementation, row.dtype) == (implementation, dtype)
        }
        axes.bar(
            [cases.index(case) + (i + 0.5) * width - 0.4 for case in own],
            [100 * share for share in own.values()],
            width=width,
            color=COLORS.get(implementation, "black"),
            hatch=HATCHES.get(dtype, "//"),
            edgecolor="white",
            label=f"{implementation} {SHORT_DTYPE.get(dtype, dtype)}",
        )
    axes.axhline(100, color="black", linewidth=0.8)
    axes.set_xlim(-1, len(cases))
    axes.set_xticks(range(len(cases)), cases, rotation=30 if len(cases) > 3 else 0)
    axes.set(
        ylabel="% of torch's matrix-product rate",
        title="Executed operations against torch's matrix product",
    )
    finish(axes)
    return figure


def rate_over_intensity(results: Results) -> Figure | None:
    """Executed operations a second over executed operations for each byte of inputs and outputs.

    Inputs and outputs must be moved once. Each implementation is drawn by its own operations, even
    if it executes or moves more than necessary. The lines are the rates of torch's copy and of
    torch's matrix product: yardsticks, not limits.
    """
    points = [
        (row, row.executed_operations, row.compulsory_bytes)
        for row in _measured(results)
        if row.executed_operations and row.compulsory_bytes
    ]
    bandwidth = results.limits.get("memory_bandwidth")
    rates = results.limits.get("matrix_rate", {})
    if not points or not bandwidth or not rates:
        return None
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    intensities = [operations / size for _, operations, size in points]
    span = [min(1.0, *intensities), 3 * max(intensities)]
    for dtype, measured in rates.items():
        rate = measured["operations_per_second"]
        knee = rate / bandwidth
        axes.plot(
            [span[0], knee, max(span[1], knee)],
            [span[0] * bandwidth / 1e9, rate / 1e9, rate / 1e9],
            color="black",
            linewidth=1,
            linestyle=LINES.get(dtype, "-"),
            label=f"torch's copy and product {SHORT_DTYPE.get(dtype, dtype)}",
        )
    labelled = set()
    for (row, operations, _), intensity in zip(points, intensities, strict=True):
        style = style_of(row)
        if style["label"] in labelled:
            style.pop("label")
        else:
            labelled.add(style["label"])
        axes.plot(intensity, operations / row.median / 1e9, linestyle="", **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="executed operations per byte of inputs and outputs",
        ylabel="executed Gop/s",
        title="Rates beside torch's copy and matrix product in the same run",
    )
    finish(axes)
    return figure


def loss_figures(results: Results) -> dict[str, Figure]:
    """Name -> figure, if the result has the rows for it."""
    made = {
        "time": time_against_n(results),
        "memory": memory_against_n(results),
        "share-of-matrix-rate": share_of_matrix_rate(results),
        "rate-over-intensity": rate_over_intensity(results),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


#: A distance of 0 is drawn here, near the resolution of float32.
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
                color=COLORS.get(loss, "black"),
                marker="o",
                label=loss,
            )
        axes.set(xscale="log", xlabel="negatives N", ylabel=unit, title="Whole training step")
        axes.set_ylim(bottom=0)
        finish(axes)
        figures[name] = figure
    return figures


def convergence_figures(results: Results) -> dict[str, Figure]:
    """Loss curves of the first seed; for all seeds, distances from the first curve of the seed.

    A dot is a step whose loss was made of other pixels, see `benchmarks.convergence.command`.
    """
    by_seed = list(results.extra["curves"].values())
    if not by_seed:  # no training fitted into the time budget
        return {}
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, curve) in enumerate(by_seed[0].items()):
        left.plot(
            curve["loss"], label=name, linewidth=4 - i, linestyle=["-", "--", ":", "-."][i % 4]
        )
    for number, curves in enumerate(by_seed):
        (first, yardstick), *others = curves.items()
        for i, (name, curve) in enumerate(others):
            pairs = zip(curve["loss"], yardstick["loss"], strict=True)
            right.plot(
                [max(abs(a - b) / abs(b), FLOOR) for a, b in pairs],
                color=f"C{i + 1}",
                linewidth=1,
                marker="o",
                markersize=3,
                markevery=changed_steps(curve),
                label=None if number else name,
            )
    left.set(xlabel="iteration", ylabel="loss", title="Training loss")
    title = f"Relative distance from {first}\ndots: steps with other anchors or labels"
    right.set(xlabel="iteration", title=title)
    right.title.set_size(9)
    right.set_yscale("log")
    finish(left)
    finish(right)
    return {"convergence": figure}


def to_svg(figure: Figure) -> bytes:
    """Equal figures give equal bytes: no dates, no random identifiers. Text stays text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "cac_ext", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def save_figures(figures: dict[str, Figure], folder: Path, prefix: str) -> list[Path]:
    """Writes ``folder/prefix-name.png`` and ``.svg`` for each figure; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        path = folder / f"{prefix}-{name}"
        figure.savefig(path.with_suffix(".png"), dpi=150)
        path.with_suffix(".svg").write_bytes(to_svg(figure))
        written += [path.with_suffix(".png"), path.with_suffix(".svg")]
    return written
