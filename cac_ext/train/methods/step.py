"""One training step: both branches forward, negatives, losses (paper Fig. 4, Eq. 9)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.config import Config
from cac_ext.train.methods.consistency import Overlap, active_masks, active_share, consistency_loss
from cac_ext.train.methods.memory_bank import MemoryBank
from cac_ext.train.methods.negative_precision import count_classes, negative_precision
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.layers import upsample
from cac_ext.train.networks.projector import NoProjector, Projector
from cac_ext.train.runtime.distributed import ALONE, Processes
from cac_ext.train.runtime.seeding import derive_seed


class TrainingModel(nn.Module):
    """All that is trained, with one forward for a whole step, as DDP and torch.compile want it.

    Args:
        network: what remains for inference.
        projector: see `projector.py`.
        weak_classifier: of pseudo labels from image-level labels (paper section 3.5), or None.
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

    def forward(
        self, labelled: Tensor, views: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Logits ``[B, K, S, S]``, and for views ``[V, 3, S, S]`` what `view_outputs` returns."""
        logits = self.network(labelled)
        return logits, None if views is None else self.view_outputs(views)

    def view_outputs(self, views: Tensor) -> tuple[Tensor, ...]:
        """Projections ``[V, C, h, w]``, confidences and pseudo labels ``[V, h, w]``.

        With a weak classifier also its logits, ``[V, K, S, S]``.
        """
        whole = self.network.features(views)
        features = self.network.pool(whole)  # [V, F, h, w]
        with (
            torch.no_grad()
        ):  # no gradient through pseudo labels and confidences; no dropout either
            probabilities = self.network.classifier(features.detach()).softmax(dim=1)
            confidences, pseudo_labels = probabilities.max(dim=1)
        outputs = self.projector(features), confidences, pseudo_labels
        if self.weak_classifier is None:
            return outputs
        logits = self.weak_classifier(self.network.dropout(whole))
        grid = self.network.grid
        return *outputs, upsample(logits, grid.stride, grid.offset, views.shape[-2:])


def build_model(config: Config, network: SegmentationNetwork) -> TrainingModel:
    """The network with the projector and the weak classifier that the configuration asks for."""
    projector: nn.Module = NoProjector()
    if config.method.projector:
        projector = Projector(network.encoder.out_channels, config.method.projector_channels)
    # The weak classifier is like the main one, of a user's own network as well.
    weak_classifier = copy.deepcopy(network.classifier) if config.weak.pseudo_labels else None
    return TrainingModel(network, projector, weak_classifier)


@dataclass
class StepLosses:
    """Losses of one step and what is worth logging beside them; scalars.

    ``finite`` is False where logits or projections of any process are not; then the step is void.
    """

    total: Tensor
    supervised: Tensor
    unsupervised: Tensor | None = None
    weak: Tensor | None = None  # Eq. 11
    negatives: int = 0  # N
    confidences: Tensor | None = None  # [2B, h, w] of the views, view 1's first
    pseudo_labels: Tensor | None = None  # [2B, h, w]
    active: tuple[Tensor, Tensor] | None = None  # [A] each: anchors in direction 1 -> 2, in 2 -> 1
    # Of the selected negatives and of all pairs (`negative_precision.py`), where it is measured.
    precision: tuple[Tensor, Tensor] | None = None
    finite: bool = True

    def scalars(self) -> dict[str, float]:
        values = {"loss": self.total.item(), "loss_supervised": self.supervised.item()}
        if self.unsupervised is not None:
            values["loss_unsupervised"] = self.unsupervised.item()
            values["active_share"] = active_share(self.active).item()
            values["negatives"] = self.negatives
        if self.weak is not None:
            values["loss_weak"] = self.weak.item()
        if self.precision is not None:
            selected, random = self.precision
            values["negative_precision"] = selected.item()
            values["negative_precision_random"] = random.item()
        return values


def compute_losses(
    config: Config,
    model: nn.Module,  # a TrainingModel, possibly wrapped
    bank: MemoryBank,
    labelled: dict[str, Tensor],  # image [B, 3, S, S], mask [B, S, S]
    pairs: dict[str, Tensor]
    | None,  # see collate_pairs; None while only the supervised loss counts
    iteration: int,
    ignore_index: int,
    processes: Processes = ALONE,
) -> StepLosses:
    """``cross entropy + lambda * consistency + lambda_w * weak`` (Eq. 10), the last where there is
    a weak classifier. Puts this step's negatives into the bank.

    With several processes a loss is the process's own, and DDP takes the gradients' mean.
    """
    views = None if pairs is None else torch.cat([pairs["view1"], pairs["view2"]])  # [2B, 3, S, S]
    logits, outputs = model(labelled["image"], views)
    normalising = processes if config.run.normalize_over_ranks else ALONE
    supervised, finite = _cross_entropy(logits, labelled["mask"], ignore_index, normalising)
    if outputs is not None:
        valid = torch.cat([pairs["valid1"], pairs["valid2"]])  # [2B, h, w]; padding never counts
        finite = finite & (outputs[0].isfinite().all(dim=1) | ~valid).all()
    if processes.any(not finite):
        # Without the graph, which would fill memory during the next forward.
        void = supervised.detach()
        return StepLosses(total=void, supervised=void, finite=False)
    if outputs is None:
        return StepLosses(total=supervised, supervised=supervised)

    halves = [output.chunk(2) for output in outputs]  # of view 1 and of view 2
    seed = derive_seed(config.seed, "negatives", iteration, processes.rank)
    generator = torch.Generator().manual_seed(seed)
    selected, overlaps, truths, weak = [], [], [], []
    for view, (projections, confidences, pseudo_labels, *weak_logits) in enumerate(
        zip(*halves, strict=True), 1
    ):
        by_position = projections.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, C]
        labels = pseudo_labels.flatten()  # [B h w]
        chosen = bank.select(pairs[f"valid{view}"], generator)  # [M]
        selected.append((by_position.detach()[chosen], labels[chosen]))
        positions = pairs[f"overlap{view}"]  # [A]
        overlaps.append(
            Overlap(by_position[positions], confidences.flatten()[positions], labels[positions])
        )
        if "truth1" in pairs:
            truth = pairs[f"truth{view}"].flatten()  # [B h w]
            truths.append((truth[chosen], truth[positions]))
        for of_view in weak_logits:
            mask = pairs[f"mask{view}"]
            weak.append(_cross_entropy(of_view, mask, ignore_index, normalising)[0])
    features, labels = (torch.cat(parts) for parts in zip(*selected, strict=True))
    capacity = 2 * bank.most_selected(pairs["valid1"].numel())
    negatives, negative_labels = bank.enqueue(
        *processes.gather_negatives(features, labels, capacity)
    )
    active = active_masks(config.method, *overlaps)
    precision = None
    if truths:
        precision = _measure_precision(
            bank, logits.shape[1], labels, overlaps, active, truths, processes
        )
        if not config.method.negative_sampling:  # all pairs are selected
            precision = (precision[1], precision[1])

    unsupervised = consistency_loss(
        config.method,
        *overlaps,
        pairs["image_index"],
        len(pairs["view1"]),
        negatives,
        negative_labels,
        normalising,
    )
    total = supervised + config.method.unsupervised_weight * unsupervised
    if weak:
        total = total + weak_weight(config, iteration) * sum(weak) / 2
    return StepLosses(
        total=total,
        supervised=supervised,
        unsupervised=unsupervised,
        weak=sum(weak) / 2 if weak else None,
        negatives=len(negatives),
        confidences=outputs[1],
        pseudo_labels=outputs[2],
        active=active,
        precision=precision,
    )


def weak_weight(config: Config, iteration: int) -> float:
    """lambda_w of Eq. 10: a sigmoid ramp over the first ``weak.rampup`` of all iterations.

    ``weight * exp(-5 (1 - t)^2)``, t from 0 to 1, as in CCT (the paper's [41]).
    """
    length = config.weak.rampup * config.iterations
    t = min(iteration / length, 1.0) if length else 1.0
    return config.weak.weight * math.exp(-5 * (1 - t) ** 2)


def _measure_precision(
    bank: MemoryBank,
    num_classes: int,
    labels: Tensor,  # [M] pseudo labels of this process's new negatives, of both views
    overlaps: list[Overlap],
    active: tuple[Tensor, Tensor],
    truths: list[tuple[Tensor, Tensor]],  # of each view: of its new negatives, of its overlap
    processes: Processes,
) -> tuple[Tensor, Tensor]:
    """Precision over the pairs of all processes' anchors with all negatives of the bank."""
    negative_truth, overlap_truth = zip(*truths, strict=True)
    negatives = count_classes(labels, torch.cat(negative_truth), num_classes)
    anchors = sum(
        count_classes(overlap.pseudo_labels[mask], truth[mask], num_classes)
        for overlap, mask, truth in zip(overlaps, active, overlap_truth, strict=True)
    )
    anchors, negatives = processes.sum(torch.stack([anchors, negatives]))
    return negative_precision(anchors, bank.count(negatives))


def _cross_entropy(
    logits: Tensor, mask: Tensor, ignore_index: int, processes: Processes
) -> tuple[Tensor, Tensor]:
    """Mean over the pixels that count, 0 rather than nan where there are none; is it finite?"""
    counted = processes.mean((mask != ignore_index).sum().double())
    total = F.cross_entropy(logits, mask, ignore_index=ignore_index, reduction="sum")
    loss = total / counted.clamp(min=1 / processes.size).float()
    return loss, loss.detach().isfinite()
