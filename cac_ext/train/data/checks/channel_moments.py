"""Mean and deviation of the channels of images, for ``data.mean`` and ``data.std``."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-4  # deviation; a channel that is the same everywhere has none


def channel_moments(image: Tensor) -> Tensor:
    """Sums over the pixels of uint8 ``[C, H, W]``: of ones, values and squares, ``[3, C]``.

    Values are from 0 to 1; the sums are float64.
    """
    sums = []
    for channel in image.as_subclass(Tensor):
        values = channel.double() / 255
        count = torch.tensor(float(values.numel()), dtype=torch.float64)
        sums.append(torch.stack([count, values.sum(), values.square().sum()]))
    return torch.stack(sums, dim=1)


def channel_settings(moments: Tensor) -> str:
    """The settings that follow from summed moments: ``data.mean=[...] data.std=[...]``."""
    count, total, squares = moments
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=_LEAST)
    return " ".join(
        f"data.{key}=[{','.join(f'{value:.4f}' for value in values.tolist())}]"
        for key, values in (("mean", mean), ("std", deviation))
    )
