"""Pictures: predictions beside the truth (paper Fig. 8), crop pairs, confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.augment import denormalise
from cac_ext.train.data.batches import CropPairBatch
from cac_ext.train.data.classes import Classes
from cac_ext.train.inference import predict
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.grid import FeatureGrid

_IGNORED_COLOUR = (255, 255, 255)


def class_colours(splits: DatasetSplits | Classes) -> np.ndarray:
    """RGB of each class, ``[K, 3]`` uint8: the data set's own, or matplotlib's."""
    if splits.palette is not None:
        return np.array(splits.palette, np.uint8)
    colours = colormaps["tab20" if splits.num_classes <= 20 else "nipy_spectral"]
    places = (
        np.arange(splits.num_classes)
        if splits.num_classes <= 20
        else np.linspace(0, 1, splits.num_classes)
    )
    return (255 * colours(places)[:, :3]).astype(np.uint8)


def colour_mask(mask: torch.Tensor, splits: DatasetSplits | Classes) -> np.ndarray:
    """Class ids ``[H, W]`` to RGB ``[H, W, 3]``; ignored pixels are white."""
    table = np.full((max(256, splits.ignore_index + 1), 3), _IGNORED_COLOUR, np.uint8)
    table[: splits.num_classes] = class_colours(splits)
    if 0 <= splits.ignore_index < splits.num_classes:
        table[splits.ignore_index] = _IGNORED_COLOUR
    return table[mask.long().cpu().numpy()]


def save_panel(
    path: Path,
    splits: DatasetSplits,
    networks: Mapping[str, SegmentationNetwork],
    *,
    count: int = 6,
) -> None:
    """Writes a picture with a row for each of ``count`` validation images.

    Args:
        path: of the PNG.
        splits: where images, truth, names and colours come from.
        networks: title of a column -> the network that predicts it.
        count: images, spread evenly over the validation set.
    """
    predictions_figure(splits, networks, count=count).savefig(path, dpi=110)


def predictions_figure(
    splits: DatasetSplits, networks: Mapping[str, SegmentationNetwork], *, count: int
) -> Figure:
    """What `save_panel` writes. Leaves the networks' modes as they were."""
    count = min(count, len(splits.validation))
    chosen = torch.linspace(0, len(splits.validation) - 1, count).long().tolist()
    titles = ["image", "truth", *networks]
    figure = Figure(figsize=(2.1 * len(titles), 2.1 * count + 0.7), layout="constrained")
    axes = figure.subplots(count, len(titles), squeeze=False)
    modes = [(network, network.training) for network in networks.values()]
    for network, _ in modes:
        network.eval()
    for row, index in zip(axes, chosen, strict=True):
        sample = splits.validation[index]
        masks = [sample["mask"], *(predict(net, sample["image"]) for net in networks.values())]
        pictures = [sample["image"].permute(1, 2, 0).numpy()]
        pictures += [colour_mask(mask, splits) for mask in masks]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    for network, was_training in modes:
        network.train(was_training)
    for axis, text in zip(axes[0], titles, strict=True):
        axis.set_title(text)
    add_legend(figure, splits)
    return figure


