"""Directional context-aware consistency (paper Fig. 4, Eq. 9), with image-level labels (Eq. 10)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from cac_ext.train.config import Config
from cac_ext.train.data.augment import CropPairAugment
from cac_ext.train.data.batches import CropPairBatch, collate_pairs
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.data.truth import WithTruth
from cac_ext.train.figures.panels import crop_pair_figure
from cac_ext.train.methods.consistency import Overlap, consistency_loss
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.fused_loss import require_fused_loss
from cac_ext.train.methods.memory_bank import MemoryBank
from cac_ext.train.methods.negative_precision import count_classes, negative_precision
from cac_ext.train.methods.ramp import sigmoid_ramp
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.layers import upsample
from cac_ext.train.networks.projector import NoProjector, Projector
from cac_ext.train.runtime.seeding import derive_seed


class ViewOutputs(NamedTuple):
    """What the unlabelled branch makes of V views; h x w features each."""

    projections: Tensor  # [V, C, h, w], unit length at each position
    confidences: Tensor  # [V, h, w] largest class probability
    pseudo_labels: Tensor  # [V, h, w] most probable class
    weak_logits: Tensor | None  # [V, K, S, S] of the weak classifier, if there is one


class CacModel(nn.Module):
    """All that is trained, with one forward for a whole step, as DDP and torch.compile want it.

    Args:
        network: what remains for inference.
        projector: see `networks/projector.py`.
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

    def forward(self, labelled: Tensor, views: Tensor | None) -> tuple[Tensor, ViewOutputs | None]:
        """Logits ``[B, K, S, S]``, and for views ``[V, 3, S, S]`` their outputs."""
        logits = self.network(labelled)
        return logits, None if views is None else self.view_outputs(views)

    def view_outputs(self, views: Tensor) -> ViewOutputs:
        """``[V, 3, S, S]`` to projections, confidences and pseudo labels."""
        whole = self.network.features(views)
        features = self.network.pool(whole)  # [V, F, h, w]
        with torch.no_grad():  # neither gradient nor dropout noise in what is taken for the truth
            probabilities = self.network.classifier(features.detach()).softmax(dim=1)
            confidences, pseudo_labels = probabilities.max(dim=1)
        projections = self.projector(features)
        weak_logits = None
        if self.weak_classifier is not None:
            grid = self.network.grid
            weak_logits = self.weak_classifier(self.network.dropout(whole))
            weak_logits = upsample(weak_logits, grid.stride, grid.offset, views.shape[-2:])
        return ViewOutputs(projections, confidences, pseudo_labels, weak_logits)


def build_model(config: Config, network: SegmentationNetwork) -> CacModel:
    """The network with the projector and the weak classifier that the configuration asks for."""
    projector: nn.Module = NoProjector()
    if config.method.projector:
        projector = Projector(network.encoder.out_channels, config.method.projector_channels)
    # The weak classifier is like the main one, of a user's own network as well.
    weak_classifier = copy.deepcopy(network.classifier) if config.weak.pseudo_labels else None
    return CacModel(network, projector, weak_classifier)


class CropPairOutputs(NamedTuple):
    """What a step made of its crop pairs, for pictures."""

    pairs: CropPairBatch
    confidences: Tensor  # [2B, h, w], view 1's first
    pseudo_labels: Tensor  # [2B, h, w]
    active: tuple[Tensor, Tensor]  # [A] each: anchors in direction 1 -> 2, in 2 -> 1


