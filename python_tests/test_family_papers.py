"""Losses of the field, written out from their papers with whole matrices, as calls of ours.

docs/losses.md shows the same calls.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cac_ext


@pytest.fixture
def random(seed):
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def labels(count: int, classes: int) -> Tensor:
        return torch.randint(0, classes, (count,), generator=generator)

    return rows, labels


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1)


def assert_same(ours, theirs, *rows: Tensor) -> None:
    """Values and gradients of two functions of the same rows."""
    results = []
    for function in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in rows]
        value = function(*leaves)
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
        results.append(
            (
                value,
                *(
                    torch.zeros_like(x) if g is None else g
                    for x, g in zip(leaves, grads, strict=True)
                ),
            )
        )
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_supcon(random):
    """Khosla et al. 2020, Eq. 2, both views as keys; their code's factor tau / base_tau."""
    rows, labels = random
    classes, tau, base = labels(12, 4), 0.1, 0.07

    def theirs(view1, view2):
        z = unit(torch.cat([view1, view2]))
        y = classes.repeat(2)
        scores = z @ z.T / tau
        other = ~torch.eye(24, dtype=torch.bool)
        positive = (y[:, None] == y) & other
        log_p = scores - scores.exp().masked_fill(~other, 0).sum(1, keepdim=True).log()
        return (-(tau / base) * (log_p * positive).sum(1) / positive.sum(1)).mean()

    def ours(view1, view2):
        z, y = torch.cat([view1, view2]), classes.repeat(2)
        loss = cac_ext.supervised_contrastive_loss(
            z, z, y, y, exclude=torch.arange(24), temperature=tau
        )
        return tau / base * loss.mean()

    assert_same(ours, theirs, rows(12, 8), rows(12, 8))


def contrastive_seg(anchors, keys, y, key_labels, own, tau, base):
    """Wang et al. 2021, Eq. 3, as in their code (loss_contrast.py, _contrastive)."""
    scores = unit(anchors) @ unit(keys).T / tau
    equal = y[:, None] == key_labels
    negatives = (scores.exp() * ~equal).sum(1, keepdim=True)
    log_p = scores - (scores.exp() + negatives).log()
    positive = equal if own is None else equal & ~own
    return (-(tau / base) * (log_p * positive).sum(1) / positive.sum(1)).mean()


def test_contrastive_seg_in_the_batch(random):
    rows, labels = random
    y = labels(30, 3)

    def ours(anchors):
        loss = cac_ext.supervised_contrastive_loss(
            anchors, anchors, y, y, form="pairwise", exclude=torch.arange(30), temperature=0.1
        )
        return 0.1 / 0.07 * loss.mean()

    def theirs(anchors):
        own = torch.eye(30, dtype=torch.bool)
        return contrastive_seg(anchors, anchors, y, y, own, 0.1, 0.07)

    assert_same(ours, theirs, rows(30, 8))


def test_contrastive_seg_with_a_memory(random):
    rows, labels = random
    y, memory, memory_labels = labels(20, 3), rows(90, 8), torch.arange(90) % 3

    def ours(anchors):
        return cac_ext.supervised_contrastive_loss(
            anchors, memory, y, memory_labels, form="pairwise", temperature=0.07
        ).mean()

    def theirs(anchors):
        return contrastive_seg(anchors, memory, y, memory_labels, None, 0.07, 0.07)

    assert_same(ours, theirs, rows(20, 8))


def test_moco(random):
    """He et al. 2020, Eq. 1 and algorithm 1, with MoCo v2's temperature."""
    rows, _ = random
    keys, queue = rows(10, 8), rows(70, 8)

    def theirs(query):
        q, k = unit(query), unit(keys)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ unit(queue).T], dim=1) / 0.2
        return F.cross_entropy(logits, torch.zeros(10, dtype=torch.long))

    def ours(query):
        return cac_ext.masked_contrastive_loss(
            query, keys, queue, mask="all", temperature=0.2
        ).mean()

    assert_same(ours, theirs, rows(10, 8))


