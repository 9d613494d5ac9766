"""The seven perturbations of Cross-Consistency Training, its decoders and their grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from cac_ext.train.methods.cct.decoders import (
    build_decoder,
    doublings_of,
    interpolate_to_cells,
    pixels_of_cells,
)
from cac_ext.train.methods.cct.objects import bounding_boxes, label_regions, random_rectangles
from cac_ext.train.methods.cct.perturbations import (
    Guide,
    add_noise,
    adversarial_move,
    cut_objects,
    drop_active_positions,
    mask_context,
    mask_objects,
    move_adversarially,
)
from cac_ext.train.networks.grid import FeatureGrid

CHANNELS, CLASSES = 6, 3


def guide_of(foreground: Tensor, perimeter: float = 0.0, doublings: int = 0) -> Guide:
    batch, h, w = foreground.shape
    cells = (batch, h << doublings, w << doublings)
    return Guide(
        torch.zeros(batch, CLASSES, *cells[1:]),
        torch.ones(cells, dtype=torch.bool),
        torch.ones(batch, 1, h, w, dtype=torch.bool),
        foreground[:, None],
        bounding_boxes(foreground, perimeter),
    )


def test_noise_scales_each_feature_alike_in_all_images(seed: int) -> None:
    torch.manual_seed(seed)
    features = torch.rand(3, CHANNELS, 40, 40) + 1
    noise = add_noise(features, 0.3) / features - 1
    torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=0, atol=1e-5)
    assert noise.abs().max() < 0.3 + 1e-5
    assert noise.max() > 0.29 > -0.29 > noise.min()
    assert abs(noise.mean()) < 0.02


def test_the_most_active_positions_are_dropped_by_image(seed: int) -> None:
    """A position stays below a share, from 0.7 to 0.9, of its own image's largest mean."""
    torch.manual_seed(seed)
    means = torch.tensor([[1.0, 0.6, 0.95, 0.2], [10.0, 6.0, 9.5, 100.0]])
    features = means[:, None, None, :] + torch.tensor([0.5, -0.5])[:, None, None]
    valid = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    valid[1, 0, 0, 3] = False  # padding: its activation is no threshold
    kept = drop_active_positions(features, valid) != 0
    assert kept[0, :, 0].all(dim=0).tolist() == [False, True, False, True]
    assert kept[1, :, 0, :3].all(dim=0).tolist() == [False, True, False]
    torch.testing.assert_close(
        drop_active_positions(features, valid)[0, :, 0, 1], features[0, :, 0, 1]
    )
    steps = torch.linspace(0, 1, 2001)[None, None, None]
    last = [float(steps[drop_active_positions(steps, steps >= 0) != 0].max()) for _ in range(200)]
    assert 0.699 < min(last) < 0.72 < 0.88 < max(last) < 0.901


def test_context_and_objects_are_masked(seed: int) -> None:
    torch.manual_seed(seed)
    features, foreground = torch.randn(2, CHANNELS, 5, 5), torch.rand(2, 5, 5) < 0.5
    guide = guide_of(foreground)
    objects, context = mask_context(features, guide), mask_objects(features, guide)
    torch.testing.assert_close(objects + context, features)
    assert torch.equal((objects != 0).all(dim=1), foreground)
    assert torch.equal((context != 0).all(dim=1), ~foreground)


