"""One step of a method by itself: random batches in, its phase out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from cac_ext.train.config import Config
from cac_ext.train.data.batches import CropPairBatch, LabelledBatch, ViewBatch
from cac_ext.train.methods import MethodContext, Phase, Step
from cac_ext.train.methods.cac import Cac
from cac_ext.train.networks import build_network


def make_cac(config: Config, num_classes: int) -> Cac:
    """The method in training mode, without data."""
    splits = SimpleNamespace(num_classes=num_classes, ignore_index=255)
    method = Cac(MethodContext(config, splits, build_network(config.network, num_classes)))
    method.model.train()
    return method


def random_labelled(images: int, size: int, num_classes: int) -> LabelledBatch:
    return LabelledBatch(
        torch.randn(images, 3, size, size), torch.randint(0, num_classes, (images, size, size))
    )


def random_pairs(
    images: int,
    size: int,
    overlaps: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    *,
    masks: tuple[Tensor | None, Tensor | None] = (None, None),
    truths: tuple[Tensor | None, Tensor | None] = (None, None),
) -> CropPairBatch:
    """Random views; ``valid`` are ``[B, h, w]``, ``overlaps`` positions in them."""
    views = [
        ViewBatch(torch.randn(images, 3, size, size), on, on.flatten().nonzero().squeeze(1), *parts)
        for on, *parts in zip(valid, overlaps, masks, truths, strict=True)
    ]
    image_index = overlaps[0] // valid[0][0].numel()
    sizes = image_index.bincount(minlength=images)
    return CropPairBatch(*views, image_index, 1.0 / (images * sizes[image_index]))


def step_of(method: Cac, labelled: Any, pairs: Any = None, iteration: int = 0) -> Phase | None:
    """The phase of a step; None if the step is void."""
    batches = {"labelled": labelled} | ({} if pairs is None else {"crop_pairs": pairs})
    step = Step(iteration, batches, method.trained, lambda finite: bool(finite))
    phases = list(method.step(step))
    assert len(phases) <= 1
    return phases[0] if phases else None


def balance_classes(model: nn.Module, pairs: CropPairBatch) -> None:
    """Makes the mean logit of each class zero over both views, by the classifier's bias.

    So no class is the most probable one everywhere: there are negatives of another pseudo label.
    """
    network = model.network
    with torch.no_grad():
        views = torch.cat([pairs.view1.images, pairs.view2.images])
        logits = network.classifier(network.pool(network.features(views)))  # [2B, K, h, w]
        network.classifier.bias -= logits.mean(dim=(0, 2, 3))
