"""A part of a scaled picture equals that part of the whole one, at the cost of the part."""

from __future__ import annotations

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as VF

from cac_ext.train.config import AugmentConfig
from cac_ext.train.data import rescale
from cac_ext.train.data.augment import CropPairAugment, LabelledAugment
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.rescale import Scaled
from cac_ext.train.networks.grid import FeatureGrid

PLAIN = {"blur": 0.0, "jitter": 0.0, "gray": 0.0}

#: Gray levels between a scaled pixel and the exact value. Two passes round to whole levels, half a
#: level each; weights and offsets are rounded, too.
ROUNDING = 1.1


def scale_parts(monkeypatch: pytest.MonkeyPatch, parts: bool) -> None:
    """Every image is scaled in parts, or every image whole."""
    monkeypatch.setattr(rescale, "part_pays", lambda whole, part: parts)


def filter_matrix(size: int, scaled: int, first: int = 0, shown: int = 65) -> torch.Tensor:
    """The antialiased bilinear filter along one side, ``[shown, size]`` float64."""
    ratio = size / scaled
    centers = (torch.arange(scaled, dtype=torch.float64)[first : first + shown] + 0.5) * ratio
    places = torch.arange(size, dtype=torch.float64) + 0.5
    distance = (places[None, :] - centers[:, None]).abs() / max(ratio, 1.0)
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def exact_part(image: torch.Tensor, size: tuple[int, int], top: int, left: int) -> torch.Tensor:
    """65 x 65 pixels of the scaled image, or up to its end, ``[3, h, w]`` float64."""
    rows = filter_matrix(image.shape[1], size[0], top)
    columns = filter_matrix(image.shape[2], size[1], left)
    return rows @ image.double() @ columns.T


@pytest.mark.parametrize("parts", [True, False])
def test_every_scaled_pixel_is_the_exact_one_but_for_rounding(parts, seed, monkeypatch):
    """Parts of noise, the sharpest picture, at any offset, against float64 on the whole."""
    scale_parts(monkeypatch, parts)
    torch.manual_seed(seed)
    total, pixels = 0.0, 0
    for _ in range(12):
        height, width = (int(torch.randint(40, 700, ())) for _ in range(2))
        ratio = float(torch.empty(()).uniform_(-2, 1.5).exp2())  # 1/4 to 2.8
        size = max(round(height * ratio), 2), max(round(width * ratio), 2)
        image = torch.randint(0, 2, (3, height, width), dtype=torch.uint8) * 255
        for _ in range(3):
            top, left = (int(torch.randint(n, ())) for n in size)
            part = Scaled((height, width), *size).part(tv_tensors.Image(image), top, left, 65, 65)
            error = (part - exact_part(image, size, top, left)).abs()
            assert error.max() <= ROUNDING, (height, width, size, top, left)
            total, pixels = total + float(error.sum()), pixels + error.numel()
    assert total / pixels < 0.35


def test_a_part_far_from_the_corner_of_a_large_picture_is_exact_but_for_rounding(seed, monkeypatch):
    """Offsets of thousands of pixels lose no precision."""
    scale_parts(monkeypatch, True)
    torch.manual_seed(seed)
    source, size = (40, 9001), (57, 12345)
    image = torch.randint(0, 2, (3, *source), dtype=torch.uint8) * 255
    for left in (11_999, 12_289):
        part = Scaled(source, *size).part(tv_tensors.Image(image), 0, left, 65, 65)
        assert (part - exact_part(image, size, 0, left)).abs().max() <= ROUNDING


def test_masks_equal_the_whole_mask_for_any_size(seed):
    torch.manual_seed(seed)
    for dtype in (torch.uint8, torch.int64, torch.int32):
        for _ in range(25):
            height, width, *size = (int(torch.randint(1, 400, ())) for _ in range(4))
            mask = torch.randint(0, 120, (height, width), dtype=dtype)
            whole = VF.resize(tv_tensors.Mask(mask), size)
            top, left = (int(torch.randint(n, ())) for n in size)
            part = Scaled((height, width), *size).part(tv_tensors.Mask(mask), top, left, 99, 99)
            assert torch.equal(part, whole[top : top + 99, left : left + 99])