def shapes(size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Foregrounds that are hard to label: noise at all densities, snakes, spirals, diagonals."""
    masks = [rng.random((size, size)) < p for p in (0, 0.1, 0.3, 0.4, 0.45, 0.5, 0.6, 0.8, 1)]
    snake = np.zeros((size, size), bool)
    snake[::2] = True
    snake[1::4, -1] = snake[3::4, 0] = True
    spiral = np.zeros((size, size), bool)
    for inner in range(0, size // 2, 2):
        outer = size - 1 - inner
        spiral[inner, max(inner - 2, 0) : outer + 1] = True
        spiral[inner : outer + 1, outer] = True
        spiral[outer, inner : outer + 1] = True
        spiral[inner + 2 : outer + 1, inner] = True
    cross = np.eye(size, dtype=bool) | np.eye(size, dtype=bool)[::-1]
    comb = np.zeros((size, size), bool)
    comb[:, ::2] = comb[0] = True
    turned = [np.rot90(mask, k) for mask in (snake, spiral, comb) for k in range(4)]
    return [*masks, cross, *turned]


@pytest.mark.parametrize("size", [1, 2, 9, 41, 97])
def test_regions_are_those_of_scipy(size: int, rng: np.random.Generator) -> None:
    """Diagonal neighbours touch, as in the contours of the authors' code."""
    masks = shapes(size, rng)
    ours = label_regions(torch.from_numpy(np.stack(masks))).view(-1, size, size).numpy()
    for mask, names in zip(masks, ours, strict=True):
        theirs, count = ndimage.label(mask, np.ones((3, 3)))
        pairs = set(zip(names[mask].tolist(), theirs[mask].tolist(), strict=True))
        assert len(pairs) == count == len(set(names[mask].tolist()))
        own = np.arange(size * size).reshape(size, size)
        assert (names[~mask] == own[~mask]).all()


def test_boxes_are_those_of_scipy(rng: np.random.Generator) -> None:
    masks = np.stack([ndimage.binary_dilation(rng.random((30, 40)) < 0.02, iterations=2)] * 2)
    masks[1] = np.rot90(masks[1], 2)
    boxes = bounding_boxes(torch.from_numpy(masks), perimeter=22)
    for image, mask in enumerate(masks):
        found = boxes.height[image] > 0
        ours = {
            tuple(values) for values in torch.stack([x[image][found] for x in boxes], 1).tolist()
        }
        theirs = set()
        for rows, columns in ndimage.find_objects(ndimage.label(mask, np.ones((3, 3)))[0]):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            if 2 * (height + width) > 22:
                theirs.add((rows.start, columns.start, height, width))
        assert ours == theirs


def test_a_rectangle_of_the_share_is_cut_from_each_object(seed: int) -> None:
    torch.manual_seed(seed)
    foreground = torch.zeros(1, 30, 40, dtype=torch.bool)
    foreground[0, 5:15, 2:22] = True  # 10 x 20: a rectangle of 4 x 8
    foreground[0, 8:10, 6:8] = False  # a hole is part of the box
    foreground[0, 20:30, 30:40] = True  # at the border: 4 x 4
    foreground[0, 28, 2] = True  # too small
    guide = guide_of(foreground, perimeter=4)
    features = torch.ones(1, CHANNELS, 30, 40)
    often = torch.zeros(30, 40)
    for _ in range(300):
        cut = cut_objects(features, guide, 0.4)
        assert torch.equal(cut, cut[:, :1].expand_as(cut))
        lost = cut[0, 0] == 0
        first, second = lost[5:15, 2:22], lost[20:30, 30:40]
        assert lost.sum() == first.sum() + second.sum() == 32 + 16
        rows, columns = first.any(dim=1).sum(), first.any(dim=0).sum()
        assert (rows, columns) == (4, 8)
        often += lost
    for box in (often[5:15, 2:22], often[20:30, 30:40]):  # every row and column in its turn
        assert (box.sum(dim=0) > 0).all()
        assert (box.sum(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("side", "chances"),
    [(1, [2 / 3]), (2, [5 / 12, 5 / 12]), (3, [5 / 18, 2 / 3, 5 / 18])],
)
def test_a_feature_is_cut_if_its_center_is_in_the_rectangle(
    side: int, chances: list[float], seed: int
) -> None:
    """Rounded down to whole features, nothing would be cut from an object of two.

    The first center of two lies at 1/2, and the rectangle from x to x + 0.8, with x from 0 to 1.2:
    the center is inside for x from 0 to 0.5.
    """
    torch.manual_seed(seed)
    foreground = torch.zeros(4000, 5, 5, dtype=torch.bool)
    foreground[:, 1 : 1 + side, 2 : 2 + side] = True
    cut = random_rectangles(bounding_boxes(foreground, 0), 5, 5, 0.4)
    assert not (cut & ~foreground).any()
    expected = torch.tensor(chances)[:, None] * torch.tensor(chances)
    shares = cut[:, 1 : 1 + side, 2 : 2 + side].float().mean(dim=0)
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.04)
    assert not random_rectangles(bounding_boxes(foreground, 0), 5, 5, 0.0).any()
    whole = random_rectangles(bounding_boxes(foreground, 0), 5, 5, 1.0)
    assert torch.equal(whole, foreground)


def divergence(decode, features: Tensor, move: Tensor) -> Tensor:
    """KL of the moved prediction from the one at ``features``, by image, ``[B]``."""
    clean, moved = decode(features), decode(features + move)
    terms = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="none")
    return terms.flatten(1).sum(dim=1)


