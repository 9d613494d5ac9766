"""The true masks of images that are trained on without: to measure by, never to learn from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from cac_ext.train.data import DatasetSplits
from cac_ext.train.errors import DataError


class WithTruth(Dataset):
    """The images of the unlabelled branch with ``"truth"`` in their samples.

    It is an int32 mask ``[H, W]`` of class ids, -1 where the class is not known.

    Args:
        images: the unlabelled images, with or without pseudo labels as their masks; where there
            are none, the labelled images.
        splits: where they come from.
        key: of the configuration that asks for the truth, for errors.

    Raises:
        DataError: when a sample is read, and of the first one at once: there is no true mask, or
            one of another size than its image.
    """

    def __init__(self, images: Dataset, splits: DatasetSplits, key: str) -> None:
        self.images = images
        self.unlabelled = splits.unlabelled
        self.ignore_index = splits.ignore_index
        self.key = key
        self[0]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        sample = self.images[index]
        mask = sample["mask"] if self.unlabelled is None else self._known_mask(index)
        if mask is None:
            raise DataError(
                f"{self.key} is true, but the unlabelled image {sample['name']} has no mask to "
                f"measure by: set {self.key}=false, which training does not suffer from, or name "
                "the masks of all unlabelled images, in the second column of their list"
            )
        if mask.shape != sample["image"].shape[1:]:
            raise DataError(
                f"{self.key}: the mask of the unlabelled image {sample['name']} has the shape "
                f"{list(mask.shape)}, but its image is {list(sample['image'].shape[1:])}"
            )
        truth = mask.as_subclass(Tensor).to(torch.int32, copy=True)
        truth[truth == self.ignore_index] = -1
        return {**sample, "truth": tv_tensors.Mask(truth)}

    def _known_mask(self, index: int) -> Tensor | None:
        known_mask = getattr(self.unlabelled, "known_mask", None)
        return None if known_mask is None else known_mask(index)
