"""Backbones of timm by name: ``network.backbone=timm/NAME``.

**Grid.** Features must stay at the same place on every crop of an image. What timm offers fits in
one of two ways, and a probe at construction finds out which:

* padded: ``ceil(H / stride)`` features in a column, the first on pixel 0 (ResNet, MobileNet,
  EfficientNet, RegNet, PVTv2, ...);
* patches: ``floor(H / stride)`` features, the first on pixel ``(stride - 1) / 2`` (ConvNeXt, VGG).
  Images are padded at the right and at the bottom to a multiple of the stride.

Anything else is refused, e.g. a transformer that takes one image size.

**TensorFlow's padding.** Networks converted from TensorFlow (``tf_*``) pad more or less on the left
depending on the size of the image, which moves all features by up to ``stride - 1`` pixels. Here
they pad ``(kernel - 1) / 2`` on all sides. With the same weights that gives the same features for
images of ``32 k + 1`` pixels, and away from the border the same features of a shifted image for
all other sizes.

**Stride.** A padded network is dilated to the output stride that the decoder requests, if timm can
do that. All others keep their last stride, often 32: a dilated 2x2 patch would move the grid.

**Normalization.** The trainer normalizes images by the mean and deviation of ImageNet. If timm
states other values for the weights, the backbone converts its input. They are in the checkpoint.
For images of other than three channels it takes timm's mean over the channels, for each.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.config import NetworkConfig, nearest
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks.backbone import Backbone
from cac_ext.train.networks.efficientnet_names import converted_from_tensorflow, to_timm_names
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.normalization import (
    INPUT_MEAN,
    INPUT_STD,
    RGB,
    usual_normalization,
)
from cac_ext.train.networks.weights import is_weights_file, read_weights_file, set_weights

PREFIX = "timm/"
_LOW_STRIDE = 4
_USUAL_STRIDE = 32  # the last of most networks, if they are not dilated
_PRETRAINED = "pretrained"


class _Layout(NamedTuple):
    """Which of a network's maps are used, and where their features lie."""

    arguments: dict[str, Any]  # of timm.create_model
    low: int  # index among the maps
    high: int
    high_stride: int
    patches: bool


