"""Example: training a model of another package (torchvision's LRASPP on MobileNetV3).

From this folder, in a minute on a CPU::

    cac-ext train synthetic network.name=own_network:build schedule.epochs=2

As for any model, everything but the last, linear layer becomes the encoder, the last layer becomes
the classifier, and dropout in front of it becomes an argument.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from cac_ext.train.config import NetworkConfig
from cac_ext.train.networks import SegmentationNetwork


class LRASPPEncoder(nn.Module):
    """``[B, 3, H, W] -> [B, 168, ceil(H / 8), ceil(W / 8)]``.

    LRASPP adds the logits of two 1x1 convolutions, one on low and one on high features. That equals
    one 1x1 convolution on their concatenation, which is the encoder's output.
    """

    stride = 8  # of the low features

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        model = lraspp_mobilenet_v3_large(
            weights=None, weights_backbone="DEFAULT" if pretrained else None
        )
        head = model.classifier
        self.backbone = model.backbone  # trained at a tenth of the learning rate
        self.reduce, self.gate = head.cbr, head.scale
        self.out_channels = head.low_classifier.in_channels + head.high_classifier.in_channels

    def forward(self, images: Tensor) -> Tensor:
        maps = self.backbone(images)
        low, high = maps["low"], maps["high"]  # [B, 40, h, w], [B, 960, h / 2, w / 2]
        high = self.reduce(high) * self.gate(high)  # [B, 128, h / 2, w / 2]
        high = F.interpolate(high, low.shape[-2:], mode="bilinear", align_corners=True)
        return torch.cat([low, high], dim=1)


def build(config: NetworkConfig, num_classes: int) -> SegmentationNetwork:
    """Called by the trainer; ``network.options.pretrained=true`` downloads ImageNet's weights."""
    encoder = LRASPPEncoder(pretrained=config.options.get("pretrained", False))
    classifier = nn.Conv2d(encoder.out_channels, num_classes, 1)
    return SegmentationNetwork(encoder, classifier, dropout=config.dropout)
