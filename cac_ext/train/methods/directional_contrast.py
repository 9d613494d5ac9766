"""The directional contrastive loss on crop pairs, as a part that any method can add (Eq. 1-8).

The part requests the stream of crop pairs, keeps the memory bank, and turns the outputs of both
views into a loss, metrics and a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cac_ext.train.data.augment import CropPairAugment
from cac_ext.train.data.batches import CropPairBatch, ViewBatch, collate_pairs
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.data.truth import WithTruth
from cac_ext.train.figures.panels import crop_pair_figure
from cac_ext.train.methods.consistency import Anchors, Overlap, consistency_loss
from cac_ext.train.methods.contract import MethodContext, StreamRequest
from cac_ext.train.methods.memory_bank import MemoryBank
from cac_ext.train.methods.negative_precision import count_classes, negative_precision
from cac_ext.train.methods.projecting_network import ViewOutputs, halves
from cac_ext.train.runtime.seeding import derive_seed


class Truth(NamedTuple):
    """True classes of one view's pixels, -1 where unknown, for metrics only."""

    negatives: Tensor  # [M]
    overlap: Tensor  # [A]


class Branch(NamedTuple):
    """The part of one view's outputs that the loss uses."""

    overlap: Overlap
    features: Tensor  # [M, C] of the new negatives, no gradient
    labels: Tensor  # [M] their pseudo labels
    truth: Truth | None


class CropPairOutputs(NamedTuple):
    """Crop pairs of a step and their outputs, for pictures."""

    pairs: CropPairBatch
    confidences: Tensor  # [2B, h, w], view 1's first
    pseudo_labels: Tensor  # [2B, h, w]
    anchors: Anchors


def views_of(pairs: CropPairBatch) -> Tensor:
    """Both views of all images, ``[2B, 3, S, S]``, view 1's first."""
    return torch.cat([pairs.view1.images, pairs.view2.images])


def are_finite(pairs: CropPairBatch, outputs: ViewOutputs) -> Tensor:
    """Whether all projections are finite, a scalar. Padding takes no part."""
    valid = torch.cat([pairs.view1.valid, pairs.view2.valid])  # [2B, h, w]
    return (outputs.projections.isfinite().all(dim=1) | ~valid).all()