class TimmBackbone(Backbone):
    """Maps "low" at stride 4 and "high" at the last stride; see the module's docstring.

    Args:
        model: of timm, which gives a list of maps.
        layout: of those maps.
        channels: of an image.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, layout: _Layout, channels: int = RGB) -> None:
        super().__init__()
        self.model = model
        self._layout = layout
        widths: list[int] = model.feature_info.channels()
        self.channels = {"low": widths[layout.low], "high": widths[layout.high]}
        self.grids = {
            name: FeatureGrid(stride, (stride - 1) / 2 if layout.patches else 0.0)
            for name, stride in (("low", _LOW_STRIDE), ("high", layout.high_stride))
        }
        self._is_nhwc = str(getattr(model, "output_fmt", "")).endswith("NHWC")
        self.own_mean, self.own_std = (
            tuple(float(x) for x in model.pretrained_cfg[key]) for key in ("mean", "std")
        )
        usual = usual_normalization(channels)
        own = [self.own_mean, self.own_std]
        if channels != RGB:
            own = [(sum(values) / len(values),) * channels for values in own]
            if not self.has_own_normalization:  # no conversion, whatever the rounding
                own = [usual.mean, usual.std]
        values = [usual.mean, usual.std, *own]
        mean, std, own_mean, own_std = torch.tensor(values).double()[..., None, None]  # [C, 1, 1]
        self.register_buffer("scale", (std / own_std).float())
        self.register_buffer("shift", ((mean - own_mean) / own_std).float())

    @property
    def has_own_normalization(self) -> bool:
        """Whether the network expects another mean or deviation than ImageNet's."""
        return (self.own_mean, self.own_std) != (INPUT_MEAN, INPUT_STD)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``[B, C, H, W]`` to the maps by name."""
        height, width = images.shape[-2:]
        images = torch.addcmul(self.shift, images, self.scale)
        if self._layout.patches:
            stride = self._layout.high_stride
            images = F.pad(images, (0, -width % stride, 0, -height % stride))
        maps = self.model(images)
        low, high = maps[self._layout.low], maps[self._layout.high]
        if self._is_nhwc:
            low, high = (x.permute(0, 3, 1, 2).contiguous() for x in (low, high))
        grid = self.grids["low"]
        return {"low": low[..., : grid.size(height), : grid.size(width)], "high": high}


def build_timm_backbone(
    config: NetworkConfig, output_stride: int, channels: int = RGB
) -> tuple[TimmBackbone, str]:
    """The backbone that ``config.backbone`` names, and a sentence on the origin of its weights.

    Args:
        config: ``backbone`` is ``timm/NAME`` or ``timm/NAME.TAG``; ``weights`` is null,
            "pretrained", a tag of timm's, or a file.
        output_stride: pixels from one "high" feature to the next, if the network can do that.
        channels: of an image. timm turns the first convolution of its own weights into one for
            them, as `weights.adapted_to` does for those of a file.

    Raises:
        ConfigError: timm is not installed, does not know the network or the weights, or the network
            offers no suitable features.
    """
    timm = _import_timm()
    name = config.backbone.removeprefix(PREFIX)
    if "/" in name or ":" in name or not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(
            f"network.backbone: timm {timm.__version__} has no network {name!r}"
            f"{nearest(name, known)}; `timm.list_models()` names its {len(known)}"
        )
    if config.stride_in != "3x3":
        raise ConfigError(
            "network.stride_in is for torchvision's ResNets: a network of timm has its own "
            "placement of strides; leave it out"
        )
    layout = _find_layout(timm, name, output_stride, channels)
    weights = config.weights
    if weights is None or is_weights_file(weights):
        model = timm.create_model(name, **layout.arguments)
    else:
        name = _with_tag(timm, name, weights)
        model = _download(timm, name, layout)
    pad_symmetrically(model)
    backbone = TimmBackbone(model, layout, channels)
    origin = f"{PREFIX}{name} backbone from random weights"
    if weights is not None and is_weights_file(weights):
        origin = _load_file(model, name, weights)
    elif weights is not None:
        origin = f"backbone weights {PREFIX}{name} of timm"
    if backbone.has_own_normalization:
        origin += f"; its input has mean {backbone.own_mean} and deviation {backbone.own_std}"
    return backbone, origin


def pad_symmetrically(model: nn.Module) -> None:
    """Replaces padding that depends on the image size by ``(kernel - 1) / 2`` on all sides."""
    layers = importlib.import_module("timm.layers")
    for module in model.modules():
        if isinstance(module, layers.Conv2dSame):
            module.__class__ = nn.Conv2d  # the same parameters
            module.padding = _half(module.kernel_size, module.dilation)
        elif isinstance(module, nn.Conv2d) and getattr(module, "same_pad", False):
            vars(module)["same_pad"] = False  # of convolutions with standardized weights
            module.padding = _half(module.kernel_size, module.dilation)
        elif type(module).__name__ == "MaxPool2dSame" and isinstance(module, nn.MaxPool2d):
            module.__class__ = nn.MaxPool2d
            module.padding = _half(module.kernel_size, module.dilation)


def _half(kernel: Any, dilation: Any) -> tuple[int, int]:
    kernels = kernel if isinstance(kernel, tuple | list) else (kernel, kernel)
    dilations = dilation if isinstance(dilation, tuple | list) else (dilation, dilation)
    rows, columns = (d * (k - 1) // 2 for k, d in zip(kernels, dilations, strict=True))
    return rows, columns


def _import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"network.backbone: {PREFIX}NAME needs the package timm, which cannot be imported "
            f"({error}): pip install 'cac_ext[timm]' or pip install timm"
        ) from error


def _find_layout(timm: ModuleType, name: str, output_stride: int, channels: int) -> _Layout:
    """Tries the network on a small image, dilated and not. Leaves the random state as it was."""
    arguments: dict[str, Any] = {"features_only": True}
    if channels != RGB:
        arguments["in_chans"] = channels
    with suppress(ConfigError):
        layout = _probe(timm, name, {**arguments, "output_stride": output_stride}, channels)
        if not layout.patches:
            return layout
    return _probe(timm, name, arguments, channels)


@torch.no_grad()
def _probe(timm: ModuleType, name: str, arguments: dict[str, Any], channels: int) -> _Layout:
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # each network rejects an argument in its own way
        raise ConfigError(
            f"network.backbone: timm's {name} offers no feature maps ({error})"
        ) from error
    reductions: list[int] = model.feature_info.reduction()
    if _LOW_STRIDE not in reductions or reductions[-1] <= _LOW_STRIDE:
        raise ConfigError(
            f"network.backbone: timm's {name} offers features at the strides "
            f"{', '.join(map(str, reductions))}, but a decoder needs stride {_LOW_STRIDE} and one "
            "above it"
        )
    low, high = len(reductions) - 1 - reductions[::-1].index(_LOW_STRIDE), len(reductions) - 1
    pad_symmetrically(model)
    side = 2 * max(_USUAL_STRIDE, reductions[high]) + 1
    try:
        maps = model.eval()(torch.zeros(1, channels, side, side))
    except Exception as error:  # a network for one size, or for sizes without a remainder
        raise ConfigError(
            f"network.backbone: timm's {name} takes no image of {side} x {side} pixels, but crops "
            f"and images have any size ({error})"
        ) from error
    axes = slice(1, 3) if str(getattr(model, "output_fmt", "")).endswith("NHWC") else slice(2, 4)
    sizes = [tuple(maps[i].shape[axes]) for i in (low, high)]
    strides = [reductions[i] for i in (low, high)]
    floors = [(side // stride,) * 2 for stride in strides]
    ceilings = [(rows + 1, columns + 1) for rows, columns in floors]
    if sizes not in (floors, ceilings):
        raise ConfigError(
            f"network.backbone: timm's {name} turns {side} pixels into "
            f"{' and '.join(str(size[0]) for size in sizes)} features at the strides "
            f"{strides[0]} and {strides[1]}, so that the place of a feature on the image is not "
            "known; use another backbone"
        )
    return _Layout(arguments, low, high, reductions[high], patches=sizes == floors)


def _with_tag(timm: ModuleType, name: str, weights: str) -> str:
    """The name with the tag of its weights."""
    architecture, _, own_tag = name.partition(".")
    tags = [x.partition(".")[2] for x in timm.list_pretrained(f"{architecture}.*")]
    if weights == _PRETRAINED and tags:
        tag = own_tag or str(timm.get_pretrained_cfg(architecture).tag)
    else:
        tag = weights
    if tag not in tags:
        allowed = ", ".join([_PRETRAINED, *tags, ""]) if tags else ""
        raise ConfigError(
            f"network.weights: timm has no weights {tag!r} for {architecture}{nearest(tag, tags)}; "
            f"allowed are {allowed}and a file (.safetensors, .pth)"
        )
    return f"{architecture}.{tag}"


def _download(timm: ModuleType, name: str, layout: _Layout) -> nn.Module:
    try:
        model = timm.create_model(name, pretrained=True, **layout.arguments)
    except Exception as error:  # each of its sources has its own exceptions
        raise ConfigError(
            f"network.weights: timm cannot load its weights of {name}: {error}. If this machine is "
            "offline, download them elsewhere (https://huggingface.co/timm) and give the file as "
            "network.weights"
        ) from error
    assert isinstance(model, nn.Module)
    return model


def _load_file(model: nn.Module, name: str, weights: str) -> str:
    state: Mapping[str, Tensor] = read_weights_file(weights)
    note = ""
    if converted_from_tensorflow(state):
        if not name.startswith("tf_efficientnet"):
            raise ConfigError(
                f"network.weights: {weights} has the names of EfficientNet-PyTorch, whose weights "
                "come from TensorFlow. They need its batch normalization and input, which timm's "
                f"{name} does not have; use network.backbone={PREFIX}tf_efficientnet_... of the "
                "same size, e.g. tf_efficientnet_lite0"
            )
        state = to_timm_names(state, model)
        note = "; names of EfficientNet-PyTorch turned into timm's"
    names = {name: _unflattened(name, model) for name in model.state_dict()}
    return f"{set_weights(model, name, state, weights, names)}{note}"


def _unflattened(name: str, model: nn.Module) -> str:
    """A tensor's name in timm's classification network.

    timm moves the parts of a sequence up when it extracts features (``stages.0`` is ``stages_0``),
    or puts the whole network below ``model``.
    """
    top, _, rest = name.partition(".")
    if type(model).__name__ == "FeatureGetterNet":
        return rest
    sequence, underscore, index = top.rpartition("_")
    if isinstance(model, nn.ModuleDict) and underscore and index.isdecimal():
        return f"{sequence}.{index}.{rest}"
    return name
