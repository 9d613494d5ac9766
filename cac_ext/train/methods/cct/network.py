"""The trained modules: the network, its auxiliary decoders, and the losses of unlabelled images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.config import CctConfig
from cac_ext.train.methods.cct.decoders import (
    build_decoder,
    doublings_of,
    interpolate_to_cells,
    pixels_of_cells,
)
from cac_ext.train.methods.cct.objects import bounding_boxes
from cac_ext.train.methods.cct.perturbations import (
    Guide,
    add_noise,
    cut_objects,
    drop_active_positions,
    mask_context,
    mask_objects,
    move_adversarially,
)
from cac_ext.train.networks import SegmentationNetwork

#: The settings that hold the number of decoders of each kind; the kinds are named like them.
KINDS = (
    "dropout",
    "feature_noise",
    "feature_drop",
    "cutout",
    "context_masking",
    "object_masking",
    "adversarial",
)
#: Kinds that ask where the main decoder sees objects.
OBJECT_KINDS = ("cutout", "context_masking", "object_masking")

_OUTLINE = 50.0  # pixels around the box of an object that counts


class AuxiliaryLosses(NamedTuple):
    """Sums over unlabelled pixels, for D decoders; they become means over all processes."""

    distances: Tensor  # [D] of the squared distances to the main prediction, a mean over classes
    pixels: Tensor  # scalar int64, how many count
    weak: Tensor | None  # [D] of the cross entropies on masks, if there are any
    weak_pixels: Tensor | None  # scalar int64, how many have a label


class CrossConsistencyNetwork(nn.Module):
    """All trained modules, with one forward for a whole step, as DDP needs it.

    Args:
        network: the part that inference needs; its classifier is the main decoder.
        classes: K.
        config: kinds and numbers of decoders.
        background: the class that is no object; None if no decoder asks for objects.
        ignore_index: of masks.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        classes: int,
        config: CctConfig,
        background: int | None,
        ignore_index: int,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.background = background
        self.ignore_index = ignore_index
        self.doublings = doublings_of(network.grid)
        self.kinds = [kind for kind in KINDS for _ in range(getattr(config, kind))]
        self.decoders = nn.ModuleList(
            build_decoder(network.out_channels, classes, self.doublings) for _ in self.kinds
        )

    def forward(
        self,
        labelled: Tensor,
        images: Tensor | None = None,
        valid: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, AuxiliaryLosses | None]:
        """Logits ``[B, K, S, S]`` of the labelled images, and the losses of unlabelled ones.

        Args:
            labelled: ``[B, 3, S, S]``.
            images: ``[U, 3, S, S]``, unlabelled.
            valid: ``[U, S, S]`` bool, False on padding.
            masks: ``[U, S, S]`` pseudo labels, or None.
        """
        logits = self.network(labelled)
        if images is None or valid is None:
            return logits, None
        return logits, self._losses(self.network.features(images), valid, masks)

    def _losses(self, features: Tensor, valid: Tensor, masks: Tensor | None) -> AuxiliaryLosses:
        guide = self.guide(features, valid)
        distances, weak, weak_pixels = [], [], None
        if masks is not None:
            masks = pixels_of_cells(masks, self.network.grid, self.doublings, self.ignore_index)
            weak_pixels = (masks != self.ignore_index).sum()
        for logits in self.predictions(features, guide):
            squares = (logits.softmax(dim=1) - guide.probabilities).square().mean(dim=1)
            distances.append(torch.where(guide.counted, squares, 0.0).sum())
            if masks is not None:
                weak.append(
                    F.cross_entropy(logits, masks, ignore_index=self.ignore_index, reduction="sum")
                )
        return AuxiliaryLosses(
            torch.stack(distances),
            guide.counted.sum(),
            torch.stack(weak) if weak else None,
            weak_pixels,
        )

    @torch.no_grad()
    def guide(self, features: Tensor, valid: Tensor) -> Guide:
        """The main decoder's prediction for features ``[U, F, h, w]``, without dropout.

        ``valid`` is ``[U, S, S]``.
        """
        grid = self.network.grid
        logits = self.network.classifier(features.detach()).float()  # [U, K, h, w]
        on_image = pixels_of_cells(valid, grid, 0, False)  # [U, h, w]
        foreground, boxes = on_image, None
        if self.background is not None:
            foreground = on_image & (logits.argmax(dim=1) != self.background)
            if "cutout" in self.kinds:
                boxes = bounding_boxes(foreground, _OUTLINE / grid.stride)
        return Guide(
            interpolate_to_cells(logits, self.doublings).softmax(dim=1),
            pixels_of_cells(valid, grid, self.doublings, False),
            on_image[:, None],
            foreground[:, None],
            boxes,
        )

    def predictions(self, features: Tensor, guide: Guide) -> Iterator[Tensor]:
        """Logits ``[U, K, 2^n h, 2^n w]`` of each auxiliary decoder, float32.

        An iterator, so that no more than one decoder's are needed at a time.
        """
        for kind, decode in zip(self.kinds, self.decoders, strict=True):
            yield decode(self.perturbed(kind, features, guide, decode)).float()

    def perturbed(self, kind: str, features: Tensor, guide: Guide, decode: nn.Module) -> Tensor:
        """Features ``[U, F, h, w]`` as decoder ``decode`` of this kind gets them."""
        config = self.config
        if kind == "dropout":
            return F.dropout2d(features, config.dropout_rate)
        if kind == "feature_noise":
            return add_noise(features, config.noise_range)
        if kind == "feature_drop":
            return drop_active_positions(features, guide.valid)
        if kind == "cutout":
            return cut_objects(features, guide, config.cutout_share)
        if kind == "context_masking":
            return mask_context(features, guide)
        if kind == "object_masking":
            return mask_objects(features, guide)
        return move_adversarially(features, guide, decode, config.adversarial_radius)