def test_the_adversarial_move_has_its_length_in_each_image(seed: int) -> None:
    """Not at each position: the authors' view of ``[B, -1, 1, 1]`` covers channels and places."""
    torch.manual_seed(seed)
    decode = build_decoder(CHANNELS, CLASSES, 2)
    features = torch.randn(3, CHANNELS, 7, 7) * torch.tensor([0.1, 1, 50])[:, None, None, None]
    move = adversarial_move(features, torch.ones(3, 28, 28, dtype=torch.bool), decode, 2.0)
    torch.testing.assert_close(move.flatten(1).norm(dim=1), torch.full((3,), 2.0))
    assert not move.requires_grad


def test_the_adversarial_move_changes_the_prediction_more_than_random_ones(seed: int) -> None:
    """A step that is lost in rounding (1e-6 of the authors) would give a random one."""
    torch.manual_seed(seed)
    decode = build_decoder(64, 5, 2)
    features = torch.randn(2, 64, 20, 20).relu()
    counted = torch.ones(2, 80, 80, dtype=torch.bool)
    move = adversarial_move(features, counted, decode, 2.0)
    with torch.no_grad():
        found = divergence(decode, features, move)
        for _ in range(20):
            other = 2.0 * F.normalize(torch.randn(2, 64 * 400), dim=1).view_as(features)
            assert (found > 3 * divergence(decode, features, other)).all()


def test_the_adversarial_move_is_the_exact_derivative_s(seed: int) -> None:
    """The second derivative of the divergence times the random start, in float64.

    A ReLU that switches between the two points of the difference bends single moves.
    """
    cosines = torch.cat([_cosines_with_the_exact_move(seed + draw) for draw in range(4)])  # [8]
    assert (cosines > 0.99).sum() >= 6, cosines
    assert (cosines > 0.7).all(), cosines


def _cosines_with_the_exact_move(seed: int) -> Tensor:
    """Of two images."""
    torch.manual_seed(seed)
    decode = build_decoder(CHANNELS, CLASSES, 1)
    features = torch.randn(2, CHANNELS, 6, 6)
    counted = torch.rand(2, 12, 12) < 0.8
    torch.manual_seed(seed + 1)
    move = adversarial_move(features, counted, decode, 1.0)
    torch.manual_seed(seed + 1)
    start = torch.rand_like(features).sub(0.5).double()
    decode.double()
    place = features.double()
    with torch.no_grad():
        clean = decode(place).softmax(dim=1)

    def total(offset: Tensor) -> Tensor:
        moved = decode(place + offset).log_softmax(dim=1)
        return (F.kl_div(moved, clean, reduction="none").sum(dim=1) * counted).sum()

    scaled = start / start.flatten(1).norm(dim=1).view(-1, 1, 1, 1)  # the images have one length
    _, product = torch.autograd.functional.hvp(total, torch.zeros_like(place), scaled)
    return F.cosine_similarity(move.double().flatten(1), product.flatten(1))


