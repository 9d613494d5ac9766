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


@pytest.mark.parametrize("size", [(90, 77), (450, 333), (281, 230), (32, 401), (1, 60)])
@pytest.mark.parametrize("limit", [0, 10**9])
def test_a_part_is_that_part_of_the_whole(size, limit, seed, monkeypatch):
    monkeypatch.setattr(rescale, "WHOLE_PIXELS", limit)
    torch.manual_seed(seed)
    image = tv_tensors.Image(torch.randint(0, 256, (3, 210, 170), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.randint(0, 200, (210, 170), dtype=torch.uint8))
    whole, whole_mask = VF.resize(image, list(size)), VF.resize(mask, list(size))
    scaled = Scaled((210, 170), *size)
    for _ in range(12):
        top, left = (int(torch.randint(n, ())) for n in size)
        where = (slice(top, top + 65), slice(left, left + 65))
        part = scaled.part(image, top, left, 65, 65)
        expected = whole[:, where[0], where[1]]
        assert part.shape == expected.shape
        difference = (part.int() - expected.int()).abs()
        assert difference.max() <= (0 if limit else 2)  # of 255 gray levels
        assert difference.float().mean() < 0.3
        assert torch.equal(scaled.part(mask, top, left, 65, 65), whole_mask[where])
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
    for limit in (0, 10**9):
        monkeypatch.setattr(rescale, "WHOLE_PIXELS", limit)
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
    monkeypatch.setattr(rescale, "WHOLE_PIXELS", 0)
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
