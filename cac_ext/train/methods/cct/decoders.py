"""Auxiliary decoders, and the fine grid on which their predictions lie.

A decoder doubles the resolution of its input n times, where ``2^n`` is the largest power of two
up to the stride. A feature becomes a square of ``2^n x 2^n`` cells, centered where the feature is.
The main prediction is interpolated to the same cells. For masks of the image, each cell takes the
pixel nearest to its center; cells outside the image do not count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.networks.grid import FeatureGrid


def doublings_of(grid: FeatureGrid) -> int:
    """n: how often a decoder doubles the resolution; 3 for a stride of 8."""
    return grid.stride.bit_length() - 1


class Doubling(nn.Module):
    """1x1 convolution, ReLU, pixel shuffle: ``[B, K, h, w] -> [B, K, 2 h, 2 w]``.

    The initial weights repeat each class's filter four times (ICNR, Aitken et al., 2017), so that
    the new cells of a position start equal, without a checkerboard.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(classes, 4 * classes, 1)
        filters = nn.init.kaiming_normal_(torch.empty(classes, classes, 1, 1))
        with torch.no_grad():
            self.conv.weight.copy_(filters.repeat_interleave(4, dim=0))
            if self.conv.bias is not None:
                self.conv.bias.copy_(self.conv.bias[::4].repeat_interleave(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x).relu(), 2)


def build_decoder(channels: int, classes: int, doublings: int) -> nn.Sequential:
    """``[B, F, h, w]`` to logits ``[B, K, 2^n h, 2^n w]``. It holds nothing random."""
    first = nn.Conv2d(channels, classes, 1, bias=False)
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    return nn.Sequential(first, *(Doubling(classes) for _ in range(doublings)))


def interpolate_to_cells(logits: Tensor, doublings: int) -> Tensor:
    """``[B, K, h, w] -> [B, K, 2^n h, 2^n w]``, bilinear, each value at the center of its cell."""
    if doublings == 0:
        return logits
    h, w = logits.shape[-2:]
    size = (h << doublings, w << doublings)
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def pixels_of_cells(masks: Tensor, grid: FeatureGrid, doublings: int, fill: int) -> Tensor:
    """The pixel nearest to the center of each cell, ``fill`` where that is outside the image.

    ``[B, H, W] -> [B, 2^n h, 2^n w]``; with 0 doublings the pixels on which features are centered.
    """
    for dim in (1, 2):
        pixels = masks.shape[dim]
        cells = torch.arange(grid.size(pixels) << doublings, device=masks.device)
        centers = grid.offset + grid.stride * ((cells + 0.5) / (1 << doublings) - 0.5)
        nearest = (centers + 0.5).floor().long()
        inside = ((nearest >= 0) & (nearest < pixels)).view(-1, *[1] * (2 - dim))
        masks = masks.index_select(dim, nearest.clamp(0, pixels - 1))
        masks = torch.where(inside, masks, fill)
    return masks


Decode = Callable[[Tensor], Tensor]
