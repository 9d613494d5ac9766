"""PSPNet on a dilated ResNet-50, or on VGG-16 for the paper's Table 5 (section 4.1, [60])."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.config import NetworkConfig
from cac_ext.train.networks.backbones import RESNETS, VGGS, build_backbone
from cac_ext.train.networks.contract import SegmentationNetwork
from cac_ext.train.networks.layers import conv_bn_relu, require_batch

_BINS = (1, 2, 3, 6)
_CHANNELS = 512
_STRIDE = 8


class PyramidPooling(nn.Module):
    """Means over grids of 1, 2, 3 and 6 cells a side, beside the features they are means of.

    ``[B, F, h, w] -> [B, 2 F, h, w]``: each of the four means brings ``F / 4`` channels.
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
        # The cells tile the map, so they are interpolated from their centres, not from corners.
        means = [
            F.interpolate(branch(features), size, mode="bilinear", align_corners=False)
            for branch in self.branches
        ]
        return torch.cat([features, *means], dim=1)


class PSPNetEncoder(nn.Module):
    """Backbone, pyramid pooling, 3x3: ``[B, 3, H, W] -> [B, 512, ceil(H / 8), ceil(W / 8)]``.

    Args:
        backbone: see `backbones.py`; "high" at stride 8.
    """

    stride = _STRIDE
    out_channels = _CHANNELS

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid_offset = backbone.grid_offset
        channels = backbone.channels["high"]
        self.pyramid = PyramidPooling(channels)
        self.bottleneck = conv_bn_relu(2 * channels, _CHANNELS, 3)

    def forward(self, images: Tensor) -> Tensor:
        require_batch(images, self.pyramid.branches[0][2])
        return self.bottleneck(self.pyramid(self.backbone(images)["high"]))


def build(config: NetworkConfig, num_classes: int) -> SegmentationNetwork:
    """PSPNet on ``config.backbone`` (resnet50, resnet101, vgg16, vgg16_bn).

    Table 5's VGG-16 network is not described in the paper. Its ResNet-50 row is a PSPNet (it is
    said to be 1.0 above the fully labelled baseline, which is the PSPNet row of Table 1), so VGG-16
    is read as PSPNet's other backbone: all 13 convolutions at stride 8, without the fully
    connected layers. vgg16 has no batch normalisation, as in the networks it is compared with.
    """
    backbone, initial_weights = build_backbone(config, (*RESNETS, *VGGS), output_stride=_STRIDE)
    encoder = PSPNetEncoder(backbone)
    return SegmentationNetwork(
        encoder,
        nn.Conv2d(_CHANNELS, num_classes, 1),
        dropout=config.dropout,
        initial_weights=initial_weights,
    )
