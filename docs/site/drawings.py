"""The drawings of the pages, as SVG. Each is drawn from the rule that its page states."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

# As wide as a phone shows, so that text is never smaller than it is drawn.
_WIDTH = 4.6  # inches
_MASKED, _COUNTED = "#f0f0f0", "#3f6fb5"
_BOUNDARY = "#e8a33d"
_ACCENT, _BOX = "#b5453f", "#e8eef7"

# A small problem: labels of anchors and of negatives.
_CLASSES = 4
_COUNTS_OF_ANCHORS = (11, 6, 5, 2)
_COUNTS_OF_NEGATIVES = (30, 14, 12, 8)
_TILE_SLOTS, _UNIT_NEGATIVES = 4, 8

Labels = npt.NDArray[np.int64]


def draw_all() -> dict[str, str]:
    """Each drawing by the name of its file."""
    return {f"{name}.svg": draw() for name, draw in DRAWINGS.items()}


@contextmanager
def _figure(height: float, columns: int = 1) -> Iterator[tuple[Figure, list[Axes], io.StringIO]]:
    # Salt: the same file each time. Letters as paths: no font is needed to show it.
    with rc_context({"svg.hashsalt": "cac_ext", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        text = io.StringIO()
        yield figure, list(axes), text
        figure.savefig(text, format="svg", metadata={"Date": None})


def _labels() -> tuple[Labels, Labels]:
    """Of anchors [A] and negatives [N], in the order in which pixels come."""
    shuffle = np.random.default_rng(0).permutation
    anchors = shuffle(np.repeat(np.arange(_CLASSES), _COUNTS_OF_ANCHORS))
    negatives = shuffle(np.repeat(np.arange(_CLASSES), _COUNTS_OF_NEGATIVES))
    return anchors, negatives


def _clear(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def anchors() -> str:
    """Which pixels are anchors, by both confidences (Eq. 7)."""
    threshold = 0.75
    with _figure(3.3) as (_, (axes,), text):
        axes.fill([0, threshold, 1, 0], [threshold, threshold, 1, 1], color=_COUNTED)
        axes.fill([threshold, threshold, 1, 1], [0, threshold, 1, 0], color=_BOUNDARY)
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
        axes.text(0.4, 0.88, "1 → 2: pixel of view 1 learns", ha="center", color="white")
        axes.text(
            0.88, 0.37, "2 → 1: pixel of view 2 learns", ha="center", va="center", rotation=90
        )
        axes.text(0.27, 0.5, "no anchor", ha="center")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set_xticks([0, threshold, 1], ["0", "γ", "1"])
        axes.set_yticks([0, threshold, 1], ["0", "γ", "1"])
        axes.set_xlabel("confidence in view 1")
        axes.set_ylabel("confidence in view 2")
    return text.getvalue()


def intervals() -> str:
    """Pairs of the same label, before and after sorting by label."""
    anchor_labels, negative_labels = _labels()
    with _figure(2.5, 2) as (figure, axes, text):
        for drawn, title, a, n in (
            (axes[0], "as pixels come", anchor_labels, negative_labels),
            (axes[1], "sorted by label", np.sort(anchor_labels), np.sort(negative_labels)),
        ):
            counts = a[:, None] != n[None, :]  # [A, N]
            drawn.imshow(counts, cmap=ListedColormap([_MASKED, _COUNTED]), aspect="auto")
            drawn.set_title(title, fontsize=9)
            drawn.set_xlabel("negatives")
            _clear(drawn)
        axes[0].set_ylabel("anchors")
        _legend(figure, {"counts": _COUNTED, "same label: masked": _MASKED})
    return text.getvalue()


def tiles() -> str:
    """Which units a tile skips, multiplies with a mask, and multiplies whole."""
    _, negative_labels = _labels()
    negatives = np.sort(negative_labels)
    slots = _slots()  # [tiles, slots] labels
    counts = slots[:, :, None] != negatives  # [tiles, slots, N]
    counts = counts.reshape(*slots.shape, -1, _UNIT_NEGATIVES)
    some, every = counts.any(axis=(1, 3)), counts.all(axis=(1, 3))  # [tiles, units]
    kinds = some.astype(int) + every  # 0 skipped, 1 boundary, 2 full
    with _figure(2.9) as (figure, (axes,), text):
        colors = [_MASKED, _BOUNDARY, _COUNTED]
        axes.pcolormesh(kinds, cmap=ListedColormap(colors), vmin=0, vmax=2, edgecolor="white", lw=2)
        axes.invert_yaxis()
        axes.set_xlabel(f"units of {_UNIT_NEGATIVES} negatives, sorted by label")
        axes.set_ylabel(f"tiles of {_TILE_SLOTS} anchors")
        axes.xaxis.set_ticks([])
        names = [" ".join("abcd"[label] for label in tile) for tile in slots]
        axes.set_yticks(np.arange(len(slots)) + 0.5, names)
        axes.tick_params(left=False)
        starts = np.searchsorted(negatives, np.arange(_CLASSES)) / _UNIT_NEGATIVES
        for start, label in zip(starts, "abcd", strict=True):
            axes.annotate(
                f"first {label}",
                (start, 0),
                (start, -0.75),
                ha="left",
                fontsize=8,
                arrowprops={"arrowstyle": "->", "lw": 0.8},
                annotation_clip=False,
            )
        names = [f"skipped ({(kinds == 0).sum()})", f"masked pair by pair ({(kinds == 1).sum()})"]
        names.append(f"multiplied whole ({(kinds == 2).sum()})")
        _legend(figure, dict(zip(names, colors, strict=True)))
    return text.getvalue()


def _slots() -> Labels:
    """Labels of the slots, [tiles, slots]: tiles of one class, the rest together in mixed ones."""
    pure, mixed = [], []
    for label, count in enumerate(_COUNTS_OF_ANCHORS):
        whole = count // _TILE_SLOTS * _TILE_SLOTS
        pure += [label] * whole
        mixed += [label] * (count - whole)
    return np.array(pure + mixed).reshape(-1, _TILE_SLOTS)


def one_pass() -> str:
    """The way of one unit of negatives."""
    with _figure(4.3) as (_, (axes,), text):
        axes.set(xlim=(0, 10), ylim=(0, 10.4))
        axes.axis("off")
        _box(axes, 0.1, 8.5, 4.4, 1.5, "tile of anchors a", "stays in fast memory")
        _box(axes, 5.5, 8.5, 4.4, 1.5, "unit of negatives n", "is loaded once")
        _box(axes, 0.1, 6.0, 7.3, 1.3, "scores  s = a · n / τ", "first matrix product")
        _box(axes, 0.1, 3.9, 7.3, 1.3, "p = exp(s − shift), 0 if masked", "in registers alone")
        _box(axes, 0.1, 1.4, 4.0, 1.5, "sum += p", "becomes the loss")
        _box(axes, 5.0, 1.4, 4.9, 1.5, "weighted += p · n", "becomes the gradient")
        for start, end in (
            ((2.3, 8.5), (2.3, 7.3)),
            ((6.6, 8.5), (6.0, 7.3)),
            ((3.7, 6.0), (3.7, 5.2)),
            ((2.1, 3.9), (2.1, 2.9)),
            ((6.0, 3.9), (6.6, 2.9)),
        ):
            _arrow(axes, start, end, "black")
        _arrow(axes, (9.3, 8.5), (9.3, 2.9), _ACCENT)
        axes.text(
            9.15, 5.6, "the same\nunit is\nused\nagain", ha="right", va="center", color=_ACCENT
        )
        axes.text(5, 0.4, "the next unit follows; no s and no p is kept", ha="center")
    return text.getvalue()


def _box(
    axes: Axes, left: float, bottom: float, width: float, height: float, title: str, note: str
) -> None:
    style = "round,pad=0,rounding_size=0.2"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle=style, fc=_BOX, ec=_COUNTED)
    )
    center, middle = left + width / 2, bottom + height / 2
    axes.text(center, middle + 0.08, title, ha="center", va="bottom", weight="bold")
    axes.text(center, middle - 0.08, note, ha="center", va="top", fontsize=8)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=color))


def _legend(figure: Figure, colors: dict[str, str]) -> Any:
    handles = [Patch(facecolor=c, edgecolor="gray", label=name) for name, c in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)


DRAWINGS: dict[str, Callable[[], str]] = {
    "anchors": anchors,
    "intervals": intervals,
    "tiles": tiles,
    "one-pass": one_pass,
}
