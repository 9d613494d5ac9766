"""Layers that several networks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.errors import ConfigError


def conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, batch normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def upsample(features: Tensor, stride: int, offset: float, size: torch.Size) -> Tensor:
    """Bilinear interpolation that keeps every feature at its place on the image.

    ``[B, F, h, w] -> [B, F, *size]``. Interpolation to a size (corner to corner, or cell by cell)
    stretches or shifts the map if that size does not fit the grid, and two crops of one image would
    no longer agree. Here distances are exact for any size; beyond the outermost features, their
    values are repeated.

    Args:
        features: feature ``j`` of a row is centered on pixel ``offset + stride * j``.
        stride: pixels from one feature to the next.
        offset: 0 and ``(stride - 1) / 2`` are exact, others hold to half a pixel.
        size: height and width in pixels.
    """
    h, w = features.shape[-2:]
    if offset == 0:
        scaled = (stride * (h - 1) + 1, stride * (w - 1) + 1)
        pixels = F.interpolate(features, scaled, mode="bilinear", align_corners=True)
        first = 0
    else:
        scaled = (stride * h, stride * w)
        pixels = F.interpolate(features, scaled, mode="bilinear", align_corners=False)
        first = round((stride - 1) / 2 - offset)  # pixel of `pixels` that is pixel 0 of the image
    return _window(_window(pixels, -2, first, size[0]), -1, first, size[1])


def _window(x: Tensor, dim: int, first: int, length: int) -> Tensor:
    """``length`` entries from ``first`` (which may be negative); edges are repeated outwards."""
    before, after = max(0, -first), max(0, first + length - x.shape[dim])
    inner = x.narrow(dim, max(0, first), length - before - after)
    if before == after == 0:
        return inner
    # Not F.pad(mode="replicate"): its gradient differs from run to run on a GPU.
    parts = [inner]
    for amount, edge in ((before, 0), (after, -1)):
        if amount:
            shape = list(x.shape)
            shape[dim] = amount
            border = x.narrow(dim, edge % x.shape[dim], 1).expand(shape)
            parts.insert(0 if edge == 0 else len(parts), border)
    return torch.cat(parts, dim)


def require_batch(images: Tensor, norm: nn.Module) -> None:
    """Raises ConfigError if a global pooling would be normalized over one value a channel.

    Args:
        images: ``[B, C, H, W]``, a training batch.
        norm: batch normalization behind a pooling to 1 x 1.
    """
    # Synchronized over several processes, the normalization is of another class.
    alone = images.shape[0] == 1 and isinstance(norm, nn.BatchNorm2d)
    if norm.training and alone:
        raise ConfigError(
            "this network normalizes pooled features over the batch and cannot train on a single "
            "image: at least 2 images a process are needed (schedule.labelled_batch, "
            "schedule.unlabelled_batch), or synchronized batch normalization over several processes"
        )
