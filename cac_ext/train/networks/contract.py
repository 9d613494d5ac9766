"""What a segmentation network is here, so that any encoder and classifier can be trained.

* ``encoder``: ``[B, 3, H, W] -> [B, F, ceil(H / stride), ceil(W / stride)]``, everything but the
  final classifier, with the attributes

  - ``out_channels`` (int): F;
  - ``stride`` (int): pixels from one feature to the next;
  - ``grid_offset`` (float, optional, 0 if absent): the pixel on which feature (0, 0) is centred.
    0 for padded 3x3 or 7x7 convolutions of stride 2 (ResNet and everything on it),
    ``(stride - 1) / 2`` for patches and even pooling;
  - ``backbone`` (Module, optional): the pretrained part, trained at
    ``optimizer.backbone_factor`` times the learning rate of all the rest.

* ``classifier``: ``[B, F, h, w] -> [B, K, h, w]`` logits. No dropout of its own: pseudo labels are
  computed without dropout noise, so dropout is an argument of `SegmentationNetwork`.

Features and logits whose size is not what this says are an error of the first forward.
"""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.layers import upsample

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class SegmentationNetwork(nn.Module):
    """An encoder and a classifier that keep the contract above.

    Args:
        encoder, classifier: see the module's docstring.
        dropout: probability of dropping a feature channel in front of the classifier, in the
            supervised branch only.
        feature_pooling: window of the average pooling between the encoder and the unlabelled
            branch (projector and pseudo labels). The paper pools DeepLabv3+'s features 2x2 and
            PSPNet's not at all (section 4.1).
        initial_weights: what the log says about where the weights come from.

    Raises:
        TypeError: the encoder lacks an attribute.
        ValueError: the classifier holds dropout.

    Warns:
        UserWarning: the encoder holds dropout.
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
        for attribute in ("out_channels", "stride"):
            if not isinstance(getattr(encoder, attribute, None), int):
                raise TypeError(
                    f"encoder.{attribute} must be an int, but is "
                    f"{getattr(encoder, attribute, None)!r}; see cac_ext.train.networks"
                )
        inner = _dropouts(classifier)
        if inner:
            raise ValueError(
                f"the classifier holds dropout ({', '.join(inner)}), which would put noise on the "
                "pseudo labels; leave it out and give SegmentationNetwork(dropout=...) instead"
            )
        inner = _dropouts(encoder)
        if inner:
            warnings.warn(
                f"the encoder holds dropout ({', '.join(inner)}), which puts noise on the pseudo "
                "labels; set its probability to 0 unless you want that",
                stacklevel=2,
            )
        self.encoder = encoder
        self.classifier = classifier
        self.dropout = nn.Dropout2d(dropout)
        self.feature_pooling = feature_pooling
        self.initial_weights = initial_weights

    @property
    def grid(self) -> FeatureGrid:
        """Where the encoder's features lie on the image."""
        return FeatureGrid(self.encoder.stride, getattr(self.encoder, "grid_offset", 0.0))

    @property
    def pooled_grid(self) -> FeatureGrid:
        """Where the features of the unlabelled branch lie on the image."""
        return self.grid.pooled(self.feature_pooling)

    def features(self, images: Tensor) -> Tensor:
        """The encoder's features, ``[B, 3, H, W] -> [B, F, h, w]``; ValueError for other sizes."""
        features = self.encoder(images)
        height, width = images.shape[-2:]
        grid = self.grid
        expected = (
            images.shape[0],
            self.encoder.out_channels,
            grid.size(height),
            grid.size(width),
        )
        if features.shape != expected:
            raise ValueError(
                f"the encoder made features of shape {list(features.shape)} from images of shape "
                f"{list(images.shape)}, but its out_channels {self.encoder.out_channels} and "
                f"stride {self.encoder.stride} call for {list(expected)}; see "
                "cac_ext.train.networks"
            )
        return features

    def pool(self, features: Tensor) -> Tensor:
        """The encoder's features to those of the unlabelled branch, ``[B, F, h, w]``."""
        return (
            F.avg_pool2d(features, self.feature_pooling) if self.feature_pooling > 1 else features
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images, ``[B, 3, H, W] -> [B, K, H, W]``."""
        logits = self.classifier(self.dropout(self.features(images)))  # [B, K, h, w]
        return upsample(logits, self.grid.stride, self.grid.offset, images.shape[-2:])

    def parameter_groups(self, learning_rate: float, backbone_factor: float) -> list[dict]:
        """Optimiser groups: the encoder's ``backbone``, if it has one, and all the rest."""
        backbone = getattr(self.encoder, "backbone", None)
        slow = list(backbone.parameters()) if isinstance(backbone, nn.Module) else []
        slow_ids = {id(parameter) for parameter in slow}
        fast = [parameter for parameter in self.parameters() if id(parameter) not in slow_ids]
        groups = [{"name": "head", "params": fast, "learning_rate": learning_rate}]
        if slow:
            rate = learning_rate * backbone_factor
            groups.append({"name": "backbone", "params": slow, "learning_rate": rate})
        return groups


def _dropouts(module: nn.Module) -> list[str]:
    """Names of the dropout modules inside that drop anything."""
    return [
        name or type(inner).__name__
        for name, inner in module.named_modules()
        if isinstance(inner, _DROPOUTS) and inner.p > 0
    ]
