"""Ground-truth masks of unlabelled images, for metrics only; never used in training."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors

from cac_ext.train.data.contract import DatasetSplits, Sample, SegmentationDataset, known_mask
from cac_ext.train.errors import DataError


class WithTruth(SegmentationDataset):
    """The images of the unlabelled branch with ``"truth"`` in their samples.

    It is an int32 mask ``[H, W]`` of class ids, -1 where the class is unknown.

    Args:
        images: the unlabelled images, with or without pseudo labels as their masks; the labelled
            ones if there are no unlabelled ones.
        splits: the data that the images belong to.
        key: the configuration key that asks for the truth, for errors.

    Raises:
        DataError: an image has no true mask, or one of another size. The first image is checked at
            once, the others when they are read.
    """

    def __init__(self, images: SegmentationDataset, splits: DatasetSplits, key: str) -> None:
        self.images = images
        self.unlabelled = splits.unlabelled
        self.ignore_index = splits.ignore_index
        self.key = key
        self[0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        sample = self.images[index]
        unlabelled = self.unlabelled
        mask = sample["mask"] if unlabelled is None else known_mask(unlabelled, index)
        if mask is None:
            raise DataError(
                f"{self.key} is true, but the unlabelled image {sample['name']} has no mask to "
                f"measure by: set {self.key}=false, which does not change training, or name the "
                "masks of all unlabelled images in the second column of their list"
            )
        if mask.shape != sample["image"].shape[1:]:
            raise DataError(
                f"{self.key}: the mask of the unlabelled image {sample['name']} has the shape "
                f"{list(mask.shape)}, but its image is {list(sample['image'].shape[1:])}"
            )
        truth = mask.as_subclass(Tensor).to(torch.int32, copy=True)
        truth[truth == self.ignore_index] = -1
        return {**sample, "truth": tv_tensors.Mask(truth)}
