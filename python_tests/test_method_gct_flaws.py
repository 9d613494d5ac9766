"""Guided Collaborative Training: maps of flaws, written out, and the flaw detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods import check_method
from cac_ext.train.methods.frozen import frozen
from cac_ext.train.methods.gct.flaw_detector import SMALLEST_CROP, FlawDetector, IBNorm
from cac_ext.train.methods.gct.flaw_maps import blurred, guidance, handled_flaws, true_flaws

CLASSES, SIZE, IMAGES, IGNORED = 4, 33, 2, 255

pytestmark = pytest.mark.usefixtures("one_thread")


# Maps of flaws.


def blur_written_out(maps: np.ndarray, counted: np.ndarray, kernel: int) -> np.ndarray:
    """The weighted mean over a square of counted pixels, mirrored at the border; one by one."""
    kernel += kernel % 2 == 0
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    side, reach = maps.shape[0], kernel // 2

    def mirrored(i: int) -> int:
        return -i if i < 0 else 2 * (side - 1) - i if i >= side else i

    out = np.zeros_like(maps)
    for y, x in np.ndindex(maps.shape):
        total = weight = 0.0
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                at = mirrored(y + dy), mirrored(x + dx)
                w = np.exp(-(dy**2 + dx**2) / (2 * sigma**2)) * counted[at]
                total, weight = total + w * maps[at], weight + w
        out[y, x] = total / weight if weight > 0 else 0
    return out


def stretch_written_out(maps: np.ndarray, counted: np.ndarray) -> np.ndarray:
    low, high = maps[counted].min(), maps[counted].max()
    return np.where(counted, (maps - low) / (high - low + 1e-9), 0)


def make_maps(seed: int, side: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, masks, and which pixels count: not a stripe, not a few others."""
    torch.manual_seed(seed)
    probabilities = torch.randn(IMAGES, CLASSES, side, side).mul(2).softmax(dim=1)
    masks = torch.randint(CLASSES, (IMAGES, side, side))
    masks[:, -5:] = IGNORED
    masks[torch.rand(masks.shape) < 0.1] = IGNORED
    return probabilities, masks, masks != IGNORED