def test_only_a_part_is_scaled_if_the_whole_is_much_larger(monkeypatch):
    """A picture of 12 megapixels, twice as large; small ones stay with torchvision."""
    wholes, resize = [], VF.resize

    def noted(image: torch.Tensor, size: list[int]) -> torch.Tensor:
        wholes.append(size)
        return resize(image, size)

    monkeypatch.setattr(VF, "resize", noted)

    def scale(source: tuple[int, int], size: tuple[int, int]) -> None:
        image = tv_tensors.Image(torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, *source))
        assert Scaled(source, *size).part(image, 7, 9, 320, 320).shape == (3, 320, 320)

    scale((3000, 4000), (6000, 8000))
    scale((3000, 4000), (1500, 2000))
    assert wholes == []
    scale((375, 500), (600, 800))  # VOC
    scale((3000, 4000), (600, 800))
    assert wholes == [[600, 800]] * 2


@pytest.mark.parametrize("size", [(90, 77), (450, 333), (281, 230), (32, 401), (1, 60)])
@pytest.mark.parametrize("parts", [True, False])
def test_a_part_is_that_part_of_the_whole(size, parts, seed, monkeypatch):
    scale_parts(monkeypatch, parts)
    torch.manual_seed(seed)
    image = tv_tensors.Image(torch.randint(0, 256, (3, 210, 170), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.randint(0, 200, (210, 170), dtype=torch.uint8))
    whole, whole_mask = VF.resize(image, list(size)), VF.resize(mask, list(size))
    scaled = Scaled((210, 170), *size)
    differences = []
    for _ in range(12):
        top, left = (int(torch.randint(n, ())) for n in size)
        where = (slice(top, top + 65), slice(left, left + 65))
        part = scaled.part(image, top, left, 65, 65)
        expected = whole[:, where[0], where[1]]
        assert part.shape == expected.shape
        difference = (part.int() - expected.int()).abs()
        assert difference.max() <= (2 if parts else 0)  # of 255 gray levels
        differences.append(difference.flatten().float())
        assert torch.equal(scaled.part(mask, top, left, 65, 65), whole_mask[where])
    pooled = torch.cat(differences)
    # Of a few pixels the mean may lie beyond; these are equal but for rounding.
    assert pooled.mean() < 0.3 + 2 / len(pooled) ** 0.5
    assert scaled.part(image, size[0] + 5, 0, 65, 65).numel() == 0


def test_a_picture_can_be_scaled_to_a_single_pixel(seed):
    torch.manual_seed(seed)
    image = tv_tensors.Image(torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8))
    pixel = Scaled((40, 30), 1, 1).part(image, 0, 0, 65, 65)
    assert pixel.shape == (3, 1, 1)
    # The triangle filter of the whole picture weighs the middle most.
    assert (pixel.flatten() - image.float().mean(dim=(1, 2))).abs().max() < 25
    column = rescale.resize(image, 20, 1)
    rows = image.float().mean(dim=2).view(3, 20, 2).mean(dim=2)  # [3, 20]
    assert column.shape == (3, 20, 1)
    assert (column[..., 0] - rows).abs().mean() < 20
    augment = LabelledAugment(AugmentConfig(crop_size=9, labelled_scale=(0.01, 0.01)), 255)
    crop = augment({"image": image, "mask": torch.ones(40, 30, dtype=torch.uint8)})
    assert (crop.mask != 255).sum() == 1


def test_crops_of_large_pictures_show_what_crops_of_whole_ones_show(seed, monkeypatch):
    """Labelled crops, both views, their masks and truth; the same random choices."""
    torch.manual_seed(seed)
    image = torch.randint(0, 256, (3, 150, 180), dtype=torch.uint8)
    sample = {"image": image, "mask": torch.randint(0, 5, (150, 180)), "name": "noise"}
    sample["truth"] = sample["mask"].int()
    config = AugmentConfig(crop_size=65, **PLAIN)
    sampler = CropPairSampler(65, FeatureGrid(4), (0.1, 1.0), 0.5)
    pairs, labelled = CropPairAugment(config, sampler, 255), LabelledAugment(config, 255)
    found = []
    for parts in (True, False):
        scale_parts(monkeypatch, parts)
        torch.manual_seed(seed + 1)
        found.append([(pairs(sample), labelled(sample)) for _ in range(5)])
    level = 2.01 / 255 / 0.224  # two gray levels, normalized
    for (pair, crop), (whole_pair, whole_crop) in zip(*found, strict=True):
        assert (crop.image - whole_crop.image).abs().max() <= level
        assert torch.equal(crop.mask, whole_crop.mask)
        for view, whole in zip(pair, whole_pair, strict=True):
            assert (view.image - whole.image).abs().max() <= level
            for name in ("valid", "overlap", "mask", "truth"):
                assert torch.equal(getattr(view, name), getattr(whole, name)), name


