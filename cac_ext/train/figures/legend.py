"""A legend below a figure, outside of the data."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from cac_ext.train.figures.text import width_of


def legend_below(
    figure: Figure, handles: Sequence[Artist], labels: Sequence[str], note: str = ""
) -> None:
    """Adds a legend of as many columns as fit; the figure grows by the rows needed.

    The note is a line of small print above the legend.
    """
    if not labels:
        return
    column = 0.6 + 0.09 * max(map(width_of, labels))  # inches that the longest name takes
    columns = max(1, min(8, len(labels), int(figure.get_figwidth() / column)))
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * (rows - 1 + bool(note)))
    legend = figure.legend(
        handles=handles,
        labels=["-"] * len(labels),  # real ones below: "_..." would be dropped here
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=note or None,
        title_fontproperties={"size": 8},
    )
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)
