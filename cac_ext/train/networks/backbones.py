"""Pretrained backbones: torchvision's ResNet and VGG-16, dilated to an output stride, and timm's.

torchvision's have torchvision's names of parameters, so that classification weights fit
(`weights.py`). For those of timm see `timm_backbones.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torchvision
from torch import nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.vgg import cfgs, make_layers

from cac_ext.train.config import NetworkConfig, nearest
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks.backbone import Backbone
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.normalization import RGB
from cac_ext.train.networks.timm_backbones import PREFIX, build_timm_backbone
from cac_ext.train.networks.weights import load_backbone_weights

RESNETS = ("resnet50", "resnet101")
VGGS = ("vgg16", "vgg16_bn")


class TorchvisionBackbone(IntermediateLayerGetter, Backbone):
    """The outputs of some layers of a model.

    Args:
        model: whose layers are run in order.
        layers: layer of the model -> name of its output.
        channels: of each output.
        grids: of each output.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, str],
        channels: Mapping[str, int],
        grids: Mapping[str, FeatureGrid],
    ) -> None:
        super().__init__(model, dict(layers))
        self.channels = dict(channels)
        self.grids = dict(grids)


def build_backbone(
    config: NetworkConfig, allowed: Sequence[str], output_stride: int, *, channels: int = RGB
) -> tuple[Backbone, str]:
    """The backbone that ``config`` names, and a sentence on the origin of its weights.

    Args:
        config: ``backbone``, ``weights``, ``stride_in``.
        allowed: the backbones of torchvision that the network supports.
        output_stride: pixels from one "high" feature to the next, 8 or 16 (VGG-16: 8). A backbone
            of timm that cannot do that has another: see its ``grids``.
        channels: of an image. For other than three, the first convolution is another one; how it
            gets pretrained weights, `weights.adapted_to` says.

    Raises:
        ConfigError: the backbone is not allowed, or the weights cannot be used.
    """
    if config.backbone.startswith(PREFIX):
        return build_timm_backbone(config, output_stride, channels)
    if config.backbone not in allowed:
        raise ConfigError(
            f"network.backbone: {config.name} has no backbone {config.backbone!r}"
            f"{nearest(config.backbone, allowed)}; allowed are {', '.join(allowed)}, and "
            f"{PREFIX}NAME for a network of timm"
        )
    if config.backbone in VGGS:
        if config.stride_in != "3x3":
            raise ConfigError(
                f"network.stride_in: {config.backbone} has no strided convolutions; leave it out"
            )
        backbone = _vgg16(channels, batch_norm=config.backbone == "vgg16_bn")
    else:
        backbone = _resnet(config.backbone, output_stride, config.stride_in, channels)
    if config.weights is None:
        return backbone, f"{config.backbone} backbone from random weights"
    return backbone, str(load_backbone_weights(backbone, config.backbone, config.weights))


def _resnet(name: str, output_stride: int, stride_in: str, channels: int) -> TorchvisionBackbone:
    dilated = {8: [False, True, True], 16: [False, False, True]}[output_stride]
    model = torchvision.models.get_model(name, weights=None, replace_stride_with_dilation=dilated)
    if channels != RGB:
        model.conv1 = _with_inputs(model.conv1, channels)
    if stride_in == "1x1":
        move_stride_to_1x1(model)
    widths = {
        "low": model.layer1[-1].conv3.out_channels,
        "high": model.layer4[-1].conv3.out_channels,
    }
    grids = {"low": FeatureGrid(4), "high": FeatureGrid(output_stride)}
    return TorchvisionBackbone(model, {"layer1": "low", "layer4": "high"}, widths, grids)


def _with_inputs(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A convolution like ``conv``, for another number of input channels, with random weights."""
    other = nn.Conv2d(
        channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        (conv.stride[0], conv.stride[1]),
        conv.kernel_size[0] // 2,
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(other.weight, mode="fan_out", nonlinearity="relu")
    return other


def move_stride_to_1x1(model: resnet.ResNet) -> None:
    """Moves each stage's stride from the 3x3 convolution to the first 1x1, as in the ResNet paper.

    Weights trained with one placement lose accuracy in the other. If dilation has replaced a
    stage's stride, there is no stride to move, but the placement still counts: behind a strided
    1x1 convolution the first 3x3 sees only every second position, so it must be dilated like the
    rest of its stage. (torchvision dilates it like the stage before, which is right if the 3x3
    itself is strided.)
    """
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        first, second = stage[0], stage[1]
        first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)
        first.conv2.dilation = first.conv2.padding = second.conv2.dilation


def _vgg16(channels: int, *, batch_norm: bool) -> TorchvisionBackbone:
    """VGG-16's convolutions at stride 8: without pool4 and pool5, the last three dilated.

    There are no fully connected layers. Pooling rounds sizes up, so that a feature map has
    ``ceil(H / 8)`` rows and no pixel is lost.
    """
    features = make_layers(cfgs["D"], batch_norm=batch_norm)
    if channels != RGB:
        features[0] = _with_inputs(features[0], channels)
    pools = [name for name, module in features.named_children() if isinstance(module, nn.MaxPool2d)]
    for name in pools[:3]:
        features.get_submodule(name).ceil_mode = True
    fourth, fifth = int(pools[3]), int(pools[4])
    features[fourth] = nn.Identity()
    for module in features[fourth:fifth]:
        if isinstance(module, nn.Conv2d):
            module.dilation = module.padding = (2, 2)
    for module in features.modules():  # as torchvision's VGG, which has 123 M more parameters
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    # After three poolings of 2 x 2 a feature is centered in its 8 x 8 pixels.
    grids = {"high": FeatureGrid(8, 3.5)}
    return TorchvisionBackbone(features, {str(fifth - 1): "high"}, {"high": 512}, grids)
