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
from cac_ext.train.data.batches import CropPairBatch, collate_pairs
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.data.truth import WithTruth
from cac_ext.train.errors import ConfigError
from cac_ext.train.figures.panels import crop_pair_figure
from cac_ext.train.methods.consistency import (
    Anchors,
    Overlap,
    consistency_loss,
    consistency_loss_over_chunks,
)
from cac_ext.train.methods.contract import MethodContext, StreamRequest
from cac_ext.train.methods.finite import finite_outside_padding
from cac_ext.train.methods.memory_bank import MemoryBank, join_banks, share_of_bank
from cac_ext.train.methods.negative_precision import count_classes, negative_precision
from cac_ext.train.methods.projecting_network import ViewOutputs
from cac_ext.train.runtime.seeding import derive_seed


class Truth(NamedTuple):
    """True classes, -1 where unknown, for metrics only."""

    negatives: Tensor  # [M]
    first: Tensor  # [A] of the overlap in view 1
    second: Tensor  # [A] of the overlap in view 2


class Rows(NamedTuple):
    """What the loss uses of both views' outputs, as rows."""

    first: Overlap  # of view 1
    second: Overlap  # of view 2
    features: Tensor  # [M, C] of the new negatives, view 1's first, no gradient
    labels: Tensor  # [M] their pseudo labels
    chosen: Tensor  # [M] their positions in [2B, h, w]


def _of_both(first: Tensor, second: Tensor, size: int) -> Tensor:
    """Positions in view 1 and in view 2 as positions in both, which have ``size`` together."""
    return torch.cat([first, second + size // 2])


def _truth_of(pairs: CropPairBatch, chosen: Tensor) -> Truth | None:
    first, second = pairs.view1.truth, pairs.view2.truth  # [B, h, w]
    if first is None or second is None:
        return None
    both = torch.cat([first.flatten(), second.flatten()])  # [2P]
    overlap = pairs.view1.overlap, pairs.view2.overlap
    return Truth(both[chosen], first.flatten()[overlap[0]], second.flatten()[overlap[1]])


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
    return finite_outside_padding(outputs.projections, valid)


def _most_gathered(context: MethodContext) -> int | None:
    """``run.max_gathered_negatives``, or None if no rows are gathered in chunks."""
    most, size = context.config.run.max_gathered_negatives, context.processes.size
    if most is None or size == 1:
        return None
    if most < size:
        raise ConfigError(
            f"run.max_gathered_negatives is {most}, but each of {size} processes contributes at "
            f"least one: set it to {size} or more, at best to some thousands"
        )
    return most


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
        self._most_gathered = _most_gathered(context)
        self._latest: CropPairOutputs | None = None
        self._normalization = context.network.normalization

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
            CropPairAugment(config.augment, sampler, ignore_index, self._normalization),
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
        rows = self._rows(pairs, outputs, generator)
        arguments = config.method, rows.first, rows.second, pairs.weights
        if self._most_gathered is None:
            features, labels = processes.gather_negatives(rows.features, rows.labels)
            features, labels = self.bank.enqueue(features, labels)  # [N, C], [N]
            count = len(features)
            loss, anchors = consistency_loss(
                *arguments, features, labels, self.context.normalizing, self.loss
            )
        else:  # the bank holds the rows of this process
            features, labels = self.bank.enqueue(rows.features, rows.labels)
            count = sum(processes.counts(len(features)))
            loss, anchors = consistency_loss_over_chunks(
                *arguments,
                processes.gather_in_chunks(features, labels, self._most_gathered),
                self.context.normalizing,
            )
        share = anchors.share(processes)
        metrics: dict[str, Tensor | float] = {"active_share": share, "negatives": count}
        truth = _truth_of(pairs, rows.chosen)
        if truth is not None:
            metrics |= self._precision(rows, truth, anchors)
        self._latest = CropPairOutputs(pairs, outputs.confidences, outputs.pseudo_labels, anchors)
        return loss, metrics

    def _rows(self, pairs: CropPairBatch, outputs: ViewOutputs, generator: torch.Generator) -> Rows:
        """Both views' overlap, and the positions that become negatives."""
        projections = outputs.projections.permute(0, 2, 3, 1).flatten(0, 2)  # [2P, C]
        confidences, labels = outputs.confidences.flatten(), outputs.pseudo_labels.flatten()
        both = _of_both(pairs.view1.overlap, pairs.view2.overlap, len(labels))  # [2A]
        overlaps = (x.index_select(0, both).chunk(2) for x in (projections, confidences, labels))
        first, second = (Overlap(*parts) for parts in zip(*overlaps, strict=True))
        first_chosen = self.bank.select(pairs.view1.on_image, generator)
        second_chosen = self.bank.select(pairs.view2.on_image, generator)
        chosen = _of_both(first_chosen, second_chosen, len(labels))  # [M]
        features = projections.detach()
        if len(chosen) < len(labels):  # otherwise they are all positions in order
            features, labels = features.index_select(0, chosen), labels.index_select(0, chosen)
        return Rows(first, second, features, labels, chosen)

    def _precision(self, rows: Rows, truth: Truth, anchors: Anchors) -> dict[str, Tensor | float]:
        """Precision over the pairs of all processes' anchors with all negatives of the bank."""
        classes = self.context.splits.num_classes
        of_negatives = count_classes(rows.labels, truth.negatives, classes)  # [K, K]
        of_anchors = count_classes(
            rows.first.pseudo_labels, truth.first, classes, anchors.first_to_second
        ) + count_classes(rows.second.pseudo_labels, truth.second, classes, anchors.second_to_first)
        of_anchors, of_negatives = self.context.processes.sum(
            torch.stack([of_anchors, of_negatives])
        )
        selected, of_all = negative_precision(of_anchors, self.bank.count(of_negatives))
        if not self.context.config.method.negative_sampling:  # all pairs are selected
            selected = of_all
        return {"negative_precision": selected, "negative_precision_random": of_all}

    def state_dict(self) -> dict[str, Any]:
        """The memory bank. All processes call it; if they share the bank, rank 0 collects it."""
        state = self.bank.state_dict()
        if self._most_gathered is None:
            return {"bank": state}
        on_cpu = {part: [rows.cpu() for rows in steps] for part, steps in state.items()}
        states = self.context.processes.collect(on_cpu)
        return {"bank": join_banks(states)} if states else {}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        bank, processes = state["bank"], self.context.processes
        if self._most_gathered is not None:
            bank = share_of_bank(bank, processes.rank, processes.size)
        self.bank.load_state_dict(bank, device)

    def pictures(self) -> dict[str, Figure]:
        """The first crop pair of the latest step, if it had any."""
        if self._latest is None:
            return {}
        grid = self.context.network.pooled_grid
        figure = crop_pair_figure(
            self.context.splits, grid, *self._latest, normalization=self._normalization
        )
        return {"train/crop_pair": figure}
