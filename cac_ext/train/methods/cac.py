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
from cac_ext.train.data.batches import CropPairBatch, ViewBatch, collate_pairs
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.data.truth import WithTruth
from cac_ext.train.figures.panels import crop_pair_figure
from cac_ext.train.methods.consistency import Anchors, Overlap, consistency_loss
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
    """The outputs of the unlabelled branch for V views, with h x w features each."""

    projections: Tensor  # [V, C, h, w], unit length at each position
    confidences: Tensor  # [V, h, w] largest class probability
    pseudo_labels: Tensor  # [V, h, w] most probable class
    weak_logits: Tensor | None  # [V, K, S, S] of the weak classifier, if there is one


class CacModel(nn.Module):
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


def build_model(config: Config, network: SegmentationNetwork) -> CacModel:
    """The network with the projector and the weak classifier that the configuration asks for."""
    projector: nn.Module = NoProjector()
    if config.method.projector:
        projector = Projector(network.encoder.out_channels, config.method.projector_channels)
    # A copy, so that it fits a custom network too.
    weak_classifier = copy.deepcopy(network.classifier) if config.weak.pseudo_labels else None
    return CacModel(network, projector, weak_classifier)


class CropPairOutputs(NamedTuple):
    """Crop pairs of a step and their outputs, for pictures."""

    pairs: CropPairBatch
    confidences: Tensor  # [2B, h, w], view 1's first
    pseudo_labels: Tensor  # [2B, h, w]
    anchors: Anchors


class Truth(NamedTuple):
    """True classes of one view's pixels, -1 where unknown, for metrics only."""

    negatives: Tensor  # [M]
    overlap: Tensor  # [A]


class Branch(NamedTuple):
    """The part of one view's outputs that a step uses."""

    overlap: Overlap
    features: Tensor  # [M, C] of the new negatives, no gradient
    labels: Tensor  # [M] their pseudo labels
    weak: Tensor | None  # scalar, the weak classifier's cross entropy
    truth: Truth | None


class Cac(Method):
    """The paper's method with every switch of its Table 3.

    Args:
        context: see `Method`.
        loss: replaces `cac_ext.directional_contrastive_loss`, to compare implementations.
    """

    def __init__(
        self,
        context: MethodContext,
        loss: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> None:
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

    def parameter_groups(self) -> list[dict[str, Any]]:
        parts = {
            "network": self.model.network,
            "projector": self.model.projector,
            "weak_classifier": self.model.weak_classifier,
        }
        return self.groups_of({name: part for name, part in parts.items() if part is not None})

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
                f"the whole run is warm-up (schedule.warmup_epochs is {schedule.warmup_epochs}, "
                f"schedule.epochs {schedule.epochs}): it trains the supervised loss alone and "
                "uses no crop pair. Set schedule.warmup_epochs below schedule.epochs, "
                "e.g. to 0, or method.unsupervised_weight=0 if that is intended",
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

        The weak term needs a weak classifier. The new negatives of the step go into the bank.
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
            # Padding takes no part.
            finite = finite & (outputs.projections.isfinite().all(dim=1) | ~valid).all()
        if not step.proceeds(finite):
            return
        if pairs is None:
            yield Phase(supervised, {"supervised": supervised})
        else:
            yield self._unlabelled_phase(step.iteration, supervised, pairs, outputs)

    def _unlabelled_phase(
        self, iteration: int, supervised: Tensor, pairs: CropPairBatch, outputs: ViewOutputs
    ) -> Phase:
        config, processes = self.context.config, self.context.processes
        seed = derive_seed(config.seed, "negatives", iteration, processes.rank)
        generator = torch.Generator().manual_seed(seed)
        first, second = (
            self._branch(view, of_view, generator)
            for view, of_view in zip((pairs.view1, pairs.view2), _halves(outputs), strict=True)
        )
        labels = torch.cat([first.labels, second.labels])  # [M] of both views
        negatives, negative_labels = self.bank.enqueue(
            *processes.gather_negatives(torch.cat([first.features, second.features]), labels)
        )  # [N, C], [N]
        unsupervised, anchors = consistency_loss(
            config.method,
            first.overlap,
            second.overlap,
            pairs.weights,
            negatives,
            negative_labels,
            self.normalizing,
            self.loss,
        )

        total = supervised + config.method.unsupervised_weight * unsupervised
        losses = {"supervised": supervised, "unsupervised": unsupervised}
        metrics: dict[str, Tensor | float] = {
            "active_share": anchors.share(),
            "negatives": len(negatives),
        }
        if first.weak is not None and second.weak is not None:
            losses["weak"] = (first.weak + second.weak) / 2
            total = total + weak_weight(config, iteration) * losses["weak"]
        if first.truth is not None and second.truth is not None:
            metrics |= self._precision(
                first.overlap, second.overlap, first.truth, second.truth, labels, anchors
            )
        self._latest = CropPairOutputs(pairs, outputs.confidences, outputs.pseudo_labels, anchors)
        return Phase(total, losses, metrics)

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
        weak = None
        if outputs.weak_logits is not None and view.masks is not None:
            weak, _ = self.cross_entropy(outputs.weak_logits, view.masks)
        truth = None
        if view.truth is not None:
            flat = view.truth.flatten()  # [B h w]
            truth = Truth(flat[selected], flat[view.overlap])
        return Branch(overlap, projections.detach()[selected], labels[selected], weak, truth)

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
    """lambda_w of Eq. 10: a sigmoid ramp over the share ``weak.rampup`` of all iterations."""
    return config.weak.weight * sigmoid_ramp(iteration, config.weak.rampup * config.iterations)


def _halves(outputs: ViewOutputs) -> tuple[ViewOutputs, ViewOutputs]:
    """The outputs of view 1 and of view 2."""
    split = [(None, None) if output is None else output.chunk(2) for output in outputs]
    first, second = zip(*split, strict=True)
    return ViewOutputs(*first), ViewOutputs(*second)
