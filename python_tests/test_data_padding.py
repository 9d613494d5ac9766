"""Pixels that padding added are neither anchors, nor positives, nor negatives of a step."""

from __future__ import annotations

import torch
from method_steps import make_cac, step_of
from torch import Tensor, nn

from cac_ext.train.config import load
from cac_ext.train.data.augment import CropPairAugment, LabelledAugment
from cac_ext.train.data.batches import collate_labelled, collate_pairs
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.methods.projecting_network import ViewOutputs


class PoisonedPadding(nn.Module):
    """A model whose projections are nan and whose confidence is 1 on padding."""

    def __init__(self, model: nn.Module, valid: Tensor) -> None:
        super().__init__()
        self.model = model
        self.valid = valid  # [2B, h, w]

    def forward(self, labelled: Tensor, views: Tensor):
        logits, (projections, confidences, pseudo_labels, _) = self.model(labelled, views)
        projections = torch.where(self.valid[:, None], projections, torch.nan)
        confidences = torch.where(self.valid, confidences, 1.0)
        return logits, ViewOutputs(projections, confidences, pseudo_labels, None)


def test_nothing_on_padding_enters_the_loss(seed: int) -> None:
    torch.manual_seed(seed)
    overrides = ["network.width=16", "augment.crop_size=65", "method.confidence_threshold=0.05"]
    config = load("synthetic", overrides)
    method = make_cac(config, 5)
    sampler = CropPairSampler(65, method.model.network.pooled_grid, (0.1, 1.0), flip=0.5)
    pair_augment = CropPairAugment(config.augment, sampler)
    image = torch.randint(0, 256, (3, 40, 100), dtype=torch.uint8)
    mask = torch.randint(0, 5, (40, 100), dtype=torch.uint8)
    pairs = collate_pairs([pair_augment({"image": image, "name": "noise"}) for _ in range(3)])
    labelled = LabelledAugment(config.augment, 255)({"image": image, "mask": mask, "name": "noise"})
    labelled = collate_labelled([labelled])

    valid = torch.cat([pairs.view1.valid, pairs.view2.valid])
    assert 0.3 < valid.float().mean() < 0.9  # there is padding, and there is image
    method.trained["model"] = model = PoisonedPadding(method.model, valid)
    losses = step_of(method, labelled, pairs)
    losses.total.backward()
    assert losses.metrics["negatives"] == int(valid.sum())
    assert losses.losses["unsupervised"] > 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(p.grad.abs().sum() > 0 for p in model.model.projector.parameters())