class DirectionalContrast:
    """Eq. 1-8 for a method.

    Args:
        context: of the method that owns it.
        loss: replaces `cac_ext.directional_contrastive_loss`, to compare implementations.
    """

    def __init__(
        self, context: MethodContext, loss: Callable[..., tuple[Tensor, Tensor]] | None = None
    ) -> None:
        self.context = context
        self.loss = loss
        config, parts = self.context.config.method, self.context.config.schedule.accumulation
        selected_num = config.selected_num
        if selected_num is not None:  # each process and part selects its share, rounded up
            selected_num = -(-selected_num // (self.context.processes.size * parts))
        # The negatives of as many images, whatever the number of parts.
        self.bank = MemoryBank(selected_num, (config.step_save + 1) * parts - 1)
        self._latest: CropPairOutputs | None = None

    def stream(self) -> StreamRequest:
        """Crop pairs of the unlabelled images, after the warm-up."""
        config, splits = self.context.config, self.context.splits
        images, ignore_index = self.context.unlabelled_images, None
        if config.weak.pseudo_labels:
            images = pseudo_labelled(splits, config.weak.pseudo_labels, "weak.pseudo_labels")
            ignore_index = splits.ignore_index
        if config.run.negative_precision and config.method.loss == "contrastive":
            images = WithTruth(images, splits, "run.negative_precision")
        sampler = CropPairSampler(
            config.augment.crop_size,
            self.context.network.pooled_grid,
            config.method.iou_range,
            config.augment.flip,
        )
        return StreamRequest(
            images,
            CropPairAugment(config.augment, sampler, ignore_index),
            collate_pairs,
            config.schedule.unlabelled_batch,
            "schedule.unlabelled_batch",
            "unlabelled",
            config.warmup_iterations,
        )

    def forget(self) -> None:
        """Drop the outputs that are kept for pictures; call it when a step begins."""
        self._latest = None

    def __call__(
        self, draw: int, pairs: CropPairBatch, outputs: ViewOutputs
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of both directions, a scalar, and metrics. New negatives go into the bank.

        ``draw`` is `Step.draw`, for the choice of negatives.
        """
        config, processes = self.context.config, self.context.processes
        seed = derive_seed(config.seed, "negatives", draw, processes.rank)
        generator = torch.Generator().manual_seed(seed)
        first, second = (
            self._branch(view, of_view, generator)
            for view, of_view in zip((pairs.view1, pairs.view2), halves(outputs), strict=True)
        )
        labels = torch.cat([first.labels, second.labels])  # [M] of both views
        negatives, negative_labels = self.bank.enqueue(
            *processes.gather_negatives(torch.cat([first.features, second.features]), labels)
        )  # [N, C], [N]
        loss, anchors = consistency_loss(
            config.method,
            first.overlap,
            second.overlap,
            pairs.weights,
            negatives,
            negative_labels,
            self.context.normalizing,
            self.loss,
        )
        metrics: dict[str, Tensor | float] = {
            "active_share": anchors.share(),
            "negatives": len(negatives),
        }
        if first.truth is not None and second.truth is not None:
            metrics |= self._precision(
                first.overlap, second.overlap, first.truth, second.truth, labels, anchors
            )
        self._latest = CropPairOutputs(pairs, outputs.confidences, outputs.pseudo_labels, anchors)
        return loss, metrics

    def _branch(self, view: ViewBatch, outputs: ViewOutputs, generator: torch.Generator) -> Branch:
        """One view's overlap, and its positions that become negatives."""
        projections = outputs.projections.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, C]
        labels = outputs.pseudo_labels.flatten()  # [B h w]
        selected = self.bank.select(view.on_image, generator)  # [M]
        overlap = Overlap(
            projections[view.overlap],
            outputs.confidences.flatten()[view.overlap],
            labels[view.overlap],
        )
        truth = None
        if view.truth is not None:
            flat = view.truth.flatten()  # [B h w]
            truth = Truth(flat[selected], flat[view.overlap])
        return Branch(overlap, projections.detach()[selected], labels[selected], truth)

    def _precision(
        self,
        overlap1: Overlap,
        overlap2: Overlap,
        truth1: Truth,
        truth2: Truth,
        labels: Tensor,  # [M] pseudo labels of this process's new negatives, of both views
        anchors: Anchors,
    ) -> dict[str, Tensor | float]:
        """Precision over the pairs of all processes' anchors with all negatives of the bank."""
        classes = self.context.splits.num_classes
        truths = torch.cat([truth1.negatives, truth2.negatives])  # [M]
        of_negatives = count_classes(labels, truths, classes)  # [K, K]
        of_anchors = count_classes(
            overlap1.pseudo_labels, truth1.overlap, classes, anchors.first_to_second
        ) + count_classes(overlap2.pseudo_labels, truth2.overlap, classes, anchors.second_to_first)
        of_anchors, of_negatives = self.context.processes.sum(
            torch.stack([of_anchors, of_negatives])
        )
        selected, of_all = negative_precision(of_anchors, self.bank.count(of_negatives))
        if not self.context.config.method.negative_sampling:  # all pairs are selected
            selected = of_all
        return {"negative_precision": selected, "negative_precision_random": of_all}

    def state_dict(self) -> dict[str, Any]:
        """The memory bank."""
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self.bank.load_state_dict(state["bank"], device)

    def pictures(self) -> dict[str, Figure]:
        """The first crop pair of the latest step, if it had any."""
        if self._latest is None:
            return {}
        grid = self.context.network.pooled_grid
        figure = crop_pair_figure(self.context.splits, grid, *self._latest)
        return {"train/crop_pair": figure}
