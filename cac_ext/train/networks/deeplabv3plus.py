"""DeepLabv3+, on a ResNet the paper's main network (section 4.1, [7])."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from cac_ext.train.config import NetworkConfig
from cac_ext.train.networks.backbone import Backbone
from cac_ext.train.networks.backbones import RESNETS, build_backbone
from cac_ext.train.networks.contract import SegmentationNetwork
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.layers import conv_bn_relu, require_batch, upsample

_ATROUS_RATES = (6, 12, 18)  # beside the 1x1 convolution and the image pooling
_LOW_CHANNELS = 48
_CHANNELS = 256
_HIGH_STRIDE, _LOW_STRIDE = 16, 4  # the former is what is requested of a backbone


class DeepLabV3PlusEncoder(nn.Module):
    """Backbone, ASPP and decoder: ``[B, C, H, W] -> [B, 256, ceil(H / 4), ceil(W / 4)]``.

    Args:
        backbone: "low" at stride 4, "high" at any stride above, e.g. 16.
    """

    stride = _LOW_STRIDE
    out_channels = _CHANNELS

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        low, high = backbone.grids["low"], backbone.grids["high"]
        self.grid_offset = low.offset
        self.high_grid = FeatureGrid(  # seen from the low features
            high.stride // low.stride, (high.offset - low.offset) / low.stride
        )
        self.aspp = ASPP(backbone.channels["high"], _ATROUS_RATES, _CHANNELS)
        # torchvision's ends with dropout, whose noise would reach the pseudo labels.
        self.aspp.project[-1] = nn.Identity()
        self.low_projection = conv_bn_relu(backbone.channels["low"], _LOW_CHANNELS, 1)
        self.decoder = nn.Sequential(
            conv_bn_relu(_CHANNELS + _LOW_CHANNELS, _CHANNELS, 3),
            conv_bn_relu(_CHANNELS, _CHANNELS, 3),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.maps(images))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's maps, "low" and "high"."""
        require_batch(images, self.aspp.convs[-1][2])
        return self.backbone(images)

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Features of the backbone's maps."""
        low = self.low_projection(maps["low"])  # [B, 48, h, w]
        high = self.aspp(maps["high"])  # [B, 256, ceil(h / 4), ceil(w / 4)] at stride 16
        high = upsample(high, self.high_grid.stride, self.high_grid.offset, low.shape[-2:])
        return self.decoder(torch.cat([high, low], dim=1))


def build(config: NetworkConfig, num_classes: int, channels: int = 3) -> SegmentationNetwork:
    """DeepLabv3+ on ``config.backbone`` (resnet50, resnet101, timm/NAME).

    The unlabelled branch gets the features pooled 2x2, at stride 8 (section 4.1).
    """
    backbone, initial_weights = build_backbone(
        config, RESNETS, output_stride=_HIGH_STRIDE, channels=channels
    )
    encoder = DeepLabV3PlusEncoder(backbone)
    return SegmentationNetwork(
        encoder,
        nn.Conv2d(_CHANNELS, num_classes, 1),
        dropout=config.dropout,
        feature_pooling=2,
        initial_weights=initial_weights,
    )
