"""Which classes masks hold: enough of them read to know that each class is there, or all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.image_files import ImageFiles
from cac_ext.train.data.sample import inspect_sample
from cac_ext.train.runtime.progress import Progress


@dataclass(frozen=True)
class MaskScan:
    """What the masks of one part hold.

    Attributes:
        masks: how many were read; all of them where a class was not found.
        pixels: of each class in these, ``[K]`` int64.
        ignored: pixels of these that count for nothing.
        smallest: height and width of the one with the shortest side.
    """

    masks: int
    pixels: Tensor
    ignored: int
    smallest: tuple[int, int]


def scan_masks(
    dataset: Dataset, splits: DatasetSplits, description: str, *, progress: bool = True
) -> MaskScan:
    """Reads masks, in an order that is always the same, until every class has been seen.

    So the cost is a few masks where all is well, and all masks once where a class is absent. Images
    in files are not decoded for it. No random state is touched.

    Args:
        dataset: of images with masks.
        splits: whose classes are looked for; the one that is ignored, if there is one, is not.
        description: stands in front of the progress bar, which shows after a second.
        progress: whether to show it.

    Raises:
        DataError: a mask cannot be read.
    """
    pixels = torch.zeros(splits.num_classes, dtype=torch.int64)
    wanted = torch.ones(splits.num_classes, dtype=torch.bool)
    if 0 <= splits.ignore_index < splits.num_classes:
        wanted[splits.ignore_index] = False
    read = ignored = 0
    smallest: tuple[int, int] | None = None
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()  # lists go by class, often
    bar = Progress(order, description, unit="mask", leave=False, disable=not progress)
    with torch.random.fork_rng(devices=[]):  # a data set of the user's may draw from it
        for index in bar:
            mask = read_mask(dataset, index, splits)
            counts, left_out = count_pixels(mask, splits)
            read, ignored = read + 1, ignored + left_out
            pixels += counts
            size = (mask.shape[0], mask.shape[1])
            smallest = size if smallest is None or min(size) < min(smallest) else smallest
            if (pixels > 0)[wanted].all():
                break
    bar.close()
    return MaskScan(read, pixels, ignored, smallest or (0, 0))


def read_mask(dataset: Dataset, index: int, splits: DatasetSplits) -> Tensor:
    """The mask of an image, ``[H, W]``; the image is decoded only where there is no other way."""
    if isinstance(dataset, ImageFiles):
        mask = dataset.known_mask(index)
        if mask is not None:
            return mask.as_subclass(Tensor)
    sample = dataset[index]
    inspect_sample(sample, splits, "labelled or validation", index)
    return sample["mask"].as_subclass(Tensor)


def count_pixels(mask: Tensor, splits: DatasetSplits) -> tuple[Tensor, int]:
    """Pixels of each class in a mask, ``[K]`` int64, and those that are ignored."""
    ids = mask.as_subclass(Tensor).numpy().ravel()
    counted = ids[ids != splits.ignore_index]
    pixels = np.bincount(counted, minlength=splits.num_classes)
    return torch.from_numpy(pixels), len(ids) - len(counted)
