"""What a segmentation network is, so that any encoder and classifier can be trained.

* ``encoder``: ``[B, C, H, W] -> [B, F, ceil(H / stride), ceil(W / stride)]``, everything but the
  final classifier, with the attributes

  - ``out_channels`` (int): F;
  - ``stride`` (int): pixels from one feature to the next;
  - ``grid_offset`` (float, optional, 0 if absent): the pixel on which feature (0, 0) is centered.
    0 for padded 3x3 or 7x7 convolutions of stride 2 (ResNet and everything on it),
    ``(stride - 1) / 2`` for patches and even pooling;
  - ``backbone`` (Module, optional): the pretrained part, trained at
    ``optimizer.backbone_factor`` times the learning rate of all the rest;
  - ``maps`` and ``decode`` (methods, optional): ``encoder(images)`` in two parts,
    ``decode(maps(images))`` with a dict of maps in between, which UniMatch perturbs.

* ``classifier``: ``[B, F, h, w] -> [B, K, h, w]`` logits. It holds no dropout: pseudo labels are
  computed without its noise, so dropout is an argument of `SegmentationNetwork`.

Features of another size are an error of the first forward. C, the channels of an image, is 3 unless
``data.channels`` says otherwise.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.layers import upsample
from cac_ext.train.networks.normalization import IMAGENET, Normalization

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@runtime_checkable
class EncoderInTwoParts(Protocol):
    """An encoder whose maps between backbone and decoder can be perturbed."""

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """``[B, C, H, W]`` to maps by name."""

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """Those maps to features ``[B, F, h, w]``."""


class SegmentationNetwork(nn.Module):
    """An encoder and a classifier that keep the contract above.

    Args:
        encoder, classifier: see the module's docstring.
        dropout: probability of dropping a feature channel in front of the classifier, in the
            supervised branch only.
        feature_pooling: window of the average pooling between the encoder and the unlabelled
            branch (projector and pseudo labels). The paper pools DeepLabv3+'s features 2x2, and
            PSPNet's not at all (section 4.1).
        initial_weights: origin of the weights, for the log.

    Raises:
        TypeError: the encoder lacks an attribute.
        ValueError: the classifier holds dropout.

    Warns:
        UserWarning: the encoder holds dropout.

    Attributes:
        out_channels: F, of the encoder.
        grid: where the encoder's features lie on the image.
        normalization: of the images that the network expects; `build_network` sets it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        classifier: nn.Module,
        *,
        dropout: float = 0.1,
        feature_pooling: int = 1,
        initial_weights: str = "random weights",
    ) -> None:
        super().__init__()
        out_channels = _int_attribute(encoder, "out_channels")
        stride = _int_attribute(encoder, "stride")
        grid = FeatureGrid(stride, getattr(encoder, "grid_offset", 0.0))
        inner = _dropouts(classifier)
        if inner:
            raise ValueError(
                f"the classifier holds dropout ({', '.join(inner)}), which would add noise to the "
                "pseudo labels; remove it and give SegmentationNetwork(dropout=...) instead"
            )
        inner = _dropouts(encoder)
        if inner:
            warnings.warn(
                f"the encoder holds dropout ({', '.join(inner)}), which adds noise to the pseudo "
                "labels; set its probability to 0 unless you want that",
                stacklevel=2,
            )
        self.encoder = encoder
        self.classifier = classifier
        self.out_channels = out_channels
        self.grid = grid
        self.dropout = nn.Dropout2d(dropout)
        self.feature_pooling = feature_pooling
        self.initial_weights = initial_weights
        self.normalization: Normalization = IMAGENET

    @property
    def pooled_grid(self) -> FeatureGrid:
        """Where the features of the unlabelled branch lie on the image."""
        return self.grid.pooled(self.feature_pooling)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's features, ``[B, C, H, W] -> [B, F, h, w]``; ValueError for other sizes."""
        return self._checked(self.encoder(images), images)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps between the encoder's two parts by name, ``[B, ?, ?, ?]`` each.

        An encoder in one part gives its features alone.
        """
        if isinstance(self.encoder, EncoderInTwoParts):
            return self.encoder.maps(images)
        return {"features": self.features(images)}

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        """The encoder's features of its maps, ``[B, F, h, w]``."""
        if isinstance(self.encoder, EncoderInTwoParts):
            return self.encoder.decode(maps)
        return maps["features"]

    def classify(self, features: Tensor, size: torch.Size) -> Tensor:
        """Logits of the encoder's features at ``size``, without dropout, ``[B, K, H, W]``."""
        logits = self.classifier(features)  # [B, K, h, w]
        return upsample(logits, self.grid.stride, self.grid.offset, size)

    def _checked(self, features: Tensor, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        expected = (batch, self.out_channels, self.grid.size(height), self.grid.size(width))
        if features.shape != expected:
            raise ValueError(
                f"the encoder made features of shape {list(features.shape)} from images of shape "
                f"{list(images.shape)}, but with its out_channels {self.out_channels} and stride "
                f"{self.grid.stride} they must be {list(expected)}; see cac_ext.train.networks"
            )
        return features

    def pool(self, features: Tensor) -> Tensor:
        """The encoder's features to those of the unlabelled branch, ``[B, F, h, w]``."""
        return (
            F.avg_pool2d(features, self.feature_pooling) if self.feature_pooling > 1 else features
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images, ``[B, C, H, W] -> [B, K, H, W]``."""
        return self.classify(self.dropout(self.features(images)), images.shape[-2:])

    def parameter_groups(
        self, learning_rate: float, backbone_factor: float
    ) -> list[dict[str, Any]]:
        """Optimizer groups: the encoder's ``backbone``, if it has one, and everything else."""
        backbone = getattr(self.encoder, "backbone", None)
        slow = list(backbone.parameters()) if isinstance(backbone, nn.Module) else []
        slow_ids = {id(parameter) for parameter in slow}
        fast = [parameter for parameter in self.parameters() if id(parameter) not in slow_ids]
        groups: list[dict[str, Any]] = [
            {"name": "head", "params": fast, "learning_rate": learning_rate}
        ]
        if slow:
            rate = learning_rate * backbone_factor
            groups.append({"name": "backbone", "params": slow, "learning_rate": rate})
        return groups


def _int_attribute(encoder: nn.Module, name: str) -> int:
    value = getattr(encoder, name, None)
    if not isinstance(value, int):
        raise TypeError(
            f"encoder.{name} must be an int, but is {value!r}; see cac_ext.train.networks"
        )
    return value


def _dropouts(module: nn.Module) -> list[str]:
    """Names of the dropout modules inside that drop anything."""
    return [
        name or type(inner).__name__
        for name, inner in module.named_modules()
        if isinstance(inner, _DROPOUTS) and inner.p > 0
    ]
