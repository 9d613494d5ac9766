"""A network that learns from whole crops, and, if the user asks for it, from crop pairs as in CAC.

`Student` is the trained module with one forward for all images of a step. `StudentMethod` is the
part of a method that does not depend on its losses: the method says what the student sees and which
losses follow.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from cac_ext.train.config import Config
from cac_ext.train.data.batches import CropPairBatch, LabelledBatch
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.directional_contrast import DirectionalContrast, are_finite, views_of
from cac_ext.train.methods.fused_loss import require_fused_loss
from cac_ext.train.methods.projecting_network import (
    ProjectingNetwork,
    ViewOutputs,
    build_projector,
)
from cac_ext.train.networks.projector import NoProjector


class StudentOutputs(NamedTuple):
    """Logits at the size of the images; None for images that were not given."""

    labelled: Tensor  # [B, K, S, S]
    weak: Tensor | None  # [U, K, S, S] for pseudo labels: no gradient, no dropout
    perturbed: Tensor | None  # [U, K, S, S] of the weak crops with dropped channels
    strong: Tensor | None  # [V U, K, S, S]
    views: ViewOutputs | None  # of crop pairs


class Student(nn.Module):
    """All trained modules, with one forward for a whole step, as DDP and torch.compile need it.

    Labelled and weak crops are normalized as one batch, strong crops as another, and views as a
    third. `network.dropout` acts on every prediction that a loss trains, never on pseudo labels.

    Args:
        model: the network, and the projector for crop pairs.
        feature_dropout: probability with which a channel of the maps between backbone and decoder
            is dropped for ``perturbed``; None leaves that output out.
    """

    def __init__(self, model: ProjectingNetwork, feature_dropout: float | None = None) -> None:
        super().__init__()
        self.model = model
        self.feature_dropout = feature_dropout

    def forward(
        self,
        labelled: Tensor,  # [B, 3, S, S]
        weak: Tensor | None = None,  # [U, 3, S, S]
        strong: Tensor | None = None,  # [V U, 3, S, S]
        views: Tensor | None = None,  # [2 U, 3, S, S]
    ) -> StudentOutputs:
        """The logits of all images, and the outputs of the views."""
        network = self.model.network
        clean: Tensor | None = None
        perturbed: Tensor | None = None
        if weak is None:
            logits = network(labelled)
        else:
            logits, clean, perturbed = self._with_weak(labelled, weak)
        return StudentOutputs(
            logits,
            clean,
            perturbed,
            None if strong is None else network(strong),
            None if views is None else self.model.view_outputs(views),
        )

    def _with_weak(self, labelled: Tensor, weak: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of labelled crops, of weak crops, and of weak crops with perturbed maps."""
        network, size = self.model.network, labelled.shape[-2:]
        images = torch.cat([labelled, weak])
        if self.feature_dropout is None:
            features = network.features(images)  # [B + U, F, h, w]
        else:
            maps = network.maps(images)
            dropped = {
                name: F.dropout2d(values[len(labelled) :], self.feature_dropout)
                for name, values in maps.items()
            }
            features = network.decode(
                {name: torch.cat([values, dropped[name]]) for name, values in maps.items()}
            )  # [B + 2 U, F, h, w], the perturbed ones last
        of_labelled, of_weak, of_perturbed = features.tensor_split(
            [len(labelled), len(images)]  # the last is empty without perturbation
        )
        with torch.no_grad():
            clean = network.classify(of_weak.detach(), size)
        perturbed = None
        if self.feature_dropout is not None:
            perturbed = network.classify(network.dropout(of_perturbed), size)
        return network.classify(network.dropout(of_labelled), size), clean, perturbed


class Term(NamedTuple):
    """A part of the loss on unlabelled crops."""

    name: str
    weight: float
    loss: Tensor  # scalar
    finite: Tensor  # scalar bool, whether the outputs behind it are


class Forward(NamedTuple):
    """The forward pass of a step, and the batches that it saw beside whole crops."""

    labelled: LabelledBatch
    pairs: CropPairBatch | None
    outputs: StudentOutputs


class StudentMethod(Method):
    """A method whose only trained module is a `Student`.

    With ``method.directional_contrast`` each step also sees a crop pair of each unlabelled image,
    and the directional contrastive loss of CAC is added, ``method.unsupervised_weight`` times.

    Args:
        context: see `Method`.
        feature_dropout: see `Student`.
    """

    takes_directional_contrast = True

    def __init__(self, context: MethodContext, feature_dropout: float | None = None) -> None:
        super().__init__(context)
        config, network = context.config, context.network
        self.contrast: DirectionalContrast | None = None
        projector: nn.Module = NoProjector()
        if _adds_contrast(config):
            self.contrast = DirectionalContrast(context)
            projector = build_projector(config, network)
        self.student = Student(ProjectingNetwork(network, projector), feature_dropout)
        self.trained["student"] = self.student

    @classmethod
    def check(cls, config: Config) -> None:
        if _adds_contrast(config):
            require_fused_loss(config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.groups_of(dict(self.student.model.named_children()))

    def streams(self) -> dict[str, StreamRequest]:
        streams = {**self.supervised_streams(), **self.crop_streams()}
        if self.contrast is not None:
            streams["crop_pairs"] = self.contrast.stream()
        return streams

    @abstractmethod
    def crop_streams(self) -> dict[str, StreamRequest]:
        """The streams of whole crops."""

    def forward(self, step: Step, weak: Tensor | None, strong: Tensor | None) -> Forward:
        """Show the student all images of a step.

        Args:
            step: of the method.
            weak: ``[U, 3, S, S]``, which are normalized together with the labelled crops.
            strong: ``[V U, 3, S, S]``.
        """
        if self.contrast is not None:
            self.contrast.forget()
        labelled = self.supervised_batch(step.batches)
        pairs: CropPairBatch | None = step.batches.get("crop_pairs")
        views = None if pairs is None else views_of(pairs)  # [2 U, 3, S, S]
        outputs = step.modules["student"](labelled.images, weak, strong, views)
        return Forward(labelled, pairs, outputs)

    def phase(
        self,
        step: Step,
        seen: Forward,
        terms: Sequence[Term] = (),
        metrics: dict[str, Tensor | float] | None = None,
    ) -> Iterator[Phase]:
        """``cross entropy + sum of weighted terms + lambda * directional contrast``.

        Yields nothing if the step is void.
        """
        labelled, pairs, outputs = seen
        supervised, finite = self.supervised_loss(outputs.labelled, labelled.masks)
        for term in terms:
            finite = finite & term.finite
        views = outputs.views
        if pairs is not None and views is not None:
            finite = finite & are_finite(pairs, views)
        if not step.proceeds(finite):
            return
        losses, total = {"supervised": supervised}, supervised
        for term in terms:
            losses[term.name] = term.loss
            total = total + term.weight * term.loss
        metrics = metrics or {}
        if self.contrast is not None and pairs is not None and views is not None:
            contrast, more = self.contrast(step.draw, pairs, views)
            losses["directional_contrast"] = contrast
            total = total + self.context.config.method.unsupervised_weight * contrast
            metrics = {**metrics, **more}
        yield Phase(total, losses, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.contrast is None else self.contrast.state_dict()

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        if self.contrast is not None:
            self.contrast.load_state_dict(state, device)

    def pictures(self) -> dict[str, Figure]:
        return {} if self.contrast is None else self.contrast.pictures()


def _adds_contrast(config: Config) -> bool:
    return config.method.directional_contrast and config.method.unsupervised_weight > 0
