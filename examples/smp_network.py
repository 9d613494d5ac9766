"""A custom network: any model of segmentation_models.pytorch (smp, 0.5 or newer).

From this folder, in a few minutes on a CPU, with `pip install segmentation-models-pytorch`::

    python smp_network.py
    cac-ext train synthetic network.name=smp_network:build network.options.architecture=fpn \\
        network.options.encoder=resnet18 schedule.epochs=2

``network.weights=imagenet`` downloads the encoder's weights. Encoder and decoder of smp become the
encoder here, everything but the final classifier; the convolution of the segmentation head becomes
the classifier. What follows it, upsampling by interpolation, is done by the trainer.

Choose an encoder whose strided convolutions are padded alike on all sides, such as a ResNet. Others
(TensorFlow's EfficientNets, Mix Transformers with patches) put features beside pixel 0, and the two
crops of an image would not agree.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext import train
from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks import SegmentationNetwork

_POOLED_STRIDE = 8  # pixels between the features that are compared, as in the paper
_PROBE = 64  # pixels


class SmpEncoder(nn.Module):
    """``[B, C, H, W] -> [B, F, ceil(H / stride), ceil(W / stride)]``.

    Args:
        model: of smp: ``encoder`` gives feature maps, ``decoder`` one map of them, and the first
            layer of ``segmentation_head`` is a convolution.
        channels: C, of an image.
    """

    def __init__(self, model: Any, channels: int) -> None:
        super().__init__()
        self.backbone = model.encoder  # trained at optimizer.backbone_factor of the learning rate
        self.decoder = model.decoder
        self.multiple = int(model.encoder.output_stride)
        self.out_channels = int(model.segmentation_head[0].in_channels)
        for module in self.modules():  # its noise would reach the pseudo labels
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0
        self.eval()
        with torch.no_grad():
            probe = torch.zeros(1, channels, _PROBE, _PROBE)
            self.stride = _PROBE // self._decode(probe).shape[-1]
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        # Most decoders take only multiples of the deepest stride.
        images = F.pad(images, (0, -width % self.multiple, 0, -height % self.multiple))
        features = self._decode(images)
        return features[..., : -(-height // self.stride), : -(-width // self.stride)]

    def _decode(self, images: Tensor) -> Tensor:
        features: Tensor = self.decoder(self.backbone(images))
        return features


def build(config: NetworkConfig, num_classes: int, channels: int = 3) -> SegmentationNetwork:
    """Called by the trainer. ``network.options``: ``architecture``, ``encoder``."""
    try:
        smp = importlib.import_module("segmentation_models_pytorch")
    except ImportError as error:
        raise ConfigError(
            f"network.name: {config.name} needs pip install segmentation-models-pytorch ({error})"
        ) from error
    model = smp.create_model(
        config.options.get("architecture", "fpn"),
        encoder_name=config.options.get("encoder", "resnet18"),
        encoder_weights=config.weights,  # null if the weights of a checkpoint follow
        in_channels=channels,
        classes=num_classes,
    )
    encoder = SmpEncoder(model, channels)
    return SegmentationNetwork(
        encoder,
        model.segmentation_head[0],
        dropout=config.dropout,
        feature_pooling=max(1, _POOLED_STRIDE // encoder.stride),
        initial_weights=f"encoder weights {config.weights}" if config.weights else "random weights",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains an FPN on ResNet-18 on the built-in data, or says that smp is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings")
    options = parser.parse_args(arguments)
    if find_spec("segmentation_models_pytorch") is None:
        print("skipped: this example needs pip install segmentation-models-pytorch")
        return
    settings = ["network.name=smp_network:build", "schedule.epochs=2", *options.overrides]
    result = train.train(train.load_config("synthetic", settings))
    print(f"mIoU {100 * result.miou:.2f}; {result.folder}")


if __name__ == "__main__":
    main()
