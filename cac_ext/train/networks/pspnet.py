"""PSPNet on a dilated ResNet-50, or on VGG-16 for the paper's Table 5 (section 4.1, [60])."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.config import NetworkConfig
from cac_ext.train.networks.backbone import Backbone
from cac_ext.train.networks.backbones import RESNETS, VGGS, build_backbone
from cac_ext.train.networks.contract import SegmentationNetwork
from cac_ext.train.networks.layers import conv_bn_relu, require_batch

_BINS = (1, 2, 3, 6)
_CHANNELS = 512
_STRIDE = 8


class PyramidPooling(nn.Module):
    """Adds the means over grids of 1, 2, 3 and 6 cells a side to the features.

    ``[B, F, h, w] -> [B, 2 F, h, w]``: each of the four means has ``F / 4`` channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        branch = channels // len(_BINS)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), *conv_bn_relu(channels, branch, 1))
            for bins in _BINS
        )

    def forward(self, features: Tensor) -> Tensor:
        size = features.shape[-2:]
        # The cells tile the map: interpolation starts from their centers, not from corners.
        means = [
            F.interpolate(branch(features), size, mode="bilinear", align_corners=False)
            for branch in self.branches
        ]
        return torch.cat([features, *means], dim=1)


class PSPNetEncoder(nn.Module):
    """Backbone, pyramid pooling, 3x3: ``[B, C, H, W] -> [B, 512, ceil(H / 8), ceil(W / 8)]``.

    Args:
        backbone: "high", at stride 8 or another, which the features then have.
    """

    out_channels = _CHANNELS

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        grid = backbone.grids["high"]
        self.stride, self.grid_offset = grid.stride, grid.offset
        channels = backbone.channels["high"]
        self.pyramid = PyramidPooling(channels)
        self.bottleneck = conv_bn_relu(2 * channels, _CHANNELS, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.maps(images))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's map "high"."""
        require_batch(images, self.pyramid.branches.get_submodule("0.2"))
        return {"high": self.backbone(images)["high"]}

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Features of the backbone's map."""
        return self.bottleneck(self.pyramid(maps["high"]))


def build(config: NetworkConfig, num_classes: int, channels: int = 3) -> SegmentationNetwork:
    """PSPNet on ``config.backbone`` (resnet50, resnet101, vgg16, vgg16_bn, timm/NAME).

    The paper does not describe the VGG-16 network of Table 5. The ResNet-50 row of that table is a
    PSPNet (the paper says that it is 1.0 above the fully labelled baseline, which is the PSPNet row
    of Table 1). So VGG-16 is taken for PSPNet's other backbone: all 13 convolutions at stride 8,
    without the fully connected layers. vgg16 has no batch normalization, like the networks it is
    compared with.
    """
    backbone, initial_weights = build_backbone(
        config, (*RESNETS, *VGGS), output_stride=_STRIDE, channels=channels
    )
    encoder = PSPNetEncoder(backbone)
    return SegmentationNetwork(
        encoder,
        nn.Conv2d(_CHANNELS, num_classes, 1),
        dropout=config.dropout,
        initial_weights=initial_weights,
    )