def test_features_on_padding_do_not_move(seed: int) -> None:
    torch.manual_seed(seed)
    decode = build_decoder(CHANNELS, CLASSES, 1)
    counted = torch.ones(1, 12, 12, dtype=torch.bool)
    counted[..., 8:] = False
    move = adversarial_move(torch.randn(1, CHANNELS, 6, 6), counted, decode, 1.0)
    assert (move[..., 4:] == 0).all()
    assert (move[..., :4] != 0).any()


def test_the_adversarial_move_is_computed_in_float32_and_passes_no_gradient(seed: int) -> None:
    torch.manual_seed(seed)
    decode = build_decoder(CHANNELS, CLASSES, 2)
    features = torch.randn(2, CHANNELS, 5, 5, requires_grad=True)
    guide = guide_of(torch.zeros(2, 5, 5, dtype=torch.bool), doublings=2)
    moves = []
    for enabled in (False, True):
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            moves.append(move_adversarially(features, guide, decode, 2.0))
    assert torch.equal(*moves)
    moves[0].sum().backward()
    assert torch.equal(features.grad, torch.ones_like(features))
    assert all(parameter.grad is None for parameter in decode.parameters())


def test_constant_features_have_no_adversarial_move_that_is_not_finite() -> None:
    decode = build_decoder(CHANNELS, CLASSES, 1)
    counted = torch.ones(1, 8, 8, dtype=torch.bool)
    move = adversarial_move(torch.zeros(1, CHANNELS, 4, 4), counted, decode, 2.0)
    assert move.isfinite().all()


@pytest.mark.parametrize(
    ("stride", "doublings"), [(1, 0), (2, 1), (4, 2), (8, 3), (14, 3), (16, 4)]
)
def test_a_decoder_starts_without_a_checkerboard(stride: int, doublings: int, seed: int) -> None:
    torch.manual_seed(seed)
    assert doublings_of(FeatureGrid(stride)) == doublings
    decode = build_decoder(CHANNELS, CLASSES, doublings)
    with torch.no_grad():
        logits = decode(torch.randn(2, CHANNELS, 3, 4))
    factor = 2**doublings
    assert logits.shape == (2, CLASSES, 3 * factor, 4 * factor)
    corners = logits[..., ::factor, ::factor]
    repeated = corners.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    torch.testing.assert_close(logits, repeated)
    for layer in list(decode)[1:]:
        assert len(layer.conv.weight.unique(dim=0)) == CLASSES  # four times each


@pytest.mark.parametrize("offset", [0.0, 1.5, 3.5])
def test_the_main_prediction_is_interpolated_to_the_cells_own_places(offset: float) -> None:
    """A prediction that is linear in the position stays so, at the centers of the cells."""
    grid, doublings = FeatureGrid(8, offset), 3
    centers = offset + 8.0 * torch.arange(5)
    fine = interpolate_to_cells(centers.expand(1, 1, 5, 5).contiguous(), doublings)[0, 0, 0]
    expected = offset + torch.arange(40) - 3.5
    torch.testing.assert_close(fine[4:-4], expected[4:-4])
    # Masks are read at the same places, to half a pixel.
    columns = torch.arange(37).expand(1, 37, 37)
    read = pixels_of_cells(columns, grid, doublings, -1)[0, 20]
    inside = read >= 0
    assert ((read - expected).abs()[inside] <= 0.5).all()
    assert torch.equal(inside, (expected >= -0.5) & (expected < 36.5))


def test_features_on_padding_are_known(seed: int) -> None:
    valid = torch.zeros(1, 33, 33, dtype=torch.bool)
    valid[:, :17, :16] = True  # pixels 0 to 16 and 0 to 15
    seen = pixels_of_cells(valid, FeatureGrid(4), 0, False)  # centered on 0, 4, ...
    assert seen[0].any(dim=1).tolist() == [True] * 5 + [False] * 4
    assert seen[0].any(dim=0).tolist() == [True] * 4 + [False] * 5
