"""One training step: which weights get a gradient, and the effect of each switch of the method."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from method_steps import balance_classes, make_cac, random_labelled, random_pairs, step_of
from torch import nn

from cac_ext.train.config import load
from cac_ext.train.experiments.methods import METHODS, method_overrides
from cac_ext.train.methods.consistency import Overlap, consistency_loss
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.projector import Projector

CLASSES, SIZE, IMAGES = 5, 33, 2
SMALL = ["network.width=16", f"augment.crop_size={SIZE}", "method.confidence_threshold=0.05"]


def make_step(seed: int, *overrides: str):
    torch.manual_seed(seed)
    config = load("synthetic", [*SMALL, *overrides, f"seed={seed}"])
    method = make_cac(config, CLASSES)
    side = method.model.network.pooled_grid.size(SIZE)
    overlap = torch.arange(0, IMAGES * side * side, 2)
    valid = torch.ones(IMAGES, side, side, dtype=torch.bool)
    masks = torch.randint(0, CLASSES, (2, IMAGES, SIZE, SIZE))  # for image-level labels only
    pairs = random_pairs(IMAGES, SIZE, (overlap, overlap), (valid, valid), masks=tuple(masks))
    return method, random_labelled(IMAGES, SIZE, CLASSES), pairs


def test_the_unlabelled_branch_trains_encoder_and_projector_but_not_the_classifier(
    seed: int,
) -> None:
    method, labelled, pairs = make_step(seed)
    for (
        module
    ) in method.model.modules():  # residual blocks that start as the identity pass no gradient
        if isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
    balance_classes(method.model, pairs)
    losses = step_of(method, labelled, pairs)
    losses.losses["unsupervised"].backward()
    assert all(p.grad is None for p in method.model.network.classifier.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.model.projector.parameters())
    assert all(
        p.grad.abs().sum() > 0 for p in method.model.network.encoder.parameters() if p.ndim > 1
    )


def test_a_negative_is_a_projection_with_its_pseudo_label_and_no_gradient(seed: int) -> None:
    method, labelled, pairs = make_step(seed, "method.selected_num=7")
    balance_classes(method.model, pairs)
    step_of(method, labelled, pairs)
    state = method.contrast.bank.state_dict()
    (features,), (labels,) = state["features"], state["labels"]  # [M, C], [M]
    assert len(features) == len(labels) == 14
    assert not features.requires_grad
    projections, _, pseudo_labels, _ = method.model.view_outputs(
        torch.cat([pairs.view1.images, pairs.view2.images])
    )  # [2B, C, h, w], [2B, h, w]
    similarity = features @ projections.permute(1, 0, 2, 3).flatten(1)  # [M, 2B h w]
    same_label = labels[:, None] == pseudo_labels.flatten()[None, :]
    assert ((similarity > 1 - 1e-5) & same_label).any(dim=1).all()


def test_the_total_is_cross_entropy_plus_lambda_times_consistency(seed: int) -> None:
    method, labelled, pairs = make_step(seed, "method.unsupervised_weight=0.3", "network.dropout=0")
    losses = step_of(method, labelled, pairs)
    torch.testing.assert_close(
        losses.total, losses.losses["supervised"] + 0.3 * losses.losses["unsupervised"]
    )
    expected = F.cross_entropy(method.model.network(labelled.images), labelled.masks)
    torch.testing.assert_close(losses.losses["supervised"], expected)


def test_a_batch_of_ignored_pixels_has_the_loss_zero(seed: int) -> None:
    method, labelled, _ = make_step(seed)
    labelled.masks.fill_(255)
    losses = step_of(method, labelled)
    losses.total.backward()
    assert losses.total.item() == 0


def test_pseudo_labels_and_confidences_are_free_of_dropout_noise(seed: int) -> None:
    method, _, pairs = make_step(seed, "network.dropout=0.5")
    first, second = (
        method.model.view_outputs(pairs.view1.images),
        method.model.view_outputs(pairs.view1.images),
    )
    for one, other in zip(first[:3], second[:3], strict=True):
        assert torch.equal(one, other)
    assert not first[1].requires_grad
    noisy = method.model.network(pairs.view1.images), method.model.network(pairs.view1.images)
    assert not torch.equal(*noisy)  # the supervised branch has dropout


def test_a_step_is_the_same_from_the_same_seed_and_iteration(seed: int) -> None:
    values = []
    for iteration in (0, 0, 1):
        method, labelled, pairs = make_step(seed, "method.selected_num=5", "network.dropout=0")
        losses = step_of(method, labelled, pairs, iteration)
        values.append(losses.losses["unsupervised"].item())
    assert values[0] == values[1] != values[2]  # other negatives at another iteration


@pytest.mark.parametrize(
    "method", [x for x in METHODS if x != "sup_only" and "method.name" not in str(METHODS[x])]
)
@pytest.mark.parametrize("normalizer", ["overlap", "active"])
def test_every_method_takes_a_step(method: str, normalizer: str, seed: int) -> None:
    method, labelled, pairs = make_step(
        seed, *method_overrides(method), f"method.normalizer={normalizer}"
    )
    balance_classes(method.model, pairs)
    losses = step_of(method, labelled, pairs)
    losses.losses["unsupervised"].backward(retain_graph=True)
    encoder = method.model.network.encoder
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in method.model.parameters() if p.grad is not None)
    assert losses.losses["unsupervised"] > 0
    assert 0 < losses.scalars()["active_share"] <= 1
    assert losses.metrics["negatives"] == 2 * pairs.view1.valid.numel()


def make_overlap(seed: int, pixels: int = 40):
    torch.manual_seed(seed)
    views = [
        Overlap(
            F.normalize(torch.randn(pixels, 8), dim=1),
            torch.rand(pixels),
            torch.randint(0, CLASSES, (pixels,)),
        )
        for _ in range(2)
    ]
    image_index = torch.arange(pixels) // (pixels // 2 + 5)  # images with unequal overlaps
    negatives = F.normalize(torch.randn(60, 8), dim=1), torch.randint(0, CLASSES, (60,))
    return views, image_index, negatives


def weights_of(image_index: torch.Tensor) -> torch.Tensor:
    """``1 / (B N_b)`` of two images."""
    return 1.0 / (2 * image_index.bincount(minlength=2)[image_index])


@pytest.mark.parametrize("directional", [True, False])
@pytest.mark.parametrize("sampling", [True, False])
@pytest.mark.parametrize("filtering", [True, False])
@pytest.mark.parametrize("normalizer", ["overlap", "active"])
def test_the_loss_is_the_paper_s_sum_written_out(
    directional: bool, sampling: bool, filtering: bool, normalizer: str, seed: int
) -> None:
    """Equations 1 to 8 pixel by pixel."""
    views, image_index, (negatives, labels) = make_overlap(seed)
    config = load(
        "synthetic",
        [
            f"method.directional={directional}",
            f"method.negative_sampling={sampling}",
            f"method.positive_filtering={filtering}",
            f"method.normalizer={normalizer}",
            "method.confidence_threshold=0.6",
        ],
    ).method
    expected = 0.0
    for anchor, positive in (views, views[::-1]):
        terms = []
        for i in range(len(image_index)):
            if directional and not anchor.confidences[i] < positive.confidences[i]:
                continue
            if filtering and not positive.confidences[i] > 0.6:
                continue
            counted = labels != anchor.pseudo_labels[i] if sampling else labels >= 0
            r = (anchor.projections[i] @ torch.cat([positive.projections[i : i + 1], negatives]).T
                 / config.temperature).double().exp()  # fmt: skip
            loss = -(r[0] / (r[0] + r[1:][counted].sum())).log()
            terms.append((loss, int((image_index == image_index[i]).sum())))
        if normalizer == "overlap":
            expected += sum(loss / (2 * overlap) for loss, overlap in terms)
        else:
            expected += sum(loss for loss, _ in terms) / max(len(terms), 1)
    actual = consistency_loss(config, *views, weights_of(image_index), negatives, labels)[0]
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


def test_an_empty_overlap_has_the_loss_zero() -> None:
    empty = Overlap(
        torch.zeros(0, 8, requires_grad=True),
        torch.zeros(0),
        torch.zeros(0, dtype=torch.int64),
    )
    _, _, (negatives, labels) = make_overlap(0)
    for method in ("cac", "l2", "contrastive"):
        config = load("synthetic", list(method_overrides(method))).method
        index = torch.zeros(0, dtype=torch.int64)
        loss = consistency_loss(config, empty, empty, weights_of(index), negatives, labels)[0]
        assert loss.item() == 0


def test_projections_have_unit_length(seed: int) -> None:
    torch.manual_seed(seed)
    projections = Projector(16, 32)(torch.randn(2, 16, 5, 7))
    assert projections.shape == (2, 32, 5, 7)
    torch.testing.assert_close(projections.norm(dim=1), torch.ones(2, 5, 7))


def test_a_network_that_breaks_the_contract_is_refused() -> None:
    encoder = nn.Conv2d(3, 8, 1)
    with pytest.raises(TypeError, match=r"encoder\.stride must be an int"):
        SegmentationNetwork(encoder, nn.Conv2d(8, 2, 1))
    encoder.stride = 1
    noisy = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(8, 2, 1))
    with pytest.raises(ValueError, match="dropout"):
        SegmentationNetwork(encoder, noisy)


def test_a_void_step_keeps_no_graph(seed: int) -> None:
    method, labelled, pairs = make_step(seed)
    labelled.images[0, 0, 0, 0] = torch.nan
    before = _graph_outputs()  # of other tests in this process
    assert step_of(method, labelled, pairs) is None
    known = {id(x) for x in before}
    assert not [x for x in _graph_outputs() if id(x) not in known]


def _graph_outputs() -> list[torch.Tensor]:
    gc.collect()
    return [x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.grad_fn is not None]
