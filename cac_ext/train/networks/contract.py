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
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.grid import FeatureGrid

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
    """

    def __init__(
        self,
        encoder: nn.Module,
        classifier: nn.Module,
        *,
        dropout: float = 0.1,
        feature_pooling: int = 1,
    ) -> None:
        super().__init__()
        for attribute in ("out_channels", "stride"):
            if not isinstance(getattr(encoder, attribute, None), int):
                raise TypeError(
                    f"encoder.{attribute} must be an int, but is "
                    f"{getattr(encoder, attribute, None)!r}; see cac_ext.train.networks"
                )
        inner = [name for name, module in classifier.named_modules() if type(module) in _DROPOUTS]
        if inner:
            raise ValueError(
                f"the classifier holds dropout ({', '.join(inner)}), which would put noise on the "
                "pseudo labels; leave it out and give SegmentationNetwork(dropout=...) instead"
            )
        self.encoder = encoder
        self.classifier = classifier
        self.dropout = nn.Dropout2d(dropout)
        self.feature_pooling = feature_pooling

    @property
    def grid(self) -> FeatureGrid:
        """Where the encoder's features lie on the image."""
        return FeatureGrid(self.encoder.stride, getattr(self.encoder, "grid_offset", 0.0))

    @property
    def pooled_grid(self) -> FeatureGrid:
        """Where the features of the unlabelled branch lie on the image."""
        return self.grid.pooled(self.feature_pooling)

    def pooled_features(self, images: Tensor) -> Tensor:
        """Features of the unlabelled branch, ``[B, 3, H, W] -> [B, F, h, w]``."""
        features = self.encoder(images)
        return (
            F.avg_pool2d(features, self.feature_pooling) if self.feature_pooling > 1 else features
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the images, ``[B, 3, H, W] -> [B, K, H, W]``."""
        logits = self.classifier(self.dropout(self.encoder(images)))  # [B, K, h, w]
        # Corners of the feature grid lie on corners of the image, or its cells tile the image.
        on_corners = self.grid.offset == 0
        return F.interpolate(
            logits, size=images.shape[-2:], mode="bilinear", align_corners=on_corners
        )

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
