"""Inputs for the tests of the loss, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class LossCase:
    """Two views of A pixels and N negatives; features are clustered by class, labels are noisy."""

    features1: Tensor  # [A, C]
    features2: Tensor  # [A, C]
    confidences1: Tensor  # [A]
    confidences2: Tensor  # [A]
    pseudo_labels1: Tensor  # [A]
    pseudo_labels2: Tensor  # [A]
    negatives: Tensor  # [N, C]
    negative_labels: Tensor  # [N]

    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())

    def to_float64(self) -> LossCase:
        """The same numbers in the oracle's type, exact to the last bit."""
        return LossCase(*(x.double() if x.is_floating_point() else x for x in self.arguments()))


def make_case(
    seed: int,
    anchors: int,
    negatives: int,
    channels: int,
    classes: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> LossCase:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def labels(count: int) -> Tensor:
        # Class 0 is as frequent as all others together, like the background.
        drawn = torch.randint(0, max(2 * (classes - 1), 1), (count,), generator=generator)
        return drawn.clamp(min=classes - 2 if classes > 1 else 0) - max(classes - 2, 0)

    def confidences() -> Tensor:
        # Multiples of 1/64, exact in every type: some are equal, some equal a threshold.
        return torch.randint(0, 65, (anchors,), generator=generator).double() / 64

    centers = normal(classes, channels)
    classes1, negative_labels = labels(anchors), labels(negatives)
    relabelled = torch.rand(anchors, generator=generator) < 0.1
    classes2 = torch.where(relabelled, labels(anchors), classes1)
    common = centers[classes1] + normal(anchors, channels)
    tensors = (
        common + 0.5 * normal(anchors, channels),
        common + 0.5 * normal(anchors, channels),
        confidences(),
        confidences(),
        classes1,
        classes2,
        centers[negative_labels] + normal(negatives, channels),
        negative_labels,
    )
    return LossCase(
        *(x.to(dtype).to(device) if x.dtype == torch.float64 else x.to(device) for x in tensors)
    )


#: (anchors, negatives, channels, classes): odd sizes, tile borders, one of each, one class, empty.
SHAPES = [
    (1, 1, 1, 2),
    (1, 300, 8, 3),
    (97, 1, 5, 2),
    (33, 65, 3, 4),
    (48, 96, 32, 2),
    (130, 517, 37, 7),
    (257, 1025, 128, 21),
    (64, 256, 256, 150),
    (50, 200, 16, 1),
    (40, 0, 16, 3),
    (0, 40, 16, 3),
    (0, 0, 1, 2),
]
