"""Pictures of predictions: image, truth, and what each method makes of it (paper Fig. 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.classes import Classes
from cac_ext.train.inference import predict
from cac_ext.train.networks import SegmentationNetwork

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
    colours = class_colours(splits) / 255
    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor="0.5", label=name)
            for colour, name in zip(colours, splits.class_names, strict=True)
        ],
        loc="outside lower center",
        ncols=min(8, splits.num_classes),
        frameon=False,
    )
    figure.savefig(path, dpi=110)


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
