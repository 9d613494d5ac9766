"""FixMatch: its loss by hand, and where its gradient goes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from crop_steps import expected_cross_entropy, gradients, make_method, phase_of, random_batches

THRESHOLD = "fixmatch.confidence_threshold=0.6"
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_total_is_cross_entropy_plus_weight_times_the_loss_on_mixed_crops(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("fixmatch", THRESHOLD, "fixmatch.weight=0.7")
    batches = random_batches(1)
    labelled, crops, partner = (batches[x] for x in ("labelled", "unlabelled", "partner"))
    network = copy.deepcopy(method.context.network)
    phase = phase_of(method, batches)

    with torch.no_grad():
        others = network.eval()(partner.weak).softmax(dim=1)  # [U, K, S, S]
        network.train()
        logits = network(torch.cat([labelled.images, crops.weak]))
        own = logits[len(labelled.images) :].softmax(dim=1)
        box = crops.cutmix[0]  # [U, S, S]
        images = torch.where(box[:, None], partner.strong[0], crops.strong[0])
        strong = network(images)
    probabilities = torch.where(box[:, None], others, own)
    valid = torch.where(box, partner.valid, crops.valid)
    confidences, labels = probabilities.max(dim=1)
    expected = expected_cross_entropy(strong, labels, confidences, valid, 0.6)
    supervised = F.cross_entropy(logits[: len(labelled.images)], labelled.masks)
    assert 0 < float((confidences >= 0.6).float().mean()) < 1
    assert phase.losses["strong"].item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(phase.losses["supervised"], supervised)
    assert phase.total.item() == pytest.approx(float(supervised) + 0.7 * expected, rel=1e-4)
    share = (own.max(dim=1).values >= 0.6)[crops.valid].float().mean()
    torch.testing.assert_close(phase.metrics["confident_share"], share)


def test_the_loss_trains_the_whole_network_through_strong_crops_alone(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("fixmatch", "fixmatch.confidence_threshold=0")
    batches = random_batches(1)
    crops = batches["unlabelled"]
    for images in (crops.weak, crops.strong, batches["labelled"].images):
        images.requires_grad_()
    phase = phase_of(method, batches)
    phase.losses["strong"].backward()
    reached = gradients(method.student.model.network)
    del reached["encoder.low.0.bias"], reached["encoder.high.0.bias"]  # batch normalization
    del reached["encoder.head.0.bias"]
    assert all(reached.values()), reached
    assert crops.weak.grad is None
    assert crops.strong.grad.abs().sum() > 0
    assert batches["labelled"].images.grad is None


def test_padding_of_the_partner_is_not_learned(seed: int) -> None:
    """A box full of padding leaves the loss without these pixels, in sum and count."""
    torch.manual_seed(seed)
    method = make_method("fixmatch", "fixmatch.confidence_threshold=0")
    batches = random_batches(1)
    crops, partner = batches["unlabelled"], batches["partner"]
    crops.cutmix[:] = False
    crops.cutmix[:, :, :2] = True
    crops.valid[:] = True
    partner.valid[:] = False
    crops.strong.requires_grad_()
    phase = phase_of(method, batches)
    phase.losses["strong"].backward()
    network = method.context.network
    logits = network(torch.where(crops.cutmix[0][:, None], partner.strong[0], crops.strong[0]))
    labels = network(torch.cat([batches["labelled"].images, crops.weak]))[2:].argmax(dim=1)
    outside = F.cross_entropy(logits[:, :, 2:], labels[:, 2:])
    torch.testing.assert_close(phase.losses["strong"], outside)
