"""Figures of the features of the same pixels in two contexts (paper Fig. 1 and 3).

Two crops of an image show their overlap in two contexts. `tsne_figure` shows the features of the
overlap in both crops and, for comparison, under a low-level augmentation of the first crop.
`grad_cam_figure` shows the regions on which the features of one pixel depend. Both figures compare
the networks of one or several runs on the same crops. The features are those in front of the
projector, which a supervised run does not train.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.augment import CropPairAugment, denormalize
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.truth import WithTruth
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.figures.grad_cam import grad_cam
from cac_ext.train.figures.panels import (
    add_legend,
    as_rgb,
    class_colors,
    marked_cells,
    overlap_outline,
    spread,
)
from cac_ext.train.figures.text import set_fonts, shown_names, shown_text
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.normalization import IMAGENET, Normalization
from cac_ext.train.runtime.seeding import derive_seed, seeded

_IOU_RANGE = (0.1, 0.4)  # crops that share more hardly differ in context
_PIXELS, _FEWEST = 500, 8  # pixels of all overlaps in t-SNE, which shows each three times
_PERPLEXITY = 30
_OTHERS = ("crop 2", "crop 1 recolored")  # compared with crop 1


@dataclass(frozen=True)
class Crops:
    """Two crops of a validation image, and the first one recolored.

    Attributes:
        name: of the image.
        views: crop 1, crop 2 and crop 1 under a low-level augmentation, ``[3, C, S, S]``.
        overlap: of crops 1 and 2, ``[2, L]``: flat feature positions of the same pixels.
        truth: class of these pixels, ``[L]``; -1 if unknown.
        normalization: of the views.
    """

    name: str
    views: Tensor
    overlap: Tensor
    truth: Tensor
    normalization: Normalization = IMAGENET

    def picture(self, view: int) -> np.ndarray:
        """A view as RGB, ``[S, S, 3]`` in [0, 1]."""
        shown = as_rgb(denormalize(self.views[view], self.normalization))
        return shown.permute(1, 2, 0).numpy()


def draw_crops(
    config: Config, splits: DatasetSplits, grid: FeatureGrid, count: int, seed: int
) -> list[Crops]:
    """Draws crops from ``count`` validation images, spread evenly, without mirroring.

    Args:
        config: of the run, for the sizes of images and crops and the low-level augmentation.
        splits: source of the images.
        grid: of the compared features.
        count: number of images.
        seed: of the crops and colors.
    """
    sampler = CropPairSampler(config.augment.crop_size, grid, _IOU_RANGE, flip=0.0)
    still = replace(config.augment, unlabelled_scale=(1.0, 1.0), jitter=0.0, gray=0.0, blur=0.0)
    normalization = Normalization.of(config.data)
    plain = CropPairAugment(still, sampler, normalization=normalization)
    recolored = CropPairAugment(
        replace(still, jitter=1.0, blur=1.0), sampler, normalization=normalization
    )
    # Validation images take the place of unlabelled ones: no network has been trained on them.
    images = WithTruth(splits.validation, replace(splits, unlabelled=None), "figures")
    drawn = []
    for index in spread(len(images), count):
        sample = images[index]
        pairs = []
        for augment in (plain, recolored):
            with seeded(seed, "figures", index):  # the same crops: they are drawn before colors
                pairs.append(augment(sample))
        pair, other = pairs
        truth = pair.view1.truth  # [h, w]
        assert truth is not None  # `WithTruth` knows the masks of validation images
        drawn.append(
            Crops(
                sample["name"],
                torch.stack([pair.view1.image, pair.view2.image, other.view1.image]),
                torch.stack([pair.view1.overlap, pair.view2.overlap]),
                truth.flatten()[pair.view1.overlap].long(),
                normalization,
            )
        )
    return drawn


@torch.no_grad()
def overlap_features(network: SegmentationNetwork, crops: Crops) -> Tensor:
    """Unit features of the overlap in crop 1, crop 2 and the recolored crop 1, ``[3, L, F]``."""
    views = crops.views.to(next(network.parameters()).device)
    features = network.pool(network.features(views)).flatten(2).mT  # [3, h w, F]
    first, second = crops.overlap
    seen = torch.stack([features[0, first], features[1, second], features[2, first]])
    return F.normalize(seen.float(), dim=-1).cpu()


@dataclass(frozen=True)
class Distances:
    """Mean cosine distances between features.

    Attributes:
        context: between a pixel in crop 1 and the same pixel in crop 2.
        recolored: between a pixel in crop 1 and the same pixel in the recolored crop 1.
        any_two: between any two pixels in crop 1. It scales the others, because networks differ in
            how widely they spread their features.
    """

    context: float
    recolored: float
    any_two: float


def mean_distances(features: Tensor) -> Distances:
    """Distances between the features ``[3, L, F]`` of `overlap_features`."""
    context, recolored = ((1 - (features[0] * features[k]).sum(-1)).mean().item() for k in (1, 2))
    # The mean of the products of all pairs of vectors is the squared length of their mean.
    return Distances(context, recolored, 1 - features[0].mean(0).square().sum().item())


def tsne_figure(
    splits: DatasetSplits,
    networks: Mapping[str, SegmentationNetwork],
    crops: Sequence[Crops],
    seed: int,
) -> tuple[Figure, dict[str, Distances]]:
    """Paper Fig. 3: the crops of the first image, and below them a row for each network.

    Dots are features of pixels in crop 1, crosses in the other crop; a line connects the features
    of one pixel. All plots of a row share one embedding (t-SNE of unit features).

    Args:
        splits: source of names and colors.
        networks: title of a row -> network.
        crops: see `draw_crops`.
        seed: of the choice of pixels and of t-SNE.

    Returns:
        The figure, and for each network the `mean_distances` over the overlaps of all images.

    Raises:
        DataError: the class of too few pixels in the overlaps is known.
    """
    truth = torch.cat([part.truth for part in crops])  # [M]
    shown = _choose_pixels(truth, seed)  # [n]
    colors = class_colors(splits)[truth[shown]] / 255
    count = len(networks)
    figure = Figure(figsize=(8, 3.2 + 4.2 * count), layout="constrained")
    cells = figure.add_gridspec(1 + count, 6, height_ratios=[2.8, *[4.2] * count])
    above = [figure.add_subplot(cells[0, 2 * k : 2 * k + 2]) for k in range(3)]
    _show_crops(above, crops[0], next(iter(networks.values())).pooled_grid)
    distances: dict[str, Distances] = {}
    for number, (title, network) in enumerate(networks.items(), 1):
        row = [figure.add_subplot(cells[number, 3 * k : 3 * k + 3]) for k in range(2)]
        features = torch.cat([overlap_features(network, part) for part in crops], dim=1)
        distances[title] = mean_distances(features)
        places = _embed(features[:, shown], seed)  # [3, n, 2]
        row[0].set_ylabel(shown_text(title))
        of_pairs = (distances[title].context, distances[title].recolored)
        for axis, other, text, distance in zip(row, places[1:], _OTHERS, of_pairs, strict=True):
            pairs = np.stack([places[0], other], axis=1)  # [n, 2, 2]
            lines = LineCollection(list(pairs), colors="0.75", linewidths=0.4, zorder=0)
            axis.add_collection(lines)
            (x, y), (other_x, other_y) = places[0].T, other.T
            axis.scatter(x, y, s=9, c=colors, marker="o", linewidths=0)
            axis.scatter(other_x, other_y, s=13, c=colors, marker="x", linewidths=0.7)
            axis.set(xticks=[], yticks=[])
            axis.set_title(
                f"dots: crop 1, crosses: {text}\nmean cosine distance {distance:.4f}", size=9
            )
    add_legend(figure, splits, [part.truth for part in crops])
    set_fonts(figure)
    return figure, distances


def grad_cam_figure(
    splits: DatasetSplits,
    networks: Mapping[str, SegmentationNetwork],
    crops: Sequence[Crops],
    pixel: tuple[int, int] | None = None,
) -> Figure:
    """Paper Fig. 1: a row for each image with its two crops and the Grad-CAM of one pixel in both.

    The cross marks the pixel, the rectangle the overlap. The title of a Grad-CAM names the class
    and the share of the contributions from outside the overlap, which the other crop does not show.
    Colors show the square root of the contributions; otherwise a network with residual connections
    would show little except the pixel itself.

    Args:
        splits: source of the class names.
        networks: title of two columns -> network.
        crops: see `draw_crops`.
        pixel: x, y in crop 1 of the first image; by default, and in all other images, the center of
            the overlap.

    Raises:
        ConfigError: the pixel is outside the overlap.
    """
    columns, names = 2 * (1 + len(networks)), shown_names(splits.class_names)
    grid = next(iter(networks.values())).pooled_grid
    figure = Figure(figsize=(2.3 * columns, 2.75 * len(crops) + 0.2), layout="constrained")
    for number, (row, part) in enumerate(
        zip(figure.subplots(len(crops), columns, squeeze=False), crops, strict=True)
    ):
        side = part.views.shape[-1]
        cells = grid.size(side)
        index = _overlap_index(part.overlap[0], grid, cells, pixel if number == 0 else None)
        for view in range(2):
            position = int(part.overlap[view, index])
            point = [
                grid.offset + grid.stride * cell for cell in (position % cells, position // cells)
            ]
            inside = marked_cells(part.overlap[view], cells, cells)
            picture = part.picture(view)
            row[view].imshow(picture)
            row[view].set_title(f"crop {view + 1}", size=9)
            axes = [row[view]]
            for place, (title, network) in enumerate(networks.items(), 1):
                axis = row[2 * place + view]
                device = next(network.parameters()).device
                cam, class_id = grad_cam(network, part.views[view].to(device), position)
                axis.imshow(picture.mean(axis=2), cmap="gray", vmin=-0.2, vmax=1.2)
                axis.imshow(cam.sqrt().numpy(), cmap="jet", vmin=0, vmax=1, alpha=0.55)
                share = _share_outside(cam, overlap_outline(inside, grid))
                axis.set_title(
                    f"{shown_text(title)}, crop {view + 1}\n{names[class_id]}: {share}", size=9
                )
                axes.append(axis)
            for axis in axes:
                axis.add_patch(overlap_outline(inside, grid))
                axis.plot(*point, "+", color="yellow", markersize=11, markeredgewidth=2.5)
                axis.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
                axis.tick_params(labelsize=6)
        for axis in row[1:]:  # the first shows the coordinates from which a pixel is chosen
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(shown_text(part.name), size=7)
    set_fonts(figure)
    return figure


def _choose_pixels(truth: Tensor, seed: int) -> Tensor:
    """Positions ``[n]`` of pixels of known class, balanced over the classes as far as possible."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "pixels of figures"))
    known = (truth >= 0).nonzero().flatten()
    known = known[torch.randperm(len(known), generator=generator)]
    if len(known) < _FEWEST:
        raise DataError(
            f"the class of only {len(known)} pixels in the overlaps of the crops is known, but "
            f"t-SNE needs {_FEWEST}: raise --images, or try another --seed"
        )
    one_hot = F.one_hot(truth[known])  # [M, K]
    turn = (one_hot.cumsum(0) * one_hot).sum(1)  # [M] rank within the class
    return known[turn.argsort(stable=True)[:_PIXELS]]


