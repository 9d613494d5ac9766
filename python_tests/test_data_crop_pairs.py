"""The two crops keep the IoU range, and the features of their overlap show the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor
from torchvision import tv_tensors

from cac_ext.train.config import AugmentConfig
from cac_ext.train.data.augment import CropPairAugment
from cac_ext.train.data.batches import collate_pairs
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks.grid import FeatureGrid

PLAIN = {"flip": 0.5, "blur": 0.0, "jitter": 0.0, "gray": 0.0}


def features_of(image: Tensor, kind: str, stride: int, pool: int) -> Tensor:
    """The features of an encoder that only samples its input, ``[C, S, S] -> [C, h, w]``."""
    if kind == "convolution":  # padded and strided: feature j is centered on pixel stride * j
        features = image[:, ::stride, ::stride]
    else:  # patches, each its own mean
        features = F.avg_pool2d(image[None], stride)[0]
    return F.avg_pool2d(features[None], pool)[0] if pool > 1 else features


def grid_of(kind: str, stride: int, pool: int) -> FeatureGrid:
    offset = 0.0 if kind == "convolution" else (stride - 1) / 2
    return FeatureGrid(stride, offset).pooled(pool)


@pytest.mark.parametrize("kind", ["convolution", "patches"])
@pytest.mark.parametrize(("stride", "pool"), [(1, 1), (4, 1), (8, 1), (4, 2), (16, 1)])
def test_overlap_features_show_the_same_pixels(
    kind: str, stride: int, pool: int, seed: int
) -> None:
    torch.manual_seed(seed)
    grid = grid_of(kind, stride, pool)
    step = stride if kind == "patches" else 1
    for crop_size in (64, 64 + step, 96, 64 + 7 * step):
        sampler = CropPairSampler(crop_size, grid, (0.05, 1.0), flip=0.5)
        height, width = sampler.min_size + 31, sampler.min_size + 50
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        coordinates = torch.stack([rows, columns]).float()  # [2, H, W]
        seen_flips = set()
        for _ in range(20):
            pair = sampler(height, width)
            gathered = []
            for crop, overlap in ((pair.crop1, pair.overlap1), (pair.crop2, pair.overlap2)):
                assert crop.top >= 0
                assert crop.left >= 0
                view = coordinates[
                    :, crop.top : crop.top + crop_size, crop.left : crop.left + crop_size
                ]
                assert view.shape[1:] == (crop_size, crop_size)
                view = view.flip(-1) if crop.flip else view
                features = features_of(view, kind, stride, pool)  # [2, h, w]
                assert features.shape[1:] == (grid.size(crop_size), grid.size(crop_size))
                gathered.append(features.flatten(1)[:, overlap])
            assert len(pair.overlap1) > 0
            torch.testing.assert_close(gathered[0], gathered[1], rtol=0, atol=1e-3)
            seen_flips.add((pair.crop1.flip, pair.crop2.flip))
        assert len(seen_flips) > 1


@pytest.mark.parametrize("scale", [0.3, 0.8, 1.0, 1.37, 2.0])
@pytest.mark.parametrize(("crop_size", "stride", "pool"), [(65, 4, 1), (96, 4, 2), (90, 16, 1)])
def test_scaled_flipped_and_padded_views_agree_at_the_overlap(
    scale: float, crop_size: int, stride: int, pool: int, seed: int
) -> None:
    """An encoder that returns the pixel at its position gives equal overlaps, without padding."""
    torch.manual_seed(seed)
    grid = grid_of("convolution", stride, pool)
    rows, columns = torch.meshgrid(torch.arange(120), torch.arange(150), indexing="ij")
    noise = torch.randint(0, 256, (120, 150))
    image = torch.stack([rows + 100, columns + 100, noise]).to(torch.uint8)  # no mean color: > 0
    config = AugmentConfig(crop_size=crop_size, unlabelled_scale=(scale, scale), **PLAIN)
    for flips in ([0, 0], [0, 1], [1, 0], [1, 1]):
        # A separate probability for each view, so that all four cases are seen.
        sampler = CropPairSampler(crop_size, grid, (0.1, 1.0), torch.tensor(flips))
        augment = CropPairAugment(config, sampler)
        overlaps = 0
        for _ in range(6):
            item = augment({"image": image, "name": "coordinates"})
            gathered = []
            for view in item:
                features = features_of(view.image, "convolution", stride, pool)
                gathered.append(features.flatten(1)[:, view.overlap])  # [3, L]
                assert view.valid.flatten()[view.overlap].all()
            torch.testing.assert_close(gathered[0], gathered[1], rtol=0, atol=1e-5)
            overlaps += gathered[0].shape[1]
        assert overlaps > 0


@pytest.mark.parametrize("iou_range", [(0.1, 1.0), (0.1, 0.3), (0.4, 0.45), (1.0, 1.0)])
def test_the_iou_stays_in_its_range(iou_range: tuple[float, float], seed: int) -> None:
    torch.manual_seed(seed)
    size = 65
    sampler = CropPairSampler(size, FeatureGrid(4), iou_range, flip=0.5)
    for _ in range(200):
        pair = sampler(sampler.min_size + 20, sampler.min_size + 60)
        overlap_y = size - abs(pair.crop1.top - pair.crop2.top)
        overlap_x = size - abs(pair.crop1.left - pair.crop2.left)
        iou = overlap_y * overlap_x / (2 * size**2 - overlap_y * overlap_x)
        assert iou_range[0] - 1e-9 <= iou <= iou_range[1] + 1e-9


def test_shifts_are_as_likely_as_under_rejection(seed: int) -> None:
    """As if two random crops were placed and kept if their IoU fits."""
    torch.manual_seed(seed)
    size, stride, image = 17, 8, 48
    sampler = CropPairSampler(size, FeatureGrid(stride), (0.1, 1.0), flip=0.0)
    # Every placement of two crops, counted rather than drawn: the expectation has no noise.
    offsets = np.arange(image - size + 1)
    places = np.stack(np.meshgrid(offsets, offsets, offsets, offsets), axis=-1).reshape(-1, 2, 2)
    shift = places[:, 1] - places[:, 0]
    intersection = (size - np.abs(shift)).clip(0).prod(1)
    iou = intersection / (2 * size**2 - intersection)
    kept = shift[(shift % stride == 0).all(1) & (iou >= 0.1)] // stride
    keys, counts = np.unique(kept @ [10, 1], return_counts=True)
    drawn = []
    for _ in range(4000):
        pair = sampler(image, image)
        drawn.append(
            (pair.crop2.top - pair.crop1.top) // stride * 10
            + (pair.crop2.left - pair.crop1.left) // stride
        )
    observed = np.array([(np.array(drawn) == key).sum() for key in keys])
    assert observed.sum() == len(drawn)  # no shift beyond the feasible ones
    assert chisquare(observed, counts / counts.sum() * len(drawn)).pvalue > 1e-6


def test_an_iou_that_no_shift_has_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"method\.iou_range.*nearest possible one is"):
        CropPairSampler(65, FeatureGrid(32), (0.5, 0.52), flip=0.5)


def test_padding_is_neither_overlap_nor_valid(seed: int) -> None:
    """An image smaller than the crops: only features on the image are gathered."""
    torch.manual_seed(seed)
    config = AugmentConfig(crop_size=65, unlabelled_scale=(1.0, 1.0), **PLAIN)
    sampler = CropPairSampler(65, FeatureGrid(4), (0.1, 0.5), flip=0.5)
    augment = CropPairAugment(config, sampler)
    # White everywhere: normalized it is above zero, and padding is zero.
    image = tv_tensors.Image(torch.full((3, 40, 90), 255, dtype=torch.uint8))
    compared = 0
    for _ in range(30):
        item = augment({"image": image, "name": "white"})
        compared += len(item.view1.overlap)
        for view in item:
            on_image = view.image[0, ::4, ::4] > 0  # [h, w]
            assert torch.equal(on_image, view.valid)
            assert on_image.flatten()[view.overlap].all()
    assert compared > 0


def test_a_batch_keeps_each_overlap_with_its_image(seed: int) -> None:
    torch.manual_seed(seed)
    config = AugmentConfig(crop_size=65, unlabelled_scale=(1.0, 1.0), **PLAIN)
    augment = CropPairAugment(config, CropPairSampler(65, FeatureGrid(4), (0.1, 1.0), flip=0.5))
    images = torch.randint(0, 256, (4, 3, 97, 110), dtype=torch.uint8)
    items = [augment({"image": tv_tensors.Image(image), "name": "noise"}) for image in images]
    batch = collate_pairs(items)
    # The features of an encoder of stride 4 without any context.
    gathered = [
        view.images[:, :, ::4, ::4].permute(0, 2, 3, 1).flatten(0, 2)[view.overlap]
        for view in batch[:2]
    ]  # [A, 3]
    torch.testing.assert_close(gathered[0], gathered[1])
    assert min(len(item.view1.overlap) for item in items) > 0
    assert batch.image_index.bincount().tolist() == [len(item.view1.overlap) for item in items]
