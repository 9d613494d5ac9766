"""Predictions for an image of any size: in one pass, at several scales, by windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext.train.data.augment import normalize
from cac_ext.train.data.rescale import resize
from cac_ext.train.networks import SegmentationNetwork


@dataclass(frozen=True)
class Inference:
    """Test-time options. Default: one pass over the whole image at its own size.

    Attributes:
        scales: factors of the image's size; the class probabilities are averaged.
        flip: average with the probabilities of the mirrored image.
        window: side in pixels of windows that slide over the (scaled) image and overlap by at least
            a third; None for one pass over the whole image.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None

    def __str__(self) -> str:
        parts = ["scale " + " ".join(f"{scale:g}" for scale in self.scales)]
        parts += ["flip"] * self.flip
        parts += [f"window {self.window}"] if self.window else []
        return ", ".join(parts)


SINGLE_SCALE = Inference()


@torch.no_grad()
def predict_logits(network: SegmentationNetwork, image: Tensor) -> Tensor:
    """Logits ``[1, K, H, W]`` of a uint8 image ``[3, H, W]`` of any size, on the network's device.

    The image is padded by reflection to a size that fits the feature grid; the logits are cropped.
    """
    device = next(network.parameters()).device
    height, width = image.shape[-2:]
    missing_y = network.grid.fitting_size(height) - height
    missing_x = network.grid.fitting_size(width) - width
    batch = normalize(image.to(device))[None]  # [1, 3, H, W]
    mode = "reflect" if missing_y < height and missing_x < width else "replicate"
    batch = F.pad(batch, (0, missing_x, 0, missing_y), mode=mode)
    return network(batch)[..., :height, :width]


def class_probabilities(
    network: SegmentationNetwork, image: Tensor, inference: Inference = SINGLE_SCALE
) -> Tensor:
    """Class probabilities ``[K, H, W]`` of a uint8 image ``[3, H, W]``, on the network's device."""
    height, width = image.shape[-2:]
    total: Tensor | None = None
    views = 0
    for scale in inference.scales:
        size = [max(1, round(scale * height)), max(1, round(scale * width))]
        scaled = resize(image, *size)
        for flip in (False, True)[: 1 + inference.flip]:
            seen = scaled.flip(-1) if flip else scaled
            probabilities = _by_windows(network, seen, inference.window)  # [1, K, *size]
            probabilities = probabilities.flip(-1) if flip else probabilities
            if size != [height, width]:
                probabilities = F.interpolate(probabilities, (height, width), mode="bilinear")
            total = probabilities[0] if total is None else total.add_(probabilities[0])
            views += 1
    if total is None:
        raise ValueError("Inference.scales is empty: give one scale or more")
    return total if views == 1 else total.div_(views)


def predict(
    network: SegmentationNetwork, image: Tensor, inference: Inference = SINGLE_SCALE
) -> Tensor:
    """Class of each pixel, ``[3, H, W] uint8 -> [H, W]`` int64.

    With one scale and windows, memory does not grow with the height of the image: rows that all
    their windows have seen are turned into classes at once.
    """
    if inference == SINGLE_SCALE:
        return predict_logits(network, image).argmax(dim=1)[0]
    if inference.scales == (1.0,) and not inference.flip and inference.window is not None:
        bands = _bands(network, image, inference.window)
        return torch.cat([band.argmax(dim=0) for band in bands])
    return class_probabilities(network, image, inference).argmax(dim=0)


def _by_windows(network: SegmentationNetwork, image: Tensor, window: int | None) -> Tensor:
    """Class probabilities ``[1, K, H, W]``, averaged over the windows that see a pixel."""
    if window is None:
        return predict_logits(network, image).softmax(dim=1)
    bands = _bands(network, image, window)
    first = next(bands)  # [K, rows, W]
    whole = first.new_empty((first.shape[0], *image.shape[-2:]))
    row = 0
    for band in chain([first], bands):
        whole[:, row : row + band.shape[1]] = band
        row += band.shape[1]
    return whole[None]


def _bands(network: SegmentationNetwork, image: Tensor, window: int) -> Iterator[Tensor]:
    """Bands of class probabilities ``[K, rows, W]`` from top to bottom, averaged over the windows.

    A band is complete where the next row of windows begins, so the sums cover one window's height.
    """
    height, width = image.shape[-2:]
    if window >= max(height, width):
        yield predict_logits(network, image).softmax(dim=1)[0]
        return
    lefts, tops = list(_starts(width, window)), list(_starts(height, window))
    across, down = _coverage(lefts, window, width), _coverage(tops, window, height)
    total: Tensor | None = None  # [K, up to `window` rows, W], of the rows from `top` on
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        rows = min(window, height - top)
        for left in lefts:
            crop = image[:, top : top + window, left : left + window]
            probabilities = predict_logits(network, crop).softmax(dim=1)[0]  # [K, rows, columns]
            if total is None:
                total = probabilities.new_zeros((len(probabilities), min(window, height), width))
            total[:, :rows, left : left + crop.shape[2]] += probabilities
        assert total is not None  # there is a window in each row
        done = next_top - top
        counts = down[top:next_top, None] * across[None, :]  # [done, W]
        yield total[:, :done] / counts.to(total.device)
        kept = total[:, done:rows].clone()
        total[:, : rows - done] = kept
        total[:, rows - done :] = 0


def _coverage(starts: list[int], window: int, size: int) -> Tensor:
    """Number of windows that see each position along one side, ``[size]``."""
    counts = torch.zeros(size)
    for start in starts:
        counts[start : start + window] += 1
    return counts


def _starts(size: int, window: int) -> Iterator[int]:
    """Evenly spaced starts of windows that reach both ends and overlap by at least a third."""
    steps = math.ceil(max(size - window, 0) / max(1, window * 2 // 3))
    for step in range(steps + 1):
        yield round(step * (size - window) / steps) if steps else 0