def _embed(features: Tensor, seed: int) -> np.ndarray:
    """t-SNE of ``[3, n, F]``: ``[3, n, 2]``, the same for any number of threads."""
    flat = features.flatten(0, 1).numpy()
    tsne = TSNE(perplexity=min(_PERPLEXITY, len(flat) / 4), init="pca", random_state=seed, n_jobs=1)
    with threadpool_limits(1):
        return tsne.fit_transform(flat).reshape(*features.shape[:2], 2)


def _show_crops(axes: Sequence[Axes], crops: Crops, grid: FeatureGrid) -> None:
    cells = grid.size(crops.views.shape[-1])
    first, second = (marked_cells(positions, cells, cells) for positions in crops.overlap)
    side = crops.views.shape[-1]
    for number, (axis, overlap, text) in enumerate(
        zip(axes, (first, second, first), ("crop 1", *_OTHERS), strict=True)
    ):
        axis.imshow(crops.picture(number))
        axis.add_patch(overlap_outline(overlap, grid))
        axis.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
        axis.set(xticks=[], yticks=[])
        axis.set_title(text, size=10)


def _overlap_index(
    positions: Tensor, grid: FeatureGrid, cells: int, pixel: tuple[int, int] | None
) -> int:
    """Index of the overlap position in crop 1 nearest to the pixel, or to the overlap's center."""
    places = torch.stack([positions % cells, positions // cells], dim=1)  # [L, 2] x, y
    places = grid.offset + grid.stride * places.double()
    low, high = places.amin(0), places.amax(0)
    wanted = (low + high) / 2
    if pixel is not None:
        wanted = torch.tensor(pixel, dtype=torch.float64)
        if ((wanted < low - grid.stride / 2) | (wanted > high + grid.stride / 2)).any():
            raise ConfigError(
                f"--pixel {pixel[0]},{pixel[1]} is not in the overlap, which crop 1 of the first "
                f"image shows at x = {low[0]:.0f} to {high[0]:.0f}, y = {low[1]:.0f} to "
                f"{high[1]:.0f}: give a pixel within"
            )
    return int((places - wanted).abs().sum(1).argmin())


def _share_outside(cam: Tensor, overlap: Rectangle) -> str:
    """The share of the contributions ``[S, S]`` outside the rectangle, as text."""
    box = overlap.get_bbox()
    left, top = (max(0, math.ceil(edge)) for edge in (box.x0, box.y0))
    right, bottom = (math.floor(edge) + 1 for edge in (box.x1, box.y1))
    total = cam.sum().item()
    if total == 0:
        return "no contribution"
    inside = cam[top:bottom, left:right].sum().item()
    return f"{100 * (1 - inside / total):.1f}% from outside"
