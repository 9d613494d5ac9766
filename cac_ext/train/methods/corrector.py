"""The corrector of Error-Correcting Supervision: finds and amends a segmentation's errors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cac_ext.train.networks.layers import upsample

_SLOPE = 0.2  # of the leaky ReLUs, as in GAN discriminators
_STRIDE = 4
#: Channels, stride and dilation of the 3x3 convolutions; together they see 119 pixels.
_LAYERS = ((64, 2, 1), (128, 2, 1), (128, 1, 2), (128, 1, 4), (128, 1, 8))


class Corrector(nn.Module):
    """Image and class probabilities to ``K + 1`` logits a pixel: a class, or "correct" (the last).

    Strided 3x3 convolutions as in GAN discriminators, then dilated ones, which keep details at a
    quarter of the image's size. No batch normalization: corrections of an image depend on it alone.
    Any image size works.
    """

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        inputs = channels + num_classes
        for channels, stride, dilation in _LAYERS:
            conv = nn.Conv2d(inputs, channels, 3, stride, padding=dilation, dilation=dilation)
            nn.init.kaiming_normal_(conv.weight, a=_SLOPE)
            layers += [conv, nn.LeakyReLU(_SLOPE)]
            inputs = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(inputs, num_classes + 1, 1)

    @property
    def correct(self) -> int:
        """The index of "correct": K."""
        return self.num_classes

    def forward(self, images: Tensor, probabilities: Tensor) -> Tensor:
        """``[B, C, H, W]`` and ``[B, K, H, W]`` to ``[B, K + 1, H, W]``."""
        logits = self.classifier(self.features(torch.cat([images, probabilities], dim=1)))
        return upsample(logits, _STRIDE, 0.0, images.shape[-2:])
