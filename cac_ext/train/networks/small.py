"""A small network that trains on a laptop's CPU in minutes: strided stem, dilated residual blocks.

Group normalization instead of batch normalization: the result does not depend on how processes
share a batch, nor on whether labelled and unlabelled images are normalized together.
"""

from __future__ import annotations

from torch import Tensor, nn

from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks.contract import SegmentationNetwork

_DILATIONS = (1, 2, 4, 1)
_GROUP_CHANNELS = 8


def _normalized_conv(
    inputs: int, outputs: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )
    return nn.Sequential(conv, nn.GroupNorm(outputs // _GROUP_CHANNELS, outputs))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.first = _normalized_conv(channels, channels, dilation=dilation)
        self.second = _normalized_conv(channels, channels)
        self.relu = nn.ReLU(inplace=True)
        # A block starts as the identity, which speeds up the first few hundred iterations.
        nn.init.zeros_(self.second.get_parameter("1.weight"))

    def forward(self, x: Tensor) -> Tensor:  # [B, F, h, w]
        return self.relu(x + self.second(self.relu(self.first(x))))


class SmallEncoder(nn.Module):
    """Features at a quarter of the size: ``[B, C, H, W] -> [B, width, H / 4, W / 4]``."""

    stride = 4

    def __init__(self, width: int, channels: int = 3) -> None:
        super().__init__()
        self.out_channels = width
        self.stem = nn.Sequential(
            _normalized_conv(channels, width // 2, stride=2),
            nn.ReLU(inplace=True),
            _normalized_conv(width // 2, width, stride=2),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(*(_ResidualBlock(width, d) for d in _DILATIONS))

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.maps(images))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The output of the stem, at a quarter of the size."""
        return {"stem": self.stem(images)}

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Features of the stem's output."""
        return self.blocks(maps["stem"])


def build(config: NetworkConfig, num_classes: int, channels: int = 3) -> SegmentationNetwork:
    """The small network for ``num_classes`` classes, ``config.width`` features wide.

    ``channels`` are those of an image.
    """
    if config.width % (2 * _GROUP_CHANNELS):
        raise ConfigError(
            f"network.width of the small network must be a multiple of {2 * _GROUP_CHANNELS}, "
            f"but is {config.width}"
        )
    if config.weights is not None:
        raise ConfigError(
            "network.weights: there are no pretrained weights for the small network; leave it out"
        )
    encoder = SmallEncoder(config.width, channels)
    classifier = nn.Conv2d(config.width, num_classes, 1)
    return SegmentationNetwork(encoder, classifier, dropout=config.dropout)
