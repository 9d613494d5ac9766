"""UniMatch: two strong crops and perturbed features, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from crop_steps import (
    CLASSES,
    IMAGES,
    expected_cross_entropy,
    gradients,
    make_method,
    phase_of,
    random_batches,
)

from cac_ext.train.methods.projecting_network import ProjectingNetwork
from cac_ext.train.methods.student import Student
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.projector import NoProjector

WEIGHTS = ["unimatch.strong_weight=0.3", "unimatch.feature_weight=0.6"]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_total_is_the_weighted_sum_of_four_cross_entropies(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("unimatch", "unimatch.confidence_threshold=0.6", *WEIGHTS)
    batches = random_batches(2)
    labelled, crops, partner = (batches[x] for x in ("labelled", "unlabelled", "partner"))
    network = copy.deepcopy(method.context.network)
    phase = phase_of(method, batches)

    encoder, count = network.encoder, len(labelled.images)
    with torch.no_grad():
        others = network.eval()(partner.weak).softmax(dim=1)
        network.train()
        # The maps that the step has decoded first, with its own draw of dropped channels.
        generator = torch.get_rng_state()
        maps = encoder.maps(torch.cat([labelled.images, crops.weak]))
        torch.manual_seed(seed)
        again = make_method("unimatch", *WEIGHTS)  # the same draws in the same order
        assert torch.equal(again.context.network.classifier.weight, network.classifier.weight)
        random_batches(2)
        dropped = {name: F.dropout2d(values[count:], 0.5) for name, values in maps.items()}
        assert torch.equal(torch.get_rng_state(), generator)
        features = encoder.decode(
            {name: torch.cat([values, dropped[name]]) for name, values in maps.items()}
        )
        of_labelled, of_weak, of_perturbed = network.classifier(features).split(IMAGES)
        strong = network(
            torch.cat(
                [
                    torch.where(crops.cutmix[v][:, None], partner.strong[v], crops.strong[v])
                    for v in range(2)
                ]
            )
        ).split(IMAGES)
    own = of_weak.softmax(dim=1)
    confidences, labels = own.max(dim=1)
    supervised = float(F.cross_entropy(of_labelled, labelled.masks))
    on_features = expected_cross_entropy(of_perturbed, labels, confidences, crops.valid, 0.6)
    on_strong = []
    for version in range(2):
        box = crops.cutmix[version]
        confidences, labels = torch.where(box[:, None], others, own).max(dim=1)
        valid = torch.where(box, partner.valid, crops.valid)
        on_strong.append(expected_cross_entropy(strong[version], labels, confidences, valid, 0.6))
    found = {name: loss.item() for name, loss in phase.losses.items()}
    assert found == {
        "supervised": pytest.approx(supervised, rel=1e-4),
        "features": pytest.approx(on_features, rel=1e-4),
        "strong1": pytest.approx(on_strong[0], rel=1e-4),
        "strong2": pytest.approx(on_strong[1], rel=1e-4),
    }
    expected = supervised + 0.6 * on_features + 0.3 * sum(on_strong)
    assert phase.total.item() == pytest.approx(expected, rel=1e-4)


def test_the_weights_are_those_of_the_source_relative_to_the_supervised_loss() -> None:
    config = make_method("unimatch").context.config.unimatch
    assert (config.strong_weight, config.feature_weight) == (0.25, 0.5)
    assert (config.confidence_threshold, config.feature_dropout) == (0.95, 0.5)


def test_channels_of_each_map_are_dropped_for_weak_crops_alone(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("unimatch", "unimatch.feature_dropout=0.5")
    batches = random_batches(2)
    images, weak = batches["labelled"].images, batches["unlabelled"].weak
    encoder = method.context.network.encoder
    clean = encoder.maps(torch.cat([images, weak]))
    method.student(images, weak)
    shares = []
    for name, values in clean.items():
        found = encoder.decoded[name]
        torch.testing.assert_close(found[: 2 * IMAGES], values)
        perturbed, source = found[2 * IMAGES :], values[IMAGES:]
        for image in range(IMAGES):
            for channel in range(source.shape[1]):
                kept = bool(perturbed[image, channel].abs().sum() > 0)
                expected = 2 * source[image, channel] if kept else 0 * source[image, channel]
                torch.testing.assert_close(perturbed[image, channel], expected)
                shares.append(kept)
    assert 0 < sum(shares) < len(shares)


def test_a_network_in_one_part_loses_channels_of_its_features(seed: int) -> None:
    torch.manual_seed(seed)
    encoder = torch.nn.Conv2d(3, 16, 1)
    encoder.stride, encoder.out_channels = 1, 16
    encoder.forward = lambda images: F.conv2d(images, encoder.weight, encoder.bias)
    network = SegmentationNetwork(encoder, torch.nn.Conv2d(16, CLASSES, 1), dropout=0.0)
    student = Student(ProjectingNetwork(network, NoProjector()), feature_dropout=0.5)
    images, weak = torch.randn(2, 2, 3, 5, 5)
    torch.manual_seed(seed)
    found = student(images, weak)
    torch.manual_seed(seed)
    dropped = F.dropout2d(network.features(torch.cat([images, weak]))[2:], 0.5)
    torch.testing.assert_close(found.perturbed, network.classifier(dropped))
    torch.testing.assert_close(found.weak, network(weak))
    torch.testing.assert_close(found.labelled, network(images))


@pytest.mark.parametrize("term", ["features", "strong1", "strong2"])
def test_each_term_trains_the_whole_network_and_no_pseudo_label(term: str, seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("unimatch", "unimatch.confidence_threshold=0")
    batches = random_batches(2)
    crops = batches["unlabelled"]
    crops.weak.requires_grad_()
    crops.strong.requires_grad_()
    phase_of(method, batches).losses[term].backward()
    reached = gradients(method.student.model.network)
    biases = [name for name in reached if name.startswith("encoder.") and name.endswith("0.bias")]
    assert all(found for name, found in reached.items() if name not in biases), reached
    if term == "features":  # the pseudo label of the weak crop has no gradient, the crop has
        assert crops.weak.grad.abs().sum() > 0
        assert crops.strong.grad is None
    else:
        assert crops.weak.grad is None
        assert crops.strong.grad[int(term[-1]) - 1].abs().sum() > 0