def test_views_of_a_large_picture_agree_bit_for_bit_at_their_overlap(seed, monkeypatch):
    scale_parts(monkeypatch, True)
    torch.manual_seed(seed)
    image = torch.randint(0, 256, (3, 150, 180), dtype=torch.uint8)
    sampler = CropPairSampler(65, FeatureGrid(4), (0.1, 1.0), 0.5)
    augment = CropPairAugment(AugmentConfig(crop_size=65, **PLAIN), sampler)
    for _ in range(10):
        one, two = (
            view.image[:, ::4, ::4].flatten(1)[:, view.overlap]
            for view in augment({"image": image, "name": "noise"})
        )
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("size", "iou_range"),
    [
        ((60, 60), (0.1, 0.3)),
        ((1, 1), (0.1, 0.3)),
        ((1, 5000), (0.1, 1.0)),
        ((5000, 2), (0.1, 0.5)),
        ((2, 3), (0.9, 1.0)),
        ((130, 131), (0.1, 0.3)),
    ],
)
def test_low_level_augmentation_copes_with_any_visible_part(size, iou_range, seed):
    torch.manual_seed(seed)
    sampler = CropPairSampler(129, FeatureGrid(4), iou_range, 0.5)
    config = AugmentConfig(crop_size=129, blur=1.0, jitter=1.0, gray=0.5)
    augment = CropPairAugment(config, sampler)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    for _ in range(25):
        pair = augment({"image": image, "name": "small"})
        for view in pair:
            assert view.image.shape == (3, 129, 129)
            assert view.image.isfinite().all()
            shown = (view.image != 0).any(dim=0)
            assert shown.any() or not view.valid.any()


def test_a_small_crop_is_blurred_as_a_large_one_of_the_same_rows(seed):
    """A row that repeats itself is blurred along itself alone."""
    torch.manual_seed(seed)
    sampler = CropPairSampler(33, FeatureGrid(4), (0.1, 1.0), 0.0)
    augment = CropPairAugment(AugmentConfig(crop_size=33, blur=1.0, jitter=0.0, gray=0.0), sampler)
    row = torch.randint(0, 256, (3, 1, 33), dtype=torch.uint8)
    changed = 0
    for draw in range(20):  # of the blur's width, which may be as good as none
        blurred = []
        for height in (1, 2, 20):
            torch.manual_seed(seed + draw)
            blurred.append(augment.low_level(row.expand(-1, height, -1).contiguous())[:, 0])
        assert torch.equal(blurred[0], blurred[2])
        assert torch.equal(blurred[1], blurred[2])
        changed += not torch.equal(blurred[0], row[:, 0])
    assert changed > 5


@pytest.mark.parametrize("crop_size", [33, 34, 64])
def test_the_truth_of_a_feature_centered_beyond_its_crop_is_the_image_s(crop_size, seed):
    """Patches of a crop that does not fit the stride: the last one's center lies outside it."""
    torch.manual_seed(seed)
    grid = FeatureGrid(4, 1.5)
    truth = torch.arange(90 * 110).view(90, 110).int()
    sample = {"image": torch.zeros(3, 90, 110, dtype=torch.uint8), "truth": truth, "name": "x"}
    config = AugmentConfig(crop_size=crop_size, unlabelled_scale=(1.0, 1.0), **PLAIN)
    sampler = CropPairSampler(crop_size, grid, (0.1, 1.0), 0.5)
    for _ in range(20):
        pair = CropPairAugment(config, sampler)(sample)
        for view in pair:
            shown = view.truth[view.valid]
            assert (shown >= 0).all()
            assert shown.unique().numel() == shown.numel()  # no pixel stands for two features