def crop_pair_figure(
    splits: DatasetSplits,
    grid: FeatureGrid,
    pairs: CropPairBatch,
    confidences: Tensor,
    pseudo_labels: Tensor,
    active: tuple[Tensor, Tensor],
) -> Figure:
    """The first crop pair of a step and what the unlabelled branch made of it, a row a view.

    Columns: the view as the network saw it, its overlap with the other view outlined; the pseudo
    labels; the confidences; those of the overlap's pixels that are anchors, in their pseudo label's
    colour; and, where it is known, the truth.

    Args:
        splits: where names and colours come from.
        grid: of the features that are compared.
        pairs: of a step.
        confidences, pseudo_labels: ``[2B, h, w]``, view 1's first.
        active: the anchors in direction 1 -> 2 and in 2 -> 1, ``[A]`` bool each.
    """
    titles = ["view, overlap", "pseudo labels", "confidence", "anchors"]
    titles += ["truth"] if pairs.view1.truth is not None else []
    figure = Figure(figsize=(2.1 * len(titles) + 0.4, 5.2), layout="constrained")
    axes = figure.subplots(2, len(titles), squeeze=False)
    batch, _, _, side = pairs.view1.images.shape
    height, width = confidences.shape[1:]
    # Where the features' cells lie in the view, whose pixels have the edges -0.5, 0.5, ...
    first = grid.offset - grid.stride / 2
    extent = (first, first + grid.stride * width, first + grid.stride * height, first)
    of_first = pairs.image_index == 0  # [A]
    for number, (view, row) in enumerate(zip((pairs.view1, pairs.view2), axes, strict=True)):
        index = number * batch  # of the view among both views of all images
        positions = view.overlap[of_first]
        overlap = marked_cells(positions, height, width)
        anchors = marked_cells(positions[active[number][of_first]], height, width)
        colours = colour_mask(pseudo_labels[index], splits)  # [h, w, 3]
        picture = denormalise(view.images[0]).permute(1, 2, 0).cpu().numpy()
        row[0].imshow(picture)
        if overlap.any():
            row[0].add_patch(overlap_outline(overlap, grid))
        row[1].imshow(colours, extent=extent, interpolation="nearest")
        shades = row[2].imshow(
            confidences[index].float().cpu().numpy(), extent=extent, vmin=0, vmax=1, cmap="viridis"
        )
        row[3].imshow(picture.mean(axis=2), cmap="gray", vmin=-1, vmax=2)
        cells = np.concatenate([colours, 255 * anchors[..., None].astype(np.uint8)], axis=2)
        row[3].imshow(cells, extent=extent, interpolation="nearest")
        if view.truth is not None:
            truth = view.truth[0]  # [h, w]
            truth = torch.where(truth < 0, splits.ignore_index, truth)
            row[4].imshow(colour_mask(truth, splits), extent=extent, interpolation="nearest")
        row[0].set_ylabel(f"view {number + 1}")
        row[3].set_xlabel(
            f"{number + 1} -> {2 - number}: {int(anchors.sum())} of {int(overlap.sum())}"
        )
        for axis in row:
            axis.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5), xticks=[], yticks=[])
    for axis, text in zip(axes[0], titles, strict=True):
        axis.set_title(text)
    figure.colorbar(shades, ax=axes[:, 2], shrink=0.6)
    add_legend(figure, splits)
    return figure


def save_confusion(path: Path, confusion: torch.Tensor, class_names: Sequence[str]) -> None:
    """Writes a picture of a confusion matrix ``[K, K]``: of each true class, the shares in percent.

    The numbers stand in it where there is room for them.
    """
    shares = 100 * confusion.double() / confusion.sum(1, keepdim=True)  # nan: does not occur
    count = len(class_names)
    side = min(3 + 0.45 * count, 30)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares.numpy(), vmin=0, vmax=100, cmap="Blues")
    figure.colorbar(image, label="% of the true class's pixels", shrink=0.8)
    axis.set_xticks(range(count), class_names, rotation=90)
    axis.set_yticks(range(count), class_names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if count <= 30:
        for row, column in (~shares.isnan() & (shares >= 0.5)).nonzero().tolist():
            value = shares[row, column].item()
            colour = "white" if value > 50 else "black"
            axis.text(column, row, f"{value:.0f}", color=colour, ha="center", va="center", size=7)
    figure.savefig(path, dpi=110)


def marked_cells(positions: Tensor, height: int, width: int) -> np.ndarray:
    """Which cells of ``[h, w]`` flat positions name, bool."""
    cells = torch.zeros(height * width, dtype=torch.bool)
    cells[positions.cpu()] = True
    return cells.view(height, width).numpy()


def overlap_outline(overlap: np.ndarray, grid: FeatureGrid) -> Rectangle:
    """The rectangle of the cells ``[h, w]`` that the other view sees, in pixels of the view."""
    rows, columns = (np.flatnonzero(overlap.any(axis=axis)) for axis in (1, 0))
    left, top = (grid.offset + grid.stride * (cells[0] - 0.5) for cells in (columns, rows))
    size = [grid.stride * (cells[-1] - cells[0] + 1) for cells in (columns, rows)]
    return Rectangle((left, top), *size, fill=False, edgecolor="red", linewidth=2)


def add_legend(figure: Figure, splits: DatasetSplits) -> None:
    """Names and colours of the classes, below the figure, which grows by the rows it needs."""
    colours = class_colours(splits) / 255
    column = 0.6 + 0.09 * max(map(len, splits.class_names))  # inches that the longest name takes
    columns = max(1, min(8, splits.num_classes, int(figure.get_figwidth() / column)))
    rows = -(-splits.num_classes // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * (rows - 1))
    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor="0.5", label=name)
            for colour, name in zip(colours, splits.class_names, strict=True)
        ],
        loc="outside lower center",
        ncols=columns,
        frameon=False,
    )
