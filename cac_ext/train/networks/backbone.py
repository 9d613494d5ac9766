"""What a decoder needs to know of a backbone."""

from __future__ import annotations

from torch import nn

from cac_ext.train.networks.grid import FeatureGrid


class Backbone(nn.Module):
    """``[B, C, H, W]`` to feature maps by name: "low" and "high" (VGG-16: "high" alone).

    Attributes:
        channels: of each map.
        grids: where the features of each map lie on the image.
    """

    channels: dict[str, int]
    grids: dict[str, FeatureGrid]
