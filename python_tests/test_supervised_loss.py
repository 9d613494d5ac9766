"""Class weights, hard pixels and Dice, against formulas written with loops in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import processes
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext.train.config import SupervisedConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods.supervised_loss import SupervisedLoss, cross_entropy
from cac_ext.train.runtime.distributed import process_group

CLASSES, IGNORED = 4, 255
WEIGHTS = [0.5, 2.0, 0.0, 1.5]


def make_loss(processes_of_run=None, **settings) -> SupervisedLoss:
    splits = SimpleNamespace(num_classes=CLASSES, ignore_index=IGNORED, class_names=list("abcd"))
    config = SupervisedConfig(**settings)
    return SupervisedLoss(config, splits, *([processes_of_run] if processes_of_run else []))


def make_case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, CLASSES, 7, 5, generator=generator, dtype=dtype)
    masks = torch.randint(CLASSES - 1, (2, 7, 5), generator=generator)  # the last one is absent
    masks[torch.rand(2, 7, 5, generator=generator) < 0.3] = IGNORED
    return logits, masks


def pixels_of(logits: Tensor, masks: Tensor) -> list[tuple[Tensor, int]]:
    """Logits ``[K]`` and class of each pixel that is not ignored."""
    flat = logits.permute(0, 2, 3, 1).reshape(-1, CLASSES)
    return [(x, int(y)) for x, y in zip(flat, masks.flatten(), strict=True) if y != IGNORED]


def expected_cross_entropy(
    logits: Tensor, masks: Tensor, weights: list[float], threshold: float = 1.0, share: float = 0.0
) -> float:
    pixels = [(-x.log_softmax(0)[y].item(), y) for x, y in pixels_of(logits, masks)]
    pixels.sort(reverse=True)
    least = math.ceil(share * masks.numel())
    chosen = [
        (loss, y) for i, (loss, y) in enumerate(pixels) if i < least or math.exp(-loss) <= threshold
    ]
    return sum(weights[y] * loss for loss, y in chosen) / sum(weights[y] for _, y in chosen)


def expected_dice(logits: Tensor, masks: Tensor) -> float:
    pixels = pixels_of(logits, masks)
    scores = []
    for k in {y for _, y in pixels}:
        p = [x.softmax(0)[k].item() for x, _ in pixels]
        t = [float(y == k) for _, y in pixels]
        scores.append(1 - 2 * sum(a * b for a, b in zip(p, t, strict=True)) / sum(p + t))
    return sum(scores) / len(scores)


def test_by_default_it_is_the_cross_entropy_bit_for_bit(seed: int) -> None:
    logits, masks = make_case(seed, torch.float32)
    assert torch.equal(make_loss()(logits, masks), cross_entropy(logits, masks, IGNORED))


def test_classes_have_their_weights_as_in_torch(seed: int) -> None:
    logits, masks = make_case(seed)
    found = make_loss(class_weights=WEIGHTS)(logits, masks)
    expected = F.cross_entropy(
        logits, masks, torch.tensor(WEIGHTS, dtype=torch.float64), ignore_index=IGNORED
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("threshold", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 1.5]])
def test_only_hard_pixels_count_and_no_fewer_than_the_share(
    threshold: float, share: float, weights: list[float] | None, seed: int
) -> None:
    logits, masks = make_case(seed)
    logits[0, :, 0, 0], masks[0, 0, 0] = torch.tensor([0.0, 9.0, 0.0, 0.0]), 0  # a hard one
    loss = make_loss(class_weights=weights, ohem_threshold=threshold, ohem_share=share)
    expected = expected_cross_entropy(logits, masks, weights or [1.0] * CLASSES, threshold, share)
    assert loss(logits, masks).item() == pytest.approx(expected, rel=1e-6)


def test_an_easy_pixel_has_no_gradient(seed: int) -> None:
    logits, masks = make_case(seed)
    logits.requires_grad_()
    make_loss(ohem_threshold=0.3, ohem_share=0.0)(logits, masks).backward()
    true = logits.softmax(dim=1).gather(1, masks.where(masks != IGNORED, 0)[:, None])[:, 0]
    learned = (logits.grad != 0).any(dim=1)
    assert torch.equal(learned, (true <= 0.3) & (masks != IGNORED))


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_dice_is_the_mean_over_the_classes_in_the_masks(weight: float, seed: int) -> None:
    logits, masks = make_case(seed)
    found = make_loss(dice_weight=weight)(logits, masks).item()
    expected = cross_entropy(logits, masks, IGNORED).item() + weight * expected_dice(logits, masks)
    assert found == pytest.approx(expected, rel=1e-5)  # Dice is computed in float32


ALL = {"class_weights": WEIGHTS, "ohem_threshold": 0.4, "dice_weight": 0.7}


def test_without_a_labelled_pixel_the_loss_and_its_gradient_are_zero(seed: int) -> None:
    logits, masks = make_case(seed)
    logits.requires_grad_()
    loss = make_loss(**ALL)(logits, torch.full_like(masks, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    only_weightless = make_loss(class_weights=WEIGHTS)(logits, torch.full_like(masks, 2))
    assert only_weightless.item() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_is_not_passed_over(value: float, seed: int) -> None:
    logits, masks = make_case(seed)
    masks[0, 0, 0], logits[0, 0, 0, 0] = 1, value
    for settings in (ALL, {"ohem_threshold": 0.1, "ohem_share": 0.0}, {"dice_weight": 1.0}):
        assert not make_loss(**settings)(logits, masks).isfinite()


def test_the_mean_over_processes_is_the_loss_of_all_their_pixels(seed: int) -> None:
    """The processes have different numbers of labelled pixels and different classes."""
    settings = {"class_weights": WEIGHTS, "dice_weight": 0.7}
    value, gradient = _value_and_gradient(seed, settings)
    results = processes.run_together(2, _value_and_gradient, seed, settings)
    assert sum(v for v, _ in results) / 2 == pytest.approx(value, rel=1e-5)
    # DDP would average the gradients of a weight; each image has its own logits here.
    found = torch.cat([torch.tensor(g) for _, g in results]) / 2
    torch.testing.assert_close(found, torch.tensor(gradient), rtol=1e-4, atol=1e-6)


def _value_and_gradient(seed: int, settings: dict) -> tuple[float, list]:
    logits, masks = make_case(seed, torch.float32)
    masks[0, :4] = IGNORED
    masks[1, masks[1] == 0] = 1
    with process_group("cpu") as group:
        logits = logits.chunk(group.size)[group.rank].requires_grad_()
        loss = make_loss(group, **settings)(logits, masks.chunk(group.size)[group.rank])
        loss.backward()
    return loss.item(), logits.grad.tolist()


def test_a_weight_is_needed_for_each_class() -> None:
    with pytest.raises(ConfigError, match=r"class_weights has 2 numbers.*4 classes: a, b, c, d"):
        make_loss(class_weights=[1.0, 2.0])