class Cac(Method):
    """The paper's method with every switch of its Table 3; with none of them SupOnly.

    Args:
        context: see `Method`.
        loss: stands in for `cac_ext.directional_contrastive_loss`, to compare implementations.
    """

    def __init__(self, context: MethodContext, loss: Callable[..., Tensor] | None = None) -> None:
        super().__init__(context)
        config = context.config
        self.model = build_model(config, context.network)
        self.trained["model"] = self.model
        self.loss = loss
        selected_num = config.method.selected_num
        if selected_num is not None:  # each process selects its share, rounded up
            selected_num = -(-selected_num // context.processes.size)
        self.bank = MemoryBank(selected_num, config.method.step_save)
        self._latest: CropPairOutputs | None = None

    @classmethod
    def check(cls, config: Config) -> None:
        require_fused_loss(config)

    def parameter_groups(self) -> list[dict]:
        optimizer = self.context.config.optimizer
        rate, factor = optimizer.learning_rate, optimizer.backbone_factor
        groups = self.model.network.parameter_groups(rate, factor)
        parts = {"projector": self.model.projector, "weak_classifier": self.model.weak_classifier}
        for name, part in parts.items():
            params = [] if part is None else list(part.parameters())
            if params:
                groups.append({"name": name, "params": params, "learning_rate": rate})
        return groups

    def streams(self) -> dict[str, StreamRequest]:
        config = self.context.config
        streams = self.supervised_streams()
        if config.method.unsupervised_weight > 0 or config.weak.pseudo_labels:
            streams["crop_pairs"] = self._crop_pair_stream(config)
        return streams

    def _crop_pair_stream(self, config: Config) -> StreamRequest:
        schedule = config.schedule
        if config.warmup_iterations >= config.iterations and self.context.processes.is_main:
            warnings.warn(
                f"all of the run is warm-up (schedule.warmup_epochs is {schedule.warmup_epochs}, "
                f"schedule.epochs {schedule.epochs}): it trains the supervised loss alone and "
                "never looks at a crop pair. Set schedule.warmup_epochs below schedule.epochs, "
                "e.g. to 0, or method.unsupervised_weight=0 where that is meant",
                stacklevel=2,
            )
        splits = self.context.splits
        images, ignore_index = self.unlabelled_images(), None
        if config.weak.pseudo_labels:
            images = pseudo_labelled(splits, config.weak.pseudo_labels, "weak.pseudo_labels")
            ignore_index = splits.ignore_index
        if config.run.negative_precision and config.method.loss == "contrastive":
            images = WithTruth(images, splits, "run.negative_precision")
        sampler = CropPairSampler(
            config.augment.crop_size,
            self.model.network.pooled_grid,
            config.method.iou_range,
            config.augment.flip,
        )
        return StreamRequest(
            images,
            CropPairAugment(config.augment, sampler, ignore_index),
            collate_pairs,
            schedule.unlabelled_batch,
            "schedule.unlabelled_batch",
            "unlabelled",
            config.warmup_iterations,
        )

    def step(self, step: Step) -> Iterator[Phase]:
        """``cross entropy + lambda * consistency + lambda_w * weak`` (Eq. 10).

        The weak term is there with a weak classifier. This step's negatives go into the bank.
        """
        self._latest = None
        labelled = self.supervised_batch(step.batches)
        pairs: CropPairBatch | None = step.batches.get("crop_pairs")
        views = None
        if pairs is not None:
            views = torch.cat([pairs.view1.images, pairs.view2.images])  # [2B, 3, S, S]
        logits, outputs = step.modules["model"](labelled.images, views)
        supervised, finite = self.cross_entropy(logits, labelled.masks)
        if pairs is not None:
            valid = torch.cat([pairs.view1.valid, pairs.view2.valid])  # [2B, h, w]
            # Padding never counts.
            finite = finite & (outputs.projections.isfinite().all(dim=1) | ~valid).all()
        if not step.proceeds(finite):
            return
        if pairs is None:
            yield Phase(supervised, {"supervised": supervised})
            return
        yield self._unlabelled_phase(step.iteration, supervised, pairs, outputs)

    def _unlabelled_phase(
        self, iteration: int, supervised: Tensor, pairs: CropPairBatch, outputs: ViewOutputs
    ) -> Phase:
        config, processes = self.context.config, self.context.processes
        seed = derive_seed(config.seed, "negatives", iteration, processes.rank)
        generator = torch.Generator().manual_seed(seed)
        selected, overlaps, truths, weak = [], [], [], []
        for view, of_view in zip((pairs.view1, pairs.view2), _halves(outputs), strict=True):
            by_position = of_view.projections.permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, C]
            labels = of_view.pseudo_labels.flatten()  # [B h w]
            chosen = self.bank.select(view.valid, generator)  # [M]
            selected.append((by_position.detach()[chosen], labels[chosen]))
            confidences = of_view.confidences.flatten()[view.overlap]  # [A]
            overlaps.append(Overlap(by_position[view.overlap], confidences, labels[view.overlap]))
            if view.truth is not None:
                truth = view.truth.flatten()  # [B h w]
                truths.append((truth[chosen], truth[view.overlap]))
            if of_view.weak_logits is not None:
                weak.append(self.cross_entropy(of_view.weak_logits, view.masks)[0])
        features, labels = (torch.cat(parts) for parts in zip(*selected, strict=True))
        capacity = 2 * self.bank.most_selected(pairs.view1.valid.numel())
        negatives, negative_labels = self.bank.enqueue(
            *processes.gather_negatives(features, labels, capacity)
        )
        unsupervised, active = consistency_loss(
            config.method,
            *overlaps,
            pairs.weights,
            negatives,
            negative_labels,
            self.normalizing,
            self.loss,
        )

        total = supervised + config.method.unsupervised_weight * unsupervised
        losses = {"supervised": supervised, "unsupervised": unsupervised}
        metrics: dict[str, Tensor | float] = {
            "active_share": _share(active),
            "negatives": len(negatives),
        }
        if weak:
            losses["weak"] = sum(weak) / 2
            total = total + weak_weight(config, iteration) * sum(weak) / 2
        if truths:
            chosen_truth, overlap_truth = zip(*truths, strict=True)
            of_selected, of_all = self._precision(
                labels, torch.cat(chosen_truth), overlaps, active, overlap_truth
            )
            if not config.method.negative_sampling:  # all pairs are selected
                of_selected = of_all
            metrics["negative_precision"] = of_selected
            metrics["negative_precision_random"] = of_all
        self._latest = CropPairOutputs(pairs, outputs.confidences, outputs.pseudo_labels, active)
        return Phase(total, losses, metrics)

    def _precision(
        self,
        labels: Tensor,  # [M] pseudo labels of this process's new negatives, of both views
        truth: Tensor,  # [M]
        overlaps: list[Overlap],
        active: tuple[Tensor, Tensor],
        overlap_truth: tuple[Tensor, ...],  # [A] of each view
    ) -> tuple[Tensor, Tensor]:
        """Precision over the pairs of all processes' anchors with all negatives of the bank."""
        num_classes = self.context.splits.num_classes
        negatives = count_classes(labels, truth, num_classes)
        anchors = sum(
            count_classes(overlap.pseudo_labels[mask], of_overlap[mask], num_classes)
            for overlap, mask, of_overlap in zip(overlaps, active, overlap_truth, strict=True)
        )
        anchors, negatives = self.context.processes.sum(torch.stack([anchors, negatives]))
        return negative_precision(anchors, self.bank.count(negatives))

    def state_dict(self) -> dict[str, Any]:
        return {"bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.bank.load_state_dict(state["bank"], device)

    def pictures(self) -> dict[str, Figure]:
        """The first crop pair of the latest step, if it had any."""
        if self._latest is None:
            return {}
        grid = self.model.network.pooled_grid
        figure = crop_pair_figure(self.context.splits, grid, *self._latest)
        return {"train/crop_pair": figure}


def weak_weight(config: Config, iteration: int) -> float:
    """lambda_w of Eq. 10: a sigmoid ramp over the first ``weak.rampup`` of all iterations."""
    return config.weak.weight * sigmoid_ramp(iteration, config.weak.rampup * config.iterations)


def _halves(outputs: ViewOutputs) -> tuple[ViewOutputs, ViewOutputs]:
    """The outputs of view 1 and of view 2."""
    split = [(None, None) if output is None else output.chunk(2) for output in outputs]
    first, second = zip(*split, strict=True)
    return ViewOutputs(*first), ViewOutputs(*second)


def _share(active: tuple[Tensor, Tensor]) -> Tensor:
    """Share of overlap pixels that are an anchor in at least one direction, a scalar."""
    either = active[0] | active[1]  # [A]
    return either.float().mean() if len(either) else either.new_zeros(()).float()
