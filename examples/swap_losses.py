"""Two trainings in which a loss of the field is swapped for a call of ours.

From this folder, in less than a minute on a CPU::

    python swap_losses.py

* `ContrastiveSeg <https://arxiv.org/abs/2101.11939>`_: pixels of a segmentation network attract
  those of their own class, in the batch; anchors are keys, and both sides learn.
* `MoCo v2 <https://arxiv.org/abs/2003.04297>`_: two views of an image against a queue, which is
  partly filled at first.

Images are made up: colored rectangles on noise. Each training prints its first and last loss.
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cac_ext

CLASSES = 4


def make_images(count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[B, 3, S, S]`` and labels ``[B, S, S]``: one rectangle each, its class its color."""
    images = 0.3 * torch.randn(count, 3, size, size, generator=generator)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    colors = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    for i in range(count):
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        number = int(torch.randint(1, CLASSES, (), generator=generator))
        rows, columns = slice(top, top + size // 2), slice(left, left + size // 2)
        labels[i, rows, columns] = number
        images[i, :, rows, columns] += colors[number][:, None, None]
    return images, labels


def encoder(channels: int) -> nn.Sequential:
    """``[B, 3, S, S] -> [B, C, S / 4, S / 4]``."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, channels, 3, stride=2, padding=1),
    )


def train_contrastive_seg(steps: int, size: int = 32, seed: int = 0) -> list[float]:
    """Losses of a segmentation training with the pixel contrast of ContrastiveSeg."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network, classifier = encoder(32), nn.Conv2d(32, CLASSES, 1)
    optimizer = torch.optim.SGD([*network.parameters(), *classifier.parameters()], lr=0.05)
    losses = []
    for _ in range(steps):
        images, labels = make_images(4, size, generator)
        features = network(images)  # [B, C, h, w]
        small = F.interpolate(labels[:, None].float(), features.shape[-2:])[:, 0].long()
        anchors = features.permute(0, 2, 3, 1).flatten(0, 2)  # [A, C]
        own = torch.arange(len(anchors))
        # Theirs: PixelContrastLoss of sampled pixels, over an [A, A] matrix.
        contrast = cac_ext.supervised_contrastive_loss(
            anchors, anchors, small.flatten(), small.flatten(), form="pairwise", exclude=own
        ).mean()
        loss = F.cross_entropy(classifier(features), small) + 0.1 * contrast
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train_moco(steps: int, size: int = 32, seed: int = 0) -> list[float]:
    """Losses of MoCo v2: an encoder, its moving average, and a queue of its keys."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(encoder(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 64))
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    queue, filled = torch.empty(256, 64), torch.tensor(0)  # of keys, and how many there are
    losses = []
    for step in range(steps):
        images, _ = make_images(16, size, generator)
        views = [images + 0.1 * torch.randn(images.shape, generator=generator) for _ in range(2)]
        query = network(views[0])  # [B, C]
        with torch.no_grad():
            key = average(views[1])
        # Theirs: a cross-entropy over [B, 1 + N] logits. Ours counts what the queue holds.
        loss = cac_ext.masked_contrastive_loss(
            query, key, queue, mask="all", temperature=0.2, num_valid=filled
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
        place = step * len(key) % len(queue)
        queue[place : place + len(key)] = key
        filled = (filled + len(key)).clamp(max=len(queue))
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description="Two small trainings with swapped losses.")
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    for name, train in (("ContrastiveSeg", train_contrastive_seg), ("MoCo v2", train_moco)):
        losses = train(steps)
        print(f"{name}: loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")


if __name__ == "__main__":
    main()
