"""Figures: predictions beside the truth (paper Fig. 8), crop pairs, confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.augment import denormalize
from cac_ext.train.data.batches import CropPairBatch
from cac_ext.train.data.classes import Classes
from cac_ext.train.figures.legend import legend_below
from cac_ext.train.figures.text import folded, set_fonts, shown_names, shown_titles
from cac_ext.train.inference import SINGLE_SCALE, Inference, predict, smallest_dtype
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.normalization import IMAGENET, Normalization

_IGNORED_COLOR = (255, 255, 255)
_MANY_COLORS = 64  # most classes for which the colors of a color map differ enough
_LEGEND = 40  # most classes in a legend
_MOST_SHOWN = 4096  # pixels along a side; of a larger image a figure shows every k-th
_COLUMN = 18  # width of a column's title in characters
_NUMBERS, _NAMES = 30, 100  # most classes for which a confusion matrix has numbers, all names


def class_colors(splits: DatasetSplits | Classes) -> np.ndarray:
    """RGB of each class, ``[K, 3]`` uint8: from the palette, or all different without one."""
    count = splits.num_classes
    if splits.palette is not None:
        return np.array(splits.palette, np.uint8)
    if count > _MANY_COLORS:
        return _spread_colors(count)
    colors = colormaps["tab20" if count <= 20 else "nipy_spectral"]
    places = np.arange(count) if count <= 20 else np.linspace(0, 1, count)
    return (255 * colors(places)[:, :3]).astype(np.uint8)


def _spread_colors(count: int) -> np.ndarray:
    """``count`` different colors, ``[count, 3]`` uint8, as far apart as possible."""
    steps = math.ceil((count + 1) ** (1 / 3))  # levels of each channel; white is for ignored pixels
    levels = np.linspace(0, 255, steps).astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    order = np.random.default_rng(0).permutation(len(colors) - 1)  # neighbors differ, too
    return colors[order[:count]]


def color_mask(mask: torch.Tensor, splits: DatasetSplits | Classes) -> np.ndarray:
    """Class ids ``[H, W]`` -> RGB ``[H, W, 3]`` uint8; ignored pixels are white."""
    count = splits.num_classes
    table = np.vstack([class_colors(splits), np.array([_IGNORED_COLOR], np.uint8)])
    ids = mask.long().cpu().numpy()
    known = (ids >= 0) & (ids < count) & (ids != splits.ignore_index)
    return table[np.where(known, ids, count)]


def spread(length: int, count: int) -> list[int]:
    """At most ``count`` indices of a list of this length, evenly from its first to its last."""
    return torch.linspace(0, length - 1, min(count, length)).long().tolist()


def as_rgb(image: Tensor) -> Tensor:
    """How an image ``[C, H, W]`` is shown, ``[3, H, W]``: its first three channels as RGB.

    Of one or two channels the first is shown in gray.
    """
    return image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)


def save_panel(
    path: Path,
    splits: DatasetSplits,
    networks: Mapping[str, SegmentationNetwork],
    *,
    count: int = 6,
    inference: Inference = SINGLE_SCALE,
) -> None:
    """Writes a figure with a row for each of ``count`` validation images.

    Args:
        path: of the PNG.
        splits: source of images, truth, names and colors.
        networks: title of a column -> network.
        count: number of images, spread evenly over the validation set.
        inference: test-time options.
    """
    figure = predictions_figure(splits, networks, count=count, inference=inference)
    figure.savefig(path, dpi=110)


def predictions_figure(
    splits: DatasetSplits,
    networks: Mapping[str, SegmentationNetwork],
    *,
    count: int,
    inference: Inference = SINGLE_SCALE,
) -> Figure:
    """The figure that `save_panel` writes. Restores the modes of the networks."""
    chosen = spread(len(splits.validation), count)
    count = len(chosen)
    titles = ["image", "truth", *(folded(text, _COLUMN) for text in shown_titles([*networks]))]
    figure = Figure(figsize=(2.1 * len(titles), 2.1 * count + 0.7), layout="constrained")
    axes = figure.subplots(count, len(titles), squeeze=False)
    modes = [(network, network.training) for network in networks.values()]
    for network, _ in modes:
        network.eval()
    seen: list[Tensor] = []
    for row, index in zip(axes, chosen, strict=True):
        sample = splits.validation[index]
        image = sample["image"]
        dtype = smallest_dtype(splits.num_classes)
        found = [predict(net, image, inference, dtype=dtype) for net in networks.values()]
        step = math.ceil(max(image.shape[-2:]) / _MOST_SHOWN)
        masks = [mask[::step, ::step] for mask in (sample["mask"], *found)]
        seen += masks
        pictures = [as_rgb(image[:, ::step, ::step]).permute(1, 2, 0).numpy()]
        pictures += [color_mask(mask, splits) for mask in masks]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for network, was_training in modes:
        network.train(was_training)
    for axis, text in zip(axes[0], titles, strict=True):
        axis.set_title(text)
    add_legend(figure, splits, seen)
    set_fonts(figure)
    return figure


def crop_pair_figure(
    splits: DatasetSplits,
    grid: FeatureGrid,
    pairs: CropPairBatch,
    confidences: Tensor,
    pseudo_labels: Tensor,
    active: tuple[Tensor, Tensor],
    normalization: Normalization = IMAGENET,
) -> Figure:
    """The first crop pair of a step and its results in the unlabelled branch, a row for each view.

    Columns: the view as the network saw it, with its overlap outlined; the pseudo labels; the
    confidences; the overlap pixels that are anchors, in the color of their pseudo label; and the
    truth if it is known.

    Args:
        splits: source of names and colors.
        grid: of the compared features.
        pairs: of a step.
        confidences, pseudo_labels: ``[2B, h, w]``, those of view 1 first.
        active: the anchors in direction 1 -> 2 and in 2 -> 1, ``[A]`` bool each.
        normalization: of the views.
    """
    titles = ["view, overlap", "pseudo labels", "confidence", "anchors"]
    titles += ["truth"] if pairs.view1.truth is not None else []
    figure = Figure(figsize=(2.1 * len(titles) + 0.4, 5.2), layout="constrained")
    axes = figure.subplots(2, len(titles), squeeze=False)
    batch, _, _, side = pairs.view1.images.shape
    height, width = confidences.shape[1:]
    # The extent of the feature cells in the view, whose pixels have the edges -0.5, 0.5, ...
    first = grid.offset - grid.stride / 2
    extent = (first, first + grid.stride * width, first + grid.stride * height, first)
    of_first = pairs.image_index == 0  # [A]
    seen: list[Tensor] = []
    for number, (view, row) in enumerate(zip((pairs.view1, pairs.view2), axes, strict=True)):
        index = number * batch  # of the view among both views of all images
        positions = view.overlap[of_first]
        seen.append(pseudo_labels[index])
        overlap = marked_cells(positions, height, width)
        anchors = marked_cells(positions[active[number][of_first]], height, width)
        colors = color_mask(pseudo_labels[index], splits)  # [h, w, 3]
        shown = as_rgb(denormalize(view.images[0], normalization))
        picture = shown.permute(1, 2, 0).cpu().numpy()
        row[0].imshow(picture)
        if overlap.any():
            row[0].add_patch(overlap_outline(overlap, grid))
        row[1].imshow(colors, extent=extent, interpolation="nearest")
        shades = row[2].imshow(
            confidences[index].float().cpu().numpy(), extent=extent, vmin=0, vmax=1, cmap="viridis"
        )
        row[3].imshow(picture.mean(axis=2), cmap="gray", vmin=-1, vmax=2)
        cells = np.concatenate([colors, 255 * anchors[..., None].astype(np.uint8)], axis=2)
        row[3].imshow(cells, extent=extent, interpolation="nearest")
        if view.truth is not None:
            truth = view.truth[0]  # [h, w]
            truth = torch.where(truth < 0, splits.ignore_index, truth)
            seen.append(truth)
            row[4].imshow(color_mask(truth, splits), extent=extent, interpolation="nearest")
        row[0].set_ylabel(f"view {number + 1}")
        row[3].set_xlabel(
            f"{number + 1} -> {2 - number}: {int(anchors.sum())} of {int(overlap.sum())}"
        )
        for axis in row:
            axis.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5), xticks=[], yticks=[])
    for axis, text in zip(axes[0], titles, strict=True):
        axis.set_title(text)
    figure.colorbar(shades, ax=axes[:, 2], shrink=0.6)
    add_legend(figure, splits, seen)
    set_fonts(figure)
    return figure


def save_confusion(path: Path, confusion: torch.Tensor, class_names: Sequence[str]) -> None:
    """Writes `confusion_figure` as a PNG."""
    confusion_figure(confusion, class_names).savefig(path, dpi=110)


def confusion_figure(confusion: torch.Tensor, class_names: Sequence[str]) -> Figure:
    """A figure of a confusion matrix ``[K, K]`` in percent of each true class.

    Numbers are shown up to 30 classes, all names up to 100; beyond, evenly spaced names.
    """
    shares = 100 * confusion.double() / confusion.sum(1, keepdim=True)  # nan for an absent class
    count = len(class_names)
    side = min(3 + 0.45 * count, 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares.numpy(), vmin=0, vmax=100, cmap="Blues")
    figure.colorbar(image, label="% of the true class's pixels", shrink=0.8)
    names = shown_names(class_names)
    shown = range(0, count, max(1, math.ceil(count / _NAMES)))
    axis.set_xticks(shown, [names[k] for k in shown], rotation=90)
    axis.set_yticks(shown, [names[k] for k in shown])
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if count <= _NUMBERS:
        for row, column in (~shares.isnan() & (shares >= 0.5)).nonzero().tolist():
            value = shares[row, column].item()
            color = "white" if value > 50 else "black"
            axis.text(column, row, f"{value:.0f}", color=color, ha="center", va="center", size=7)
    set_fonts(figure)
    return figure


def marked_cells(positions: Tensor, height: int, width: int) -> np.ndarray:
    """Flat positions as a mask ``[h, w]`` bool."""
    cells = torch.zeros(height * width, dtype=torch.bool)
    cells[positions.cpu()] = True
    return cells.view(height, width).numpy()


def overlap_outline(overlap: np.ndarray, grid: FeatureGrid) -> Rectangle:
    """The rectangle around the cells ``[h, w]`` of the overlap, in pixels of the view."""
    rows, columns = (np.flatnonzero(overlap.any(axis=axis)) for axis in (1, 0))
    left, top = (grid.offset + grid.stride * (cells[0] - 0.5) for cells in (columns, rows))
    size = [grid.stride * (cells[-1] - cells[0] + 1) for cells in (columns, rows)]
    return Rectangle((left, top), *size, fill=False, edgecolor="red", linewidth=2)


def add_legend(figure: Figure, splits: DatasetSplits, masks: Iterable[Tensor] = ()) -> None:
    """Adds names and colors of the classes below the figure, which grows by the rows needed.

    With more than forty classes the legend shows at most forty of those in ``masks``: tensors of
    class ids, of any shape.
    """
    colors, names = class_colors(splits) / 255, shown_names(splits.class_names)
    listed = list(range(splits.num_classes))
    if len(listed) > _LEGEND:
        ids = torch.cat([mask.flatten().long().cpu() for mask in masks] or [torch.tensor(listed)])
        listed = [k for k in ids.unique().tolist() if k in set(listed) - {splits.ignore_index}]
    more = len(listed) - _LEGEND
    labels = [names[k] for k in listed[:_LEGEND]]
    patches = [Patch(facecolor=colors[k], edgecolor="0.5") for k in listed[:_LEGEND]]
    if more > 0:
        labels.append(f"and {more} more")
        patches.append(Patch(facecolor="none", edgecolor="none"))
    legend_below(figure, patches, labels)
