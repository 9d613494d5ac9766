"""Maps of flaws: what the detector learns, and what the networks learn from its answers.

Sizes: B images, S pixels a side, K classes. No function changes its arguments or passes a gradient.

Only counted pixels take part, ``counted`` ``[B, S, S]`` bool: no padding and no ignored pixel. A
blur is the weighted mean of the counted pixels around; maxima and minima are those of the counted
pixels. If all pixels count, these are the authors' operations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_FLAW = 0.1  # an image whose largest flaw is not above it has no flaw
_EPSILON = 1e-9


class Guidance(NamedTuple):
    """What both networks learn from each other on a batch."""

    targets: tuple[Tensor, Tensor]  # [B, K, S, S], class probabilities for each network
    both_flawed: Tensor  # [B, S, S] bool


@torch.no_grad()
def true_flaws(probabilities: Tensor, masks: Tensor, counted: Tensor) -> Tensor:
    """The detector's target, ``[B, S, S]`` in [0, 1] for each image; 0 on pixels not counted.

    The flaw of a pixel is half the L1 distance of its probabilities to the true class, that is one
    minus the true class's probability. Then: blur (S / 8), 3x3 maximum, blur (S / 4), stretch.

    Args:
        probabilities: ``[B, K, S, S]``.
        masks: ``[B, S, S]``.
        counted: False where the mask is ignored.
    """
    side = masks.shape[-1]
    labels = masks.masked_fill(~counted, 0)
    flaws = 1 - probabilities.gather(1, labels[:, None]).squeeze(1)
    flaws = blurred(flaws, counted, side // 8)
    flaws = flaws.masked_fill(~counted, 0)  # no maximum, for no flaw is negative
    flaws = F.max_pool2d(flaws[:, None], 3, stride=1, padding=1).squeeze(1)
    flaws = blurred(flaws, counted, side // 4)
    return _stretched(flaws, counted, *_range(flaws, counted))


@torch.no_grad()
def handled_flaws(flaws: Tensor, counted: Tensor) -> Tensor:
    """The detector's maps for comparison, ``[B, S, S]`` in [0, 1]; 0 on pixels not counted.

    Clamped at 0, blurred (S / 16), and stretched to [0, 1]. An image without a flaw above 0.1 is 0
    everywhere.
    """
    smooth = blurred(flaws.clamp(min=0), counted, flaws.shape[-1] // 16)
    low, high = _range(smooth, counted)
    return _stretched(smooth, counted, low, high).masked_fill(high <= _LEAST_FLAW, 0)


@torch.no_grad()
def guidance(
    probabilities: tuple[Tensor, Tensor], handled: tuple[Tensor, Tensor], threshold: float
) -> Guidance:
    """Where a network is the less flawed one it keeps its prediction, elsewhere it takes the other.

    Args:
        probabilities: of each network, ``[B, K, S, S]``.
        handled: of each network, by `handled_flaws`.
        threshold: a larger flaw counts as 1. Where both have one, both keep their predictions.
    """
    flawed1, flawed2 = (flaws > threshold for flaws in handled)
    flaws1, flaws2 = handled[0].masked_fill(flawed1, 1), handled[1].masked_fill(flawed2, 1)
    first, second = probabilities
    keeps1, keeps2 = (flaws2 >= flaws1)[:, None], (flaws1 >= flaws2)[:, None]
    targets = torch.where(keeps1, first, second), torch.where(keeps2, second, first)
    return Guidance(targets, flawed1 & flawed2)


def blurred(maps: Tensor, counted: Tensor, kernel: int) -> Tensor:
    """The mean of the counted pixels around each pixel, weighted by a Gaussian; 0 if none is near.

    Args:
        maps: ``[B, S, S]``.
        counted: ``[B, S, S]``.
        kernel: pixels; made odd. The deviation is ``0.3 ((kernel - 1) / 2 - 1) + 0.8``.
    """
    kernel |= 1
    pair = torch.stack([maps.masked_fill(~counted, 0), counted.to(maps.dtype)])  # [2, B, S, S]
    total, weight = _gaussian_sums(pair.flatten(0, 1)[:, None], kernel).squeeze(1).chunk(2)
    return total / weight.clamp(min=_EPSILON)


def _gaussian_sums(x: Tensor, kernel: int) -> Tensor:
    """``[N, 1, S, S]`` blurred along rows, then along columns; mirrored at the border."""
    reach = kernel // 2
    deviation = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = (-0.5 * (offsets / deviation).square()).softmax(dim=0)
    with torch.autocast(x.device.type, enabled=False):
        x = F.pad(x, [reach] * 4, mode="reflect")
        return F.conv2d(F.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


def _range(maps: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of the counted pixels of each image, ``[B, 1, 1]``."""
    low = maps.masked_fill(~counted, torch.inf).amin(dim=(1, 2), keepdim=True)
    high = maps.masked_fill(~counted, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return low, high


def _stretched(maps: Tensor, counted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``low`` to 0 and ``high`` to 1; 0 on pixels that do not count."""
    return ((maps - low) / (high - low + _EPSILON)).masked_fill(~counted, 0)