def test_true_flaws_are_those_written_out(seed: int) -> None:
    probabilities, masks, counted = make_maps(seed)
    actual = true_flaws(probabilities, masks, counted)
    for image in range(IMAGES):
        on = counted[image].numpy()
        flaws = np.zeros(on.shape)
        for y, x in np.argwhere(on):
            one_hot = np.eye(CLASSES)[masks[image, y, x]]
            flaws[y, x] = 0.5 * np.abs(one_hot - probabilities[image, :, y, x].numpy()).sum()
        flaws = blur_written_out(flaws, on, 24 // 8)
        largest = np.zeros_like(flaws)
        for y, x in np.ndindex(flaws.shape):
            square = np.s_[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            largest[y, x] = max(flaws[square][on[square]], default=0)
        expected = stretch_written_out(blur_written_out(largest, on, 24 // 4), on)
        torch.testing.assert_close(
            actual[image].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
        )
        assert actual[image].min() == 0
        assert actual[image].max() == pytest.approx(1)


@pytest.mark.parametrize("kernel", [2, 3, 8, 16])
def test_a_blur_without_ignored_pixels_is_an_ordinary_gaussian_blur(kernel: int, seed: int) -> None:
    torch.manual_seed(seed)
    maps = torch.rand(IMAGES, 40, 40)
    odd = kernel + 1 - kernel % 2
    sigma = 0.3 * ((odd - 1) / 2 - 1) + 0.8
    actual = blurred(maps, torch.ones_like(maps, dtype=torch.bool), kernel)
    torch.testing.assert_close(actual, gaussian_blur(maps, [odd, odd], [sigma, sigma]))


def test_kernels_follow_the_crop_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from cac_ext.train.methods.gct import flaw_maps

    kernels = []
    sums = flaw_maps._gaussian_sums
    monkeypatch.setattr(
        flaw_maps, "_gaussian_sums", lambda x, kernel: (kernels.append(kernel), sums(x, kernel))[1]
    )
    for side in (33, 320):
        maps = torch.rand(1, side, side)
        on = torch.ones_like(maps, dtype=torch.bool)
        true_flaws(torch.rand(1, 2, side, side), torch.zeros(1, side, side).long(), on)
        handled_flaws(maps, on)
    assert kernels == [5, 9, 3, 41, 81, 21]


def test_handled_flaws_are_those_written_out(seed: int) -> None:
    _, _, counted = make_maps(seed, side=40)
    raw = torch.randn(IMAGES, 40, 40)
    actual = handled_flaws(raw, counted)
    for image in range(IMAGES):
        on = counted[image].numpy()
        smooth = blur_written_out(raw[image].double().clamp(min=0).numpy(), on, 40 // 16)
        expected = torch.from_numpy(stretch_written_out(smooth, on))
        torch.testing.assert_close(actual[image].double(), expected, rtol=1e-4, atol=1e-5)


def test_an_image_without_a_flaw_above_a_tenth_has_none() -> None:
    raw = torch.linspace(-1, 0.09, SIZE * SIZE).view(1, SIZE, SIZE).repeat(2, 1, 1)
    raw[1] += 0.5
    handled = handled_flaws(raw, torch.ones_like(raw, dtype=torch.bool))
    assert (handled[0] == 0).all()
    assert handled[1].min() == 0
    assert handled[1].max() == pytest.approx(1)


def test_pixels_that_do_not_count_change_nothing(seed: int) -> None:
    """No blur, maximum or minimum of the others sees them; an image without others has zeros."""
    probabilities, masks, counted = make_maps(seed)
    counted[1] = False
    masks[1] = IGNORED
    raw = torch.randn(IMAGES, 24, 24)
    other_raw, other = raw.clone(), probabilities.clone()
    other_raw[~counted] = 50 * torch.randn(int((~counted).sum()))
    other.movedim(1, -1)[~counted] = torch.rand(int((~counted).sum()), CLASSES)
    for first, second in (
        (true_flaws(probabilities, masks, counted), true_flaws(other, masks, counted)),
        (handled_flaws(raw, counted), handled_flaws(other_raw, counted)),
    ):
        assert torch.equal(first, second)
        assert first[0].max() > 0
        assert (first[~counted] == 0).all()
        assert (first[1] == 0).all()


def test_handling_leaves_the_raw_map_alone(seed: int) -> None:
    """The detector is trained with it: clamped in place, its negative flaws would get no loss."""
    torch.manual_seed(seed)
    raw = torch.randn(IMAGES, SIZE, SIZE, requires_grad=True)
    before = raw.detach().clone()
    on = torch.ones_like(raw, dtype=torch.bool)
    handled = handled_flaws(raw, on), handled_flaws(raw.flip(0), on)
    kept = handled[0].clone(), handled[1].clone()
    probabilities = torch.rand(IMAGES, CLASSES, SIZE, SIZE)
    guidance((probabilities, probabilities), handled, 0.2)
    assert torch.equal(raw.detach(), before)
    assert torch.equal(handled[0], kept[0])
    assert torch.equal(handled[1], kept[1])
    assert not handled[0].requires_grad


def test_each_network_learns_from_the_less_flawed_one() -> None:
    """One pixel for each case; the threshold is 0.6."""
    handled1 = torch.tensor([[[0.1, 0.5, 0.3, 0.7, 0.9, 0.5]]])
    handled2 = torch.tensor([[[0.5, 0.1, 0.3, 0.9, 0.7, 0.7]]])
    p1 = torch.full((1, 2, 1, 6), 0.25, requires_grad=True)
    p2 = torch.full((1, 2, 1, 6), 0.75, requires_grad=True)
    known = guidance((p1, p2), (handled1, handled2), 0.6)
    own1, own2 = 0.25, 0.75
    for channel in range(2):
        assert known.targets[0][0, channel, 0].tolist() == [own1, own2, own1, own1, own1, own1]
        assert known.targets[1][0, channel, 0].tolist() == [own1, own2, own2, own2, own2, own1]
    assert known.both_flawed[0, 0].tolist() == [False, False, False, True, True, False]
    assert not any(target.requires_grad for target in known.targets)


# The detector.


def test_half_of_the_channels_are_normalized_over_the_batch(seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, 8, 5, 5) * torch.arange(1, 4).view(3, 1, 1, 1)
    norm = IBNorm(8)
    nn.init.constant_(norm.batch.weight, 2.0)
    actual = norm(x)
    for part, dims, scale in ((np.s_[:, :4], (0, 2, 3), 2), (np.s_[:, 4:], (2, 3), 1)):
        centered = x[part] - x[part].mean(dims, keepdim=True)
        variance = centered.square().mean(dims, keepdim=True)
        torch.testing.assert_close(actual[part], scale * centered / (variance + 1e-5).sqrt())
    assert sorted(dict(norm.named_parameters())) == ["batch.bias", "batch.weight"]


def test_the_detector_has_the_layers_of_its_authors() -> None:
    convolutions = [x for x in FlawDetector(CLASSES).modules() if isinstance(x, nn.Conv2d)]
    assert [(x.in_channels, x.out_channels, x.stride[0]) for x in convolutions] == [
        (3 + CLASSES, 64, 2),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
        (512, 1, 2),
    ]
    assert all(x.kernel_size == (4, 4) for x in convolutions)


def test_several_predictions_in_one_call_are_as_several_calls(seed: int) -> None:
    torch.manual_seed(seed)
    detector = FlawDetector(CLASSES)
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    predictions = torch.randn(2, IMAGES, CLASSES, SIZE, SIZE).softmax(dim=2)
    together = detector(images, *predictions)
    for maps, x in zip(together, predictions, strict=True):
        assert maps.shape == (IMAGES, SIZE, SIZE)
        assert torch.equal(maps, detector(images, x)[0])


def test_the_smallest_crop_works_and_a_smaller_one_is_refused() -> None:
    detector = FlawDetector(CLASSES)
    for side in (SMALLEST_CROP, SMALLEST_CROP - 1):
        images, probabilities = torch.randn(1, 3, side, side), torch.rand(1, CLASSES, side, side)
        config = load("synthetic", ["method.name=gct", f"augment.crop_size={side}"])
        if side == SMALLEST_CROP:
            check_method(config)
            (flaws,) = detector(images, probabilities)
            counted = torch.ones(1, side, side, dtype=torch.bool)
            assert handled_flaws(flaws, counted).isfinite().all()
            assert true_flaws(probabilities, counted.long(), counted).isfinite().all()
        else:
            with pytest.raises(ValueError, match=r"more than 1 (value|spatial)"):
                detector(images, probabilities)
            with pytest.raises(ConfigError, match="at least 20 pixels"):
                check_method(config)


def test_a_frozen_module_passes_gradient_and_learns_nothing() -> None:
    module, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with frozen(module):
        y = module(x)
    y.sum().backward()
    assert torch.equal(x.grad, module.weight.detach())
    assert module.weight.grad is None
    assert all(p.requires_grad for p in module.parameters())
