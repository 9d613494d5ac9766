"""The projector: from features to the space in which the two views are compared."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """1x1 convolution, ReLU, 1x1 convolution, unit length (paper section 4.1). Training only.

    ``[B, F, h, w] -> [B, C, h, w]``, each position of length 1, in float32 also under autocast.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, out_channels, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features).float(), dim=1)


class NoProjector(nn.Module):
    """The features, scaled to unit length: "no projector" in the paper's Table 3."""

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features.float(), dim=1)
