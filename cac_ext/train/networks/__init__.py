"""Segmentation networks: the contract (`contract.py`) and the registry of those shipped.

    small            a few minutes on a laptop's CPU
    deeplabv3plus    the paper's main network, on ResNet-50 or ResNet-101
    pspnet           on ResNet-50, ResNet-101 or VGG-16

The latter two also take a backbone of timm by name, ``network.backbone=timm/NAME``
(`timm_backbones.py`).

A custom network needs no change here. Write, in ``my_network.py`` of the current folder or in any
package::

    def build(config: NetworkConfig, num_classes: int, channels: int = 3) -> SegmentationNetwork:
        encoder = ...      # everything but the final classifier; has `out_channels` and `stride`
        classifier = ...   # features to logits
        return SegmentationNetwork(encoder, classifier, dropout=config.dropout)

and train it with ``network.name=my_network:build``. Its own settings, ``network.options.NAME=...``,
are in ``config.options``. ``channels`` is ``data.channels``, the channels of an image; a function
without it serves images of three. ``examples/smp_network.py`` does that for the models of
segmentation_models.pytorch, ``python_tests/own_network.py`` for one of torchvision.

To ship one, write such a function in a module of this package and name it in `NETWORKS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks.contract import SegmentationNetwork
from cac_ext.train.networks.normalization import IMAGENET, RGB, Normalization
from cac_ext.train.runtime.registry import find_builder

#: ``network.name`` -> "module:function" of its builder, imported when a configuration names it.
NETWORKS = {
    "small": "cac_ext.train.networks.small:build",
    "deeplabv3plus": "cac_ext.train.networks.deeplabv3plus:build",
    "pspnet": "cac_ext.train.networks.pspnet:build",
}


def build_network(
    config: NetworkConfig,
    num_classes: int,
    *,
    pretrained: bool = True,
    normalization: Normalization = IMAGENET,
) -> SegmentationNetwork:
    """The network that ``config.name`` names, for ``num_classes`` classes.

    Args:
        config: the network section of a configuration.
        num_classes: K.
        pretrained: False if a checkpoint's weights follow: ``config.weights`` is not read.
        normalization: of the images, `Normalization.of` the section ``data``.

    Raises:
        ConfigError: the name is neither registered nor an importable "package.module:function",
            or the settings do not suit the network.
        TypeError, ValueError: a custom network breaks the contract.
    """
    build = find_builder(config.name, NETWORKS, "network.name")
    if config.name in NETWORKS and config.options:
        raise ConfigError(
            f"network.options is for custom networks, but {config.name} is a shipped one without "
            f"{', '.join(config.options)}: leave it out"
        )
    config = config if pretrained else replace(config, weights=None)
    channels = _channels_argument(build, config.name, normalization.channels)
    network = build(config, num_classes, **channels)
    if not isinstance(network, SegmentationNetwork):
        raise TypeError(
            f"{config.name} must return a cac_ext.train.networks.SegmentationNetwork, "
            f"but returned {type(network).__name__}"
        )
    _check_classifier(network, num_classes)
    network.normalization = normalization
    if not pretrained:
        network.initial_weights = "weights of the checkpoint"
    return network


def _channels_argument(
    build: Callable[..., SegmentationNetwork], name: str, channels: int
) -> dict[str, Any]:
    """``channels`` for a builder, which needs not take it for images of three channels."""
    if channels == RGB:
        return {}
    if "channels" not in inspect.signature(build).parameters:
        raise ConfigError(
            f"data.channels is {channels}, but {name} builds a network for images of {RGB}: give "
            f"it an argument `channels: int = {RGB}`, see cac_ext.train.networks"
        )
    return {"channels": channels}


@torch.no_grad()
def _check_classifier(network: SegmentationNetwork, num_classes: int) -> None:
    features = torch.zeros(1, network.out_channels, 4, 4)
    was_training = network.training
    logits = network.eval().classifier(features)
    network.train(was_training)
    if logits.shape != (1, num_classes, 4, 4):
        raise ValueError(
            f"the classifier must turn features {list(features.shape)} into logits "
            f"[1, {num_classes}, 4, 4], but returned {list(logits.shape)}; see "
            "cac_ext.train.networks"
        )


__all__ = ["NETWORKS", "SegmentationNetwork", "build_network"]
