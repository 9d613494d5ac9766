"""Curves of runs over their epochs: validation mIoU (paper Fig. 7), negatives (paper Fig. 6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cac_ext.train.figures.legend import legend_below
from cac_ext.train.figures.text import set_fonts, shown_text, shown_titles

#: Colors that color-blind readers tell apart (Okabe and Ito), without the yellow.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SELECTED, _RANDOM = _COLORS[0], _COLORS[4]  # blue and orange, as in the paper
_MARKERS = "osD^vPX"
_MOST_MARKED = 25  # points of a curve with a marker
_DASHES = (0, (4, 2))
IOU_1 = "IoU_1.0"
_IOU_1_NOTE = f"{IOU_1}: both crops of an image are the same, but for low-level augmentation"


@dataclass(frozen=True)
class ValidationCurve:
    """The validation mIoU of a run.

    Attributes:
        data: name of the data set.
        epochs: of the evaluations.
        iterations: of the evaluations.
        miou: in [0, 1].
        whole_overlap: whether the crops of every pair overlap totally: IoU_1.0 of Fig. 7.
    """

    data: str
    epochs: list[float]
    iterations: list[int]
    miou: list[float]
    whole_overlap: bool


@dataclass(frozen=True)
class PrecisionCurve:
    """The mean precision of the negatives of a run's epochs.

    Attributes:
        epochs: counted from 1.
        selected: share of true negatives among the selected ones, in [0, 1].
        random: among negatives drawn at random.
    """

    epochs: list[int]
    selected: list[float]
    random: list[float]


class _Look(NamedTuple):
    color: str
    marker: str


def validation_figure(curves: Mapping[str, ValidationCurve]) -> Figure:
    """Paper Fig. 7: a plot for each data set with a curve for each run.

    A run whose crops overlap totally has a dashed line, hollow markers and ``(IoU_1.0)`` behind its
    name. The axis shows epochs, or iterations if the epochs of the runs have different lengths.

    Args:
        curves: by the name of the run.
    """
    places = list(dict.fromkeys(curve.data for curve in curves.values()))
    by_epoch = len({_epoch_length(curve) for curve in curves.values()}) == 1
    figure = Figure(figsize=(max(6.4, 5.2 * len(places)), 4.6), layout="constrained")
    axes = dict(zip(places, figure.subplots(1, len(places), squeeze=False)[0], strict=True))
    handles, labels = [], []
    for name, shown, look in zip(
        curves, shown_titles([*curves]), _looks(len(curves)), strict=False
    ):
        curve = curves[name]
        (line,) = axes[curve.data].plot(
            curve.epochs if by_epoch else curve.iterations,
            [100 * value for value in curve.miou],
            color=look.color,
            marker=look.marker,
            markevery=_spacing(curve.miou),
            markersize=5,
            linestyle=_DASHES if curve.whole_overlap else "-",
            markerfacecolor="white" if curve.whole_overlap else look.color,
        )
        handles.append(line)
        labels.append(f"{shown} ({IOU_1})" if curve.whole_overlap else shown)
    for data, axis in axes.items():
        axis.set_title(f"validation on {shown_text(data)}")
        _finish(axis, "epoch" if by_epoch else "iteration", "mIoU (%)")
    note = any(curve.whole_overlap for curve in curves.values())
    legend_below(figure, handles, labels, _IOU_1_NOTE if note else "")
    set_fonts(figure)
    return figure


def precision_figure(curves: Mapping[str, PrecisionCurve]) -> Figure:
    """Paper Fig. 6: the precision of selected negatives by epoch, and of random ones (dashed).

    One run has the paper's colors, blue and orange; each of several runs has one color.

    Args:
        curves: by the name of the run.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.subplots()
    handles: list[Artist] = []
    labels = []
    for name, shown, look in zip(
        curves, shown_titles([*curves]), _looks(len(curves)), strict=False
    ):
        curve = curves[name]
        for kind, shares in (("selected", curve.selected), ("random", curve.random)):
            selected = kind == "selected"
            (line,) = axis.plot(
                curve.epochs,
                [100 * share for share in shares],
                color=look.color if len(curves) > 1 else _SELECTED if selected else _RANDOM,
                marker=look.marker,
                markevery=_spacing(shares),
                markersize=5,
                linestyle="-" if selected else _DASHES,
                markerfacecolor=None if selected else "white",
            )
            handles.append(line)
            labels.append(f"{shown}, {kind}" if len(curves) > 1 else f"{kind} negatives")
    axis.set_title("precision of negatives")
    axis.set_ylim(-2, 102)
    _finish(axis, "epoch", "true negatives (% of the pairs)")
    legend_below(figure, handles, labels)
    set_fonts(figure)
    return figure


def _looks(count: int) -> Iterator[_Look]:
    """Different pairs of color and marker; colors repeat after seven."""
    for index in range(count):
        turn = index // len(_COLORS)
        yield _Look(_COLORS[index % len(_COLORS)], _MARKERS[(index + turn) % len(_MARKERS)])


def _spacing(values: Sequence[float]) -> int:
    return -(-len(values) // _MOST_MARKED)


def _epoch_length(curve: ValidationCurve) -> int:
    return round(curve.iterations[-1] / curve.epochs[-1])


def _finish(axis: Axes, x: str, y: str) -> None:
    axis.set(xlabel=x, ylabel=y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
