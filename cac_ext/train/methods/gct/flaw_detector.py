"""The flaw detector: a fully convolutional network that sees an image and its prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Side in pixels of the smallest crop. A smaller one shrinks to maps of a single place, which have
#: no variance to normalize by.
SMALLEST_CROP = 20

_CHANNELS = 64
_STAGES = ((1, 2), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1))  # channels / 64, stride


class IBNorm(nn.Module):
    """Batch normalization of the first half of the channels, instance normalization of the rest.

    The first half has weights and biases, the second has none.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        self.batch = nn.BatchNorm2d(self.split)
        self.instance = nn.InstanceNorm2d(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:  # [B, F, h, w]
        first, second = x[:, : self.split], x[:, self.split :]
        return torch.cat([self.batch(first), self.instance(second)], dim=1)


class FlawDetector(nn.Module):
    """Maps of flaws, 0 where a prediction is right; they are not limited to [0, 1].

    Seven 4x4 convolutions with `IBNorm` and leaky ReLU, a last one to a single channel, bilinear
    interpolation to the size of the image.

    Args:
        num_classes: K.
        channels: of an image.
    """

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = channels + num_classes
        for factor, stride in _STAGES:
            outputs = factor * _CHANNELS
            # With stride 1 one more pixel of padding than the authors have, so that maps do not
            # shrink. No bias: the norm would remove it.
            padding = 1 if stride == 2 else 2
            stages += [
                nn.Conv2d(inputs, outputs, 4, stride, padding, bias=False),
                IBNorm(outputs),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.last = nn.Conv2d(inputs, 1, 4, 2, 1)

    def forward(self, images: Tensor, *predictions: Tensor) -> list[Tensor]:
        """A map ``[B, S, S]`` for each prediction.

        Several predictions in one call are normalized one by one, as in several calls; but DDP
        counts one.

        Args:
            images: ``[B, C, S, S]``, normalized.
            predictions: class probabilities of the images, ``[B, K, S, S]`` each.
        """
        return [self._flaws(torch.cat([images, x], dim=1)) for x in predictions]

    def _flaws(self, x: Tensor) -> Tensor:
        flaws = self.last(self.stages(x))  # [B, 1, h, w]
        size = x.shape[-2:]
        flaws = F.interpolate(flaws, size, mode="bilinear", align_corners=True)
        return flaws.squeeze(1).float()
