"""Pseudo labels, CutMix and the loss that FixMatch and UniMatch share, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import processes
import pytest
import torch
from crop_steps import (
    VERSIONS,
    expected_cross_entropy,
    make_method,
    phase_of,
    random_batches,
    random_crops,
)
from tiny_run import TINY_RUN

from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.stream import Stream
from cac_ext.train.loop import train
from cac_ext.train.methods import MethodContext, build_method
from cac_ext.train.methods.weak_to_strong import (
    PseudoLabels,
    confident_cross_entropy,
    labels_in_evaluation,
    mix_images,
    mix_labels,
    pseudo_labels,
)
from cac_ext.train.networks import build_network
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runtime.distributed import ALONE, process_group

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_loss_is_the_sum_over_confident_pixels_by_the_count_outside_padding() -> None:
    """Four pixels: sure, exactly at the threshold, unsure, and padding."""
    logits = torch.tensor([[2.0, 0.5, -1.0, 9.0], [0.0, 1.0, 1.0, 0.0]])[None, :, None]
    targets = PseudoLabels(
        torch.tensor([[[0, 0, 1, 1]]]),
        torch.tensor([[[0.99, 0.95, 0.949, 1.0]]]),
        torch.tensor([[[True, True, True, False]]]),
    )
    sure = math.log(math.exp(2.0) + 1.0) - 2.0
    at_the_threshold = math.log(math.exp(0.5) + math.exp(1.0)) - 0.5
    loss = confident_cross_entropy(logits, targets, 0.95, ALONE)
    # By 3, the pixels outside padding: not by 4, and not by 2, the confident ones.
    assert loss.item() == pytest.approx((sure + at_the_threshold) / 3)
    assert targets.confident_share(0.95, ALONE).item() == pytest.approx(2 / 3)
    everything = confident_cross_entropy(logits, targets, 0.0, ALONE)
    unsure = math.log(math.exp(-1.0) + math.exp(1.0)) - 1.0
    assert everything.item() == pytest.approx((sure + at_the_threshold + unsure) / 3)


def test_nothing_confident_and_nothing_but_padding_have_the_loss_zero() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    labels, confidences = torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 0.5)
    for valid, threshold in ((True, 0.9), (False, 0.0)):
        targets = PseudoLabels(labels, confidences, torch.full((1, 2, 2), valid))
        loss = confident_cross_entropy(logits, targets, threshold, ALONE)
        assert loss.item() == 0
        loss.backward()
        assert (logits.grad == 0).all()


def test_padding_counts_nowhere(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    valid = torch.rand(2, 4, 4) < 0.5
    valid[0, 0, 0] = True
    targets = pseudo_labels(torch.randn(2, 3, 4, 4), valid)
    loss = confident_cross_entropy(logits, targets, 0.4, ALONE)
    expected = expected_cross_entropy(logits.detach(), *targets, 0.4)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert (logits.grad.abs().sum(dim=1)[~valid] == 0).all()


def test_a_pseudo_label_is_the_most_probable_class_without_gradient() -> None:
    logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 4.0]], requires_grad=True)
    found = pseudo_labels(logits.t()[:, :, None, None], torch.ones(2, 1, 1, dtype=torch.bool))
    assert found.labels.flatten().tolist() == [1, 2]
    expected = [
        math.exp(3) / (math.exp(1) + math.exp(3) + math.exp(2)),
        math.exp(4) / (2 + math.exp(4)),
    ]
    assert found.confidences.flatten().tolist() == pytest.approx(expected)
    assert not found.confidences.requires_grad


def test_image_label_confidence_and_padding_come_from_the_same_box(seed: int) -> None:
    torch.manual_seed(seed)
    crops, partner = random_crops(2, mixed=True), random_crops(2)
    own, others = (
        PseudoLabels(torch.randint(3, x.valid.shape), torch.rand(x.valid.shape), x.valid)
        for x in (crops, partner)
    )
    images, mixed = mix_images(crops, partner), mix_labels(crops, own, others)
    for version, image, row, column in torch.ones_like(crops.cutmix).nonzero().tolist():
        inside = bool(crops.cutmix[version, image, row, column])
        source, labels = (partner, others) if inside else (crops, own)
        place = (image, row, column)
        assert torch.equal(
            images[version * len(crops.weak) + image, :, row, column],
            source.strong[version, image, :, row, column],
        )
        for found, expected in zip(mixed.version(version), labels, strict=True):
            assert found[place] == expected[place]


def test_the_partner_is_predicted_in_evaluation_mode_and_changes_nothing(seed: int) -> None:
    """The weak crops are predicted in training mode, the partner alone is not."""
    torch.manual_seed(seed)
    method = make_method("fixmatch", "network.dropout=0.5")
    network, crops = method.context.network, random_crops(1)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    random = torch.get_rng_state()
    found = labels_in_evaluation(network, crops)
    assert torch.equal(torch.get_rng_state(), random)  # no dropout
    assert all(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    network.eval()
    confidences, labels = network(crops.weak).softmax(dim=1).max(dim=1)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.confidences, confidences)
    assert not found.confidences.requires_grad


@pytest.mark.parametrize("method", ["fixmatch", "unimatch"])
def test_pseudo_labels_have_neither_gradient_nor_dropout(method: str, seed: int) -> None:
    torch.manual_seed(seed)
    # Dropped features would reach the pseudo labels through batch statistics, as in the source.
    built = make_method(method, "network.dropout=0.5", "unimatch.feature_dropout=0")
    batches = random_batches(1)
    images, crops = batches["labelled"].images, batches["unlabelled"]
    first, second = (built.student(images, crops.weak, crops.strong[0]) for _ in range(2))
    assert torch.equal(first.weak, second.weak)
    assert not first.weak.requires_grad
    assert not torch.equal(first.strong, second.strong)  # what learns has dropout
    assert not torch.equal(first.labelled, second.labelled)


def test_labelled_and_weak_crops_are_normalized_as_one_batch(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("fixmatch")
    batches = random_batches(1)
    images, crops = batches["labelled"].images, batches["unlabelled"]
    found = method.student(images, crops.weak, crops.strong[0])
    network = method.context.network
    together = network(torch.cat([images, crops.weak]))
    torch.testing.assert_close(torch.cat([found.labelled, found.weak]), together)
    torch.testing.assert_close(found.strong, network(crops.strong[0]))


@pytest.mark.parametrize("method", VERSIONS)
def test_without_unlabelled_crops_the_loss_is_the_cross_entropy(method: str, seed: int) -> None:
    torch.manual_seed(seed)
    labelled = random_batches(2)["labelled"]
    phase = phase_of(make_method(method), {"labelled": labelled})
    assert list(phase.losses) == ["supervised"]
    assert torch.equal(phase.total, phase.losses["supervised"])


@pytest.mark.parametrize("method", VERSIONS)
@pytest.mark.parametrize("stream", ["labelled", "unlabelled", "partner"])
def test_a_step_that_is_not_finite_is_void_and_padding_takes_no_part(
    method: str, stream: str, seed: int
) -> None:
    torch.manual_seed(seed)
    if method == "mean_teacher" and stream == "partner":
        pytest.skip("it has no partner")
    batches = random_batches(VERSIONS[method])
    batch = batches[stream]
    images = [batch.images] if stream == "labelled" else [batch.weak, *batch.strong]
    built = make_method(method)
    built.context.network.eval()  # batch statistics would spread the value
    built.context.network.train = lambda mode=True: None
    if stream != "labelled":
        for image in images:
            image[0, :, -1, -1] = torch.nan  # padding
        batches["unlabelled"].cutmix[:] = False
        assert phase_of(built, batches) is not None
    images[0][0, :, 0, 0] = torch.nan
    assert phase_of(built, batches) is None


@pytest.mark.parametrize("method", VERSIONS)
def test_the_streams_are_what_the_method_needs(method: str) -> None:
    config = load("synthetic", [*TINY_RUN, f"method.name={method}", f"{_cutmix(method)}"])
    splits = build_datasets(config.data)
    network = build_network(config.network, splits.num_classes)
    streams = build_method(MethodContext(config, splits, network)).streams()
    crops = _stream(streams["unlabelled"], config.seed)
    assert crops[0].strong.shape[0] == VERSIONS[method]
    if method == "mean_teacher":
        assert list(streams) == ["labelled", "unlabelled"]
        assert not crops[0].cutmix.any()
        return
    assert list(streams) == ["labelled", "unlabelled", "partner"]
    assert all(crops[i].cutmix.flatten(1).any(dim=1).all() for i in range(4))
    partner = _stream(streams["partner"], config.seed)
    count = len(splits.unlabelled)
    assert [crops.index(i) for i in range(count)] != [partner.index(i) for i in range(count)]
    assert not partner[0].cutmix.any()
    assert partner[0].strong.shape == crops[0].strong.shape


def _cutmix(method: str) -> str:
    return f"{'fixmatch' if method == 'mean_teacher' else method}.cutmix=1"


def _stream(request, seed: int) -> Stream:
    return Stream(request.images, request.augment, seed, request.name)


def _train(overrides: list[str], folder: Path) -> None:
    with process_group("cpu"):
        train(load("synthetic", overrides), folder, progress=False)


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("method", VERSIONS)
def test_two_processes_train_as_one_does(method: str, tmp_path: Path, seed: int) -> None:
    """Unequal padding and unequal shares of confident pixels make no difference."""
    random = ["network.dropout=0", "unimatch.feature_dropout=0"]
    sure = ["fixmatch.confidence_threshold=0.16", "unimatch.confidence_threshold=0.16"]
    overrides = [*TINY_RUN, f"method.name={method}", f"seed={seed}", *random, *sure]
    overrides += ["augment.crop_size=57", "augment.unlabelled_scale=[0.5,1.5]"]
    _train(overrides, tmp_path / "one")
    processes.run_together(2, _train, overrides, tmp_path / "two")
    one, two = (
        read_checkpoint(tmp_path / name / "checkpoint.pt")["modules"]["student"]
        for name in ("one", "two")
    )
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)
