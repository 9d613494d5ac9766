"""The loss in a training that you have: before and after, the same curve.

From this folder, in seconds on a CPU::

    python before_and_after.py

An ordinary PyTorch loop trains a small network on made-up images: cross entropy on labelled ones,
and the directional contrastive loss on two overlapping crops of unlabelled ones. It runs twice from
the same seed, once with the loss in plain PyTorch (`plain_loss`, paper Eq. 1-8), once with
`cac_ext.directional_contrastive_loss`. The loop does not know which. Both curves, their largest
difference and the times are printed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cac_ext

CLASSES, CHANNELS = 4, 64
SIZE, SHIFT = 64, 16  # pixels of a crop, and from the first crop to the second
STRIDE = 4  # pixels from one feature to the next
THRESHOLD, TEMPERATURE, WEIGHT = 0.3, 0.1, 0.1


def plain_loss(
    features1: Tensor,  # [A, C]
    features2: Tensor,
    confidences1: Tensor,  # [A]
    confidences2: Tensor,
    labels1: Tensor,  # [A]
    labels2: Tensor,
    negatives: Tensor,  # [N, C]
    negative_labels: Tensor,  # [N]
) -> Tensor:
    """Before: the loss as many trainings have it, with a matrix of all anchors times negatives."""
    bank = F.normalize(negatives, dim=1)

    def one_way(own: Tensor, other: Tensor, less: Tensor, more: Tensor, labels: Tensor) -> Tensor:
        active = (more > less) & (more > THRESHOLD)  # [A] the less confident view learns
        own, other = F.normalize(own, dim=1), F.normalize(other, dim=1).detach()
        positive = (own * other).sum(dim=1) / TEMPERATURE  # [A]
        scores = own @ bank.T / TEMPERATURE  # [A, N]
        scores = scores.masked_fill(labels[:, None] == negative_labels, -torch.inf)
        each = torch.cat([positive[:, None], scores], dim=1).logsumexp(dim=1) - positive
        return (each * active).sum() / active.sum().clamp(min=1)

    first = one_way(features1, features2, confidences1, confidences2, labels1)
    return first + one_way(features2, features1, confidences2, confidences1, labels2)


def fused_loss(
    features1: Tensor,
    features2: Tensor,
    confidences1: Tensor,
    confidences2: Tensor,
    labels1: Tensor,
    labels2: Tensor,
    negatives: Tensor,
    negative_labels: Tensor,
) -> Tensor:
    """After: the same in one call, without that matrix."""
    return cac_ext.directional_contrastive_loss(
        features1,
        features2,
        confidences1,
        confidences2,
        labels1,
        labels2,
        negatives,
        negative_labels,
        temperature=TEMPERATURE,
        confidence_threshold=THRESHOLD,
    )


class Curve(NamedTuple):
    """The loss of each step, and the seconds of all steps."""

    losses: list[float]
    seconds: float


def make_images(count: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[B, 3, S, W]`` and labels ``[B, S, W]``: stripes of colors on noise."""
    stripes = torch.randint(CLASSES, (count, width // 16), generator=generator)
    labels = stripes.repeat_interleave(16, dim=1)[:, None].expand(-1, SIZE, -1)  # [B, S, W]
    colors = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    images = colors[labels].permute(0, 3, 1, 2)
    return images + 0.5 * torch.randn(images.shape, generator=generator), labels


def train(loss_function: Callable[..., Tensor], steps: int, batch: int = 4, seed: int = 0) -> Curve:
    """The training that stays as it is."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, CHANNELS, 3, stride=2, padding=1),
    )
    classifier = nn.Conv2d(CHANNELS, CLASSES, 1)
    optimizer = torch.optim.SGD([*encoder.parameters(), *classifier.parameters()], lr=0.05)
    losses, begin = [], time.perf_counter()
    for _ in range(steps):
        images, labels = make_images(batch, SIZE, generator)
        wide, _ = make_images(batch, SIZE + SHIFT, generator)  # unlabelled
        views = [encoder(crop) for crop in (wide[..., :SIZE], wide[..., SHIFT:])]  # [B, C, h, w]
        supervised = F.cross_entropy(
            classifier(encoder(images)), labels[:, ::STRIDE, ::STRIDE].contiguous()
        )
        shared = SHIFT // STRIDE
        overlap = [views[0][..., shared:], views[1][..., :-shared]]  # the same pixels
        vectors = [view.permute(0, 2, 3, 1).flatten(0, 2) for view in overlap]  # [A, C]
        with torch.no_grad():
            confidences, classes = zip(
                *(classifier(view).softmax(dim=1).max(dim=1) for view in views), strict=True
            )
            bank = torch.cat([view.permute(0, 2, 3, 1).flatten(0, 2) for view in views])  # [N, C]
            bank_labels = torch.cat([x.flatten() for x in classes])
        contrast = loss_function(
            *vectors,
            confidences[0][..., shared:].flatten(),
            confidences[1][..., :-shared].flatten(),
            classes[0][..., shared:].flatten(),
            classes[1][..., :-shared].flatten(),
            bank,
            bank_labels,
        )
        loss = supervised + WEIGHT * contrast
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return Curve(losses, time.perf_counter() - begin)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both curves, their largest difference, and the time of both trainings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="more images: more pixels to compare")
    options = parser.parse_args(arguments)
    before, after = (
        train(function, options.steps, options.batch) for function in (plain_loss, fused_loss)
    )
    pairs = list(zip(before.losses, after.losses, strict=True))
    print("step     before      after")
    for step in range(0, options.steps, max(1, options.steps // 10)):
        print(f"{step:4d} {pairs[step][0]:10.6f} {pairs[step][1]:10.6f}")
    print(f"largest difference: {max(abs(x - y) for x, y in pairs):.1e}")
    print(f"time: {before.seconds:.2f} s before, {after.seconds:.2f} s after")


if __name__ == "__main__":
    main()
