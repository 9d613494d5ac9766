"""Directional context-aware consistency (paper Fig. 4, Eq. 9), with image-level labels (Eq. 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cac_ext.train.config import Config
from cac_ext.train.data.batches import CropPairBatch
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.directional_contrast import DirectionalContrast, are_finite, views_of
from cac_ext.train.methods.fused_loss import require_fused_loss
from cac_ext.train.methods.projecting_network import build_model
from cac_ext.train.methods.ramp import sigmoid_ramp


class Cac(Method):
    """The paper's method with every switch of its Table 3.

    Args:
        context: see `Method`.
        loss: replaces `cac_ext.directional_contrastive_loss`, to compare implementations.
    """

    takes_directional_contrast = True  # its own loss: the setting changes nothing
    takes_image_labels = True

    def __init__(
        self,
        context: MethodContext,
        loss: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__(context)
        self.model = build_model(context.config, context.network)
        self.trained["model"] = self.model
        self.contrast = DirectionalContrast(context, loss)

    @classmethod
    def check(cls, config: Config) -> None:
        require_fused_loss(config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.groups_of(dict(self.model.named_children()))

    def streams(self) -> dict[str, StreamRequest]:
        config = self.context.config
        streams = self.supervised_streams()
        if config.method.unsupervised_weight > 0 or config.weak.pseudo_labels:
            streams["crop_pairs"] = self.contrast.stream()
        return streams

    def step(self, step: Step) -> Iterator[Phase]:
        """``cross entropy + lambda * consistency + lambda_w * weak`` (Eq. 10).

        The weak term needs a weak classifier.
        """
        self.contrast.forget()
        labelled = self.supervised_batch(step.batches)
        pairs: CropPairBatch | None = step.batches.get("crop_pairs")
        views = None if pairs is None else views_of(pairs)  # [2B, 3, S, S]
        logits, outputs = step.modules["model"](labelled.images, views)
        supervised, finite = self.supervised_loss(logits, labelled.masks)
        if pairs is not None:
            finite = finite & are_finite(pairs, outputs)
        if not step.proceeds(finite):
            return
        losses, total = {"supervised": supervised}, supervised
        metrics: dict[str, Tensor | float] = {}
        if pairs is not None:
            losses["unsupervised"], metrics = self.contrast(step.draw, pairs, outputs)
            total = total + self.context.config.method.unsupervised_weight * losses["unsupervised"]
            masks1, masks2 = pairs.view1.masks, pairs.view2.masks
            if outputs.weak_logits is not None and masks1 is not None and masks2 is not None:
                logits1, logits2 = outputs.weak_logits.chunk(2)
                weak1, _ = self.cross_entropy(logits1, masks1)
                weak2, _ = self.cross_entropy(logits2, masks2)
                losses["weak"] = (weak1 + weak2) / 2
                weight = weak_weight(self.context.config, step.iteration)
                total = total + weight * losses["weak"]
        yield Phase(total, losses, metrics)

    def state_dict(self) -> dict[str, Any]:
        return self.contrast.state_dict()

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.contrast.load_state_dict(state, device)

    def pictures(self) -> dict[str, Figure]:
        return self.contrast.pictures()


def weak_weight(config: Config, iteration: int) -> float:
    """lambda_w of Eq. 10: a sigmoid ramp over the share ``weak.rampup`` of all iterations."""
    return config.weak.weight * sigmoid_ramp(iteration, config.weak.rampup * config.iterations)
