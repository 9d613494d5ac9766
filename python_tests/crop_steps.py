"""One step of a method on whole crops: a tiny network and random batches in, its phase out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from method_steps import random_labelled, random_pairs
from torch import Tensor, nn

from cac_ext.train.config import load
from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.methods import MethodContext, Phase, Step, build_method
from cac_ext.train.methods.student import StudentMethod
from cac_ext.train.networks import SegmentationNetwork

CLASSES, SIZE, IMAGES = 3, 6, 2

#: Methods on whole crops, and how many strong versions of a crop each needs.
VERSIONS = {"mean_teacher": 1, "fixmatch": 1, "unimatch": 2}


class PixelEncoder(nn.Module):
    """Two maps of each pixel alone, so that no pixel sees another; batch normalization in both."""

    stride, out_channels = 1, 8

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.high = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
        self.head = nn.Sequential(nn.Conv2d(10, 8, 1), nn.BatchNorm2d(8))
        self.decoded: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.maps(images))

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {"low": self.low(images), "high": self.high(images)}

    def decode(self, maps: dict[str, Tensor]) -> Tensor:
        self.decoded = dict(maps)
        return self.head(torch.cat([maps["low"], maps["high"]], dim=1))


def make_method(name: str, *overrides: str) -> StudentMethod:
    """The method in training mode, on a `PixelEncoder` without dropout, without data."""
    given = [f"method.name={name}", f"augment.crop_size={SIZE}", "network.dropout=0"]
    given += ["run.negative_precision=false", *overrides]
    config = load("synthetic", given)
    dropout = config.network.dropout
    encoder, classifier = PixelEncoder(), nn.Conv2d(PixelEncoder.out_channels, CLASSES, 1)
    network = SegmentationNetwork(encoder, classifier, dropout=dropout)
    nn.init.normal_(classifier.weight, std=2.0)  # some predictions are sure, some are not
    images = [{"image": torch.zeros(3, SIZE, SIZE), "name": "x"}] * 8
    splits = SimpleNamespace(
        num_classes=CLASSES, ignore_index=255, labelled=images, unlabelled=images
    )
    method = build_method(MethodContext(config, splits, network))
    assert isinstance(method, StudentMethod)
    for module in method.trained.values():
        module.train()
    return method


def random_crops(versions: int, *, mixed: bool = False) -> WholeCropBatch:
    """Crops whose last rows are padding; with ``mixed`` a box in each version."""
    valid = torch.ones(IMAGES, SIZE, SIZE, dtype=torch.bool)
    boxes = torch.zeros(versions, IMAGES, SIZE, SIZE, dtype=torch.bool)
    for image in range(IMAGES):
        valid[image, SIZE - 1 - int(torch.randint(2, ())) :] = False
        for version in range(versions if mixed else 0):
            top, left = torch.randint(SIZE - 2, (2,)).tolist()
            boxes[version, image, top : top + 3, left : left + 2] = True
    return WholeCropBatch(
        torch.randn(IMAGES, 3, SIZE, SIZE),
        torch.randn(versions, IMAGES, 3, SIZE, SIZE),
        valid,
        boxes,
    )


def random_batches(versions: int, *, pairs: bool = False) -> dict[str, Any]:
    """The batches of a step: labelled, unlabelled and partner crops, if asked for crop pairs."""
    batches: dict[str, Any] = {
        "labelled": random_labelled(IMAGES, SIZE, CLASSES),
        "unlabelled": random_crops(versions, mixed=True),
        "partner": random_crops(versions),
    }
    if pairs:
        valid = torch.ones(IMAGES, SIZE, SIZE, dtype=torch.bool)
        overlaps = torch.arange(0, valid.numel(), 2), torch.arange(1, valid.numel(), 2)
        batches["crop_pairs"] = random_pairs(IMAGES, SIZE, overlaps, (valid, valid))
    return batches


def phase_of(method: StudentMethod, batches: dict[str, Any], iteration: int = 0) -> Phase | None:
    """The phase of a step; None where the step is void."""
    step = Step(iteration, batches, method.trained, lambda finite: bool(finite))
    phases = list(method.step(step))
    assert len(phases) <= 1
    return phases[0] if phases else None


def gradients(module: nn.Module) -> dict[str, bool]:
    """Parameter name -> whether a gradient has reached it."""
    return {
        name: parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for name, parameter in module.named_parameters()
    }


def expected_cross_entropy(
    logits: Tensor, labels: Tensor, confidences: Tensor, valid: Tensor, threshold: float
) -> float:
    """Pixel by pixel: the sum over confident pixels by the count of those outside padding."""
    total, counted = 0.0, 0
    for index in valid.nonzero().tolist():
        image, row, column = index
        counted += 1
        if confidences[image, row, column] >= threshold:
            scores = logits[image, :, row, column].double()
            label = int(labels[image, row, column])
            total += float(scores.exp().sum().log() - scores[label])
    return total / counted
