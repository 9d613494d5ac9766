"""Our change of hue is torchvision's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from cac_ext.train.config import AugmentConfig
from cac_ext.train.data import augment
from cac_ext.train.data.augment import low_level_augmentation
from cac_ext.train.data.hue import View, adjust_hue


def test_many_colors_turn_into_torchvision_s(seed: int) -> None:
    """Every color of a random blue, at the ends of the range and at random factors."""
    torch.manual_seed(seed)
    codes = torch.arange(1 << 16)
    drawn = (torch.rand(12) - 0.5).tolist()
    for factor in (0.0, 0.5, -0.5, 1 / 6, -1 / 3, 1e-7, -1e-7, *drawn):
        blue = int(torch.randint(256, ()))
        colors = torch.stack([codes // 256, codes % 256, torch.full_like(codes, blue)])
        for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            image = colors[list(order)].to(torch.uint8).view(3, 256, 256)
            assert torch.equal(plain(adjust_hue(image, factor)), VF.adjust_hue(image, factor))


def test_grays_and_pure_colors_turn_into_torchvision_s() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    nothing = torch.zeros_like(levels)
    parts = [
        torch.stack([levels * red, levels * green, levels * blue])
        for red in (0, 1)
        for green in (0, 1)
        for blue in (0, 1)
    ]
    image = torch.stack(
        [*parts, torch.stack([levels, nothing, 255 - levels])], dim=1
    )  # [3, 9, 256]
    for factor in torch.linspace(-0.5, 0.5, 41).tolist():
        assert torch.equal(plain(adjust_hue(image, factor)), VF.adjust_hue(image, factor))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 5), (0, 4)])
def test_any_size_and_layout(size: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    before = pixels.clone()
    for image in (pixels.permute(2, 0, 1), pixels.permute(2, 0, 1).contiguous()):
        assert torch.equal(plain(adjust_hue(image, 0.07)), VF.adjust_hue(image, 0.07))
    assert torch.equal(pixels, before)  # the input is left alone


def test_the_color_jitter_uses_it_and_stays_torchvision_s(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole augmentations, with torchvision's hue and with ours."""
    apply = low_level_augmentation(AugmentConfig(jitter=1.0, gray=0.3, blur=0.5))
    torch.manual_seed(seed)
    images = [torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8) for _ in range(10)]
    torch.manual_seed(seed + 1)
    ours = [apply(image) for image in images]
    assert all(type(image) is Tensor for image in ours)
    assert type(VF.adjust_hue(images[0].as_subclass(View), 0.1)) is View
    monkeypatch.setattr(augment, "View", Tensor)
    torch.manual_seed(seed + 1)
    theirs = [apply(image) for image in images]
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def plain(image: Tensor) -> Tensor:
    return image.as_subclass(Tensor)