def test_dense_cl(random):
    """Wang et al. 2021, Eq. 2: the positive is the key's most similar place; global queue."""
    rows, _ = random
    keys, backbone_q, backbone_k, queue = (
        rows(3, 8, 16),
        rows(3, 5, 16),
        rows(3, 5, 16),
        rows(40, 8),
    )

    # The correspondence comes from the backbones' features, without gradient.
    similar = torch.einsum(
        "bcs,bct->bst", F.normalize(backbone_q, dim=1), F.normalize(backbone_k, dim=1)
    )
    places = similar.argmax(dim=2)  # [B, S]
    matched = keys.gather(2, places[:, None].expand(-1, 8, -1))  # [B, C, S]

    def flat(grid):
        return grid.permute(0, 2, 1).reshape(-1, grid.shape[1])

    def theirs(query):
        q, k = F.normalize(query, dim=1), F.normalize(matched, dim=1)
        positive = (q * k).sum(1).reshape(-1, 1)
        negative = flat(q) @ unit(queue).T
        logits = torch.cat([positive, negative], dim=1) / 0.2
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    def ours(query):
        return cac_ext.masked_contrastive_loss(
            flat(query), flat(matched), queue, mask="all", temperature=0.2
        ).mean()

    assert_same(ours, theirs, rows(3, 8, 16))


def test_u2pl(random):
    """Wang et al. 2022, Eq. 4, with all of the class's queue as negatives: queue c holds pixels
    that are unlikely to be c. The mean over a class's anchors, then over classes."""
    rows, _ = random
    num_classes = 3
    prototypes = rows(num_classes, 8)
    queue, queue_of = rows(60, 8), torch.arange(60) % num_classes
    anchor_class = torch.arange(24) % num_classes

    def theirs(anchors):
        total = 0.0
        for c in range(num_classes):
            a = anchors[anchor_class == c]
            keys = torch.cat([prototypes[c][None], queue[queue_of == c]])
            logits = torch.cosine_similarity(a[:, None], keys[None], dim=2) / 0.5
            total = total + F.cross_entropy(logits, torch.zeros(len(a), dtype=torch.long))
        return total / num_classes

    def ours(anchors):
        loss = cac_ext.masked_contrastive_loss(
            anchors, prototypes[anchor_class], queue, anchor_class, queue_of,
            mask="same", temperature=0.5,
        )  # fmt: skip
        of_class = torch.zeros(num_classes, dtype=loss.dtype).index_add(0, anchor_class, loss)
        return (of_class / anchor_class.bincount(minlength=num_classes)).mean()

    assert_same(ours, theirs, rows(24, 8))


def test_clip2scene(random):
    """Chen et al. 2023, semantic NCE: points and pixels in pairs; other pairs of the same label
    are no negatives. Both sides learn."""
    rows, labels = random
    y = labels(30, 4)

    def theirs(points, pixels):
        scores = unit(points) @ unit(pixels).T / 0.07
        kept = (y[:, None] != y) | torch.eye(30, dtype=torch.bool)
        return F.cross_entropy(scores.masked_fill(~kept, -torch.inf), torch.arange(30))

    def ours(points, pixels):
        return cac_ext.masked_contrastive_loss(
            points, pixels, pixels, y, y, temperature=0.07
        ).mean()

    assert_same(ours, theirs, rows(30, 8), rows(30, 8))


def test_clip(random):
    """Radford et al. 2021: two ways, no labels, a learned temperature (exp of the logit scale)."""
    rows, _ = random
    own = torch.arange(20)

    def theirs(images, texts, scale):
        scores = scale.exp() * unit(images) @ unit(texts).T
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

    def ours(images, texts, scale):
        options = {"mask": "all", "exclude": own, "temperature": (-scale).exp()}
        first = cac_ext.masked_contrastive_loss(images, texts, texts, **options)
        second = cac_ext.masked_contrastive_loss(texts, images, images, **options)
        return (first.mean() + second.mean()) / 2

    assert_same(ours, theirs, rows(20, 8), rows(20, 8), torch.tensor(2.3, dtype=torch.float64))
