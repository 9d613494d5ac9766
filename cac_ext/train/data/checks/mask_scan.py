"""Which classes masks hold: reads masks until every class has been seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cac_ext.train.data.checks.sample import inspect_sample
from cac_ext.train.data.contract import DatasetSplits, SegmentationDataset
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.runtime.progress import Progress


@dataclass(frozen=True)
class MaskScan:
    """What the masks of one part hold.

    Attributes:
        masks: how many were read; all of them if a class was not found.
        pixels: number of pixels of each class in these, ``[K]`` int64.
        ignored: number of ignored pixels in these.
        largest: height and width of the mask with the most pixels.
    """

    masks: int
    pixels: Tensor
    ignored: int
    largest: tuple[int, int]


def scan_masks(
    dataset: SegmentationDataset, splits: DatasetSplits, description: str, *, progress: bool = True
) -> MaskScan:
    """Reads masks, always in the same order, until every class has been seen.

    The cost is a few masks if all classes are there, and all masks once if a class is absent.
    Images in files are not decoded, and no random state changes.

    Args:
        dataset: images with masks.
        splits: their classes are looked for, except an ignored one.
        description: of the progress bar, which shows after a second.
        progress: whether to show it.

    Raises:
        DataError: a mask cannot be read.
    """
    pixels = torch.zeros(splits.num_classes, dtype=torch.int64)
    wanted = torch.ones(splits.num_classes, dtype=torch.bool)
    if 0 <= splits.ignore_index < splits.num_classes:
        wanted[splits.ignore_index] = False
    read = ignored = 0
    largest = (0, 0)
    # Not the order of the list, which may be sorted by class.
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    bar = Progress(order, description, unit="mask", leave=False, disable=not progress)
    with torch.random.fork_rng(devices=[]):  # a custom data set may draw from it
        for index in bar:
            mask = read_mask(dataset, index, splits)
            counts, left_out = count_pixels(mask, splits)
            read, ignored = read + 1, ignored + left_out
            pixels += counts
            largest = max(largest, (mask.shape[0], mask.shape[1]), key=math.prod)
            if (pixels > 0)[wanted].all():
                break
    bar.close()
    return MaskScan(read, pixels, ignored, largest)


def read_mask(dataset: SegmentationDataset, index: int, splits: DatasetSplits) -> Tensor:
    """The mask of an image, ``[H, W]``; an image in a file is not decoded."""
    mask = dataset.known_mask(index) if isinstance(dataset, ImageFiles) else None
    if mask is not None:
        return mask.as_subclass(Tensor)
    sample = dataset[index]
    inspect_sample(sample, splits, "labelled or validation", index)
    return sample["mask"].as_subclass(Tensor)


def count_pixels(mask: Tensor, splits: DatasetSplits) -> tuple[Tensor, int]:
    """Number of pixels of each class in a mask, ``[K]`` int64, and of ignored ones."""
    ids = mask.as_subclass(Tensor).numpy().ravel()
    counted = ids[ids != splits.ignore_index]
    pixels = np.bincount(counted, minlength=splits.num_classes)
    return torch.from_numpy(pixels), len(ids) - len(counted)
