"""A custom network: a small U-Net, written from scratch.

From this folder, in a minute on a CPU::

    python unet.py network.options.width=24

or with the command line, as for any module of yours::

    cac-ext train synthetic network.name=unet:build schedule.epochs=2

The trainer needs two parts: an *encoder*, everything up to the last features, which says how many
channels they have (``out_channels``) and how many pixels lie between them (``stride``), and a
*classifier*, which turns features into logits. The trainer upsamples.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cac_ext import train
from cac_ext.train.config import NetworkConfig
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.layers import upsample

QUICK = ["schedule.epochs=2", "schedule.warmup_epochs=1", "schedule.iterations_per_epoch=50"]
GROUP = 8  # channels that are normalized together


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two convolutions; the first, padded alike on all sides, may halve the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1),
        nn.GroupNorm(outputs // GROUP, outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(outputs // GROUP, outputs),
        nn.ReLU(inplace=True),
    )


class UNetEncoder(nn.Module):
    """``[B, C, H, W] -> [B, width, ceil(H / 4), ceil(W / 4)]``: down to stride 16 and up to 4."""

    stride = 4

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        widths = [width // 2, width, 2 * width, 4 * width]
        pairs = zip([channels, *widths], widths, strict=False)
        self.down = nn.ModuleList(block(inputs, outputs, 2) for inputs, outputs in pairs)
        self.up = nn.ModuleList(block(3 * outputs, outputs, 1) for outputs in widths[2:0:-1])
        self.out_channels = width

    def forward(self, images: Tensor) -> Tensor:
        maps = []
        features = images
        for down in self.down:
            features = down(features)
            maps.append(features)
        for up, skipped in zip(self.up, maps[2:0:-1], strict=True):
            # Every feature stays at its place on the image, whatever the size.
            larger = upsample(features, 2, 0.0, skipped.shape[-2:])
            features = up(torch.cat([larger, skipped], dim=1))
        return features


def build(config: NetworkConfig, num_classes: int, channels: int = 3) -> SegmentationNetwork:
    """Called by the trainer. ``network.options.width``: channels of the features.

    ``channels``: of an image, ``data.channels``; a function without it serves RGB images alone.
    """
    encoder = UNetEncoder(config.options.get("width", 32), channels)
    classifier = nn.Conv2d(encoder.out_channels, num_classes, 1)
    return SegmentationNetwork(encoder, classifier, dropout=config.dropout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the U-Net on the built-in data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings")
    options = parser.parse_args(arguments)
    settings = ["network.name=unet:build", *QUICK, *options.overrides]
    result = train.train(train.load_config("synthetic", settings))
    print(f"mIoU {100 * result.miou:.2f}; {result.folder}")


if __name__ == "__main__":
    main()
