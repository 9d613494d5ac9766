"""The trained modules around a network whose features are compared: projector, weak classifier."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cac_ext.train.config import Config
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.layers import upsample
from cac_ext.train.networks.projector import NoProjector, Projector


class ViewOutputs(NamedTuple):
    """The outputs of the unlabelled branch for V views, with h x w features each."""

    projections: Tensor  # [V, C, h, w], unit length at each position
    confidences: Tensor  # [V, h, w] largest class probability
    pseudo_labels: Tensor  # [V, h, w] most probable class
    weak_logits: Tensor | None  # [V, K, S, S] of the weak classifier, if there is one


class ProjectingNetwork(nn.Module):
    """All trained modules, with one forward for a whole step, as DDP and torch.compile need it.

    Args:
        network: the part that inference needs.
        projector: see `networks/projector.py`.
        weak_classifier: learns pseudo labels made from image-level labels (section 3.5), or None.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        projector: nn.Module,
        weak_classifier: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.projector = projector
        self.weak_classifier = weak_classifier

    def forward(self, labelled: Tensor, views: Tensor | None) -> tuple[Tensor, ViewOutputs | None]:
        """Logits ``[B, K, S, S]`` of the labelled images, and the outputs of the views."""
        logits = self.network(labelled)
        return logits, None if views is None else self.view_outputs(views)

    def view_outputs(self, views: Tensor) -> ViewOutputs:
        """``[V, 3, S, S]`` to projections, confidences and pseudo labels."""
        whole = self.network.features(views)
        features = self.network.pool(whole)  # [V, F, h, w]
        with torch.no_grad():  # pseudo labels carry neither gradient nor dropout noise
            probabilities = self.network.classifier(features.detach()).softmax(dim=1)
            confidences, pseudo_labels = probabilities.max(dim=1)
        projections = self.projector(features)
        weak_logits = None
        if self.weak_classifier is not None:
            grid = self.network.grid
            weak_logits = self.weak_classifier(self.network.dropout(whole))
            weak_logits = upsample(weak_logits, grid.stride, grid.offset, views.shape[-2:])
        return ViewOutputs(projections, confidences, pseudo_labels, weak_logits)


def build_projector(config: Config, network: SegmentationNetwork) -> nn.Module:
    """The projector of ``method.projector``, or one that only normalizes."""
    if not config.method.projector:
        return NoProjector()
    return Projector(network.out_channels, config.method.projector_channels)


def build_model(config: Config, network: SegmentationNetwork) -> ProjectingNetwork:
    """The network with the projector and the weak classifier that the configuration asks for."""
    # A copy, so that it fits a custom network too.
    weak_classifier = copy.deepcopy(network.classifier) if config.weak.pseudo_labels else None
    return ProjectingNetwork(network, build_projector(config, network), weak_classifier)
