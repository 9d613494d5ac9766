"""What a data set is; see the package's docstring for how to add one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

from torch import Tensor


class NamedImage(TypedDict):
    """What every sample holds."""

    image: Tensor  # [C, H, W] uint8 of data.channels, 3 by default; H and W may differ by image
    name: str  # of the image, in errors, pictures and predictions


class Sample(NamedImage, total=False):
    """An image of a data set. Only labelled and validation images must have a mask."""

    mask: Tensor  # [H, W] integer class ids, or ignore_index
    truth: Tensor  # [H, W] int32 class ids, -1 for unknown; only `truth.WithTruth` adds it


class SegmentationDataset(Protocol):
    """Images by index. A map-style ``torch.utils.data.Dataset`` with a length fits."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The same sample at each call: augmentation and order belong to the stream."""


def known_mask(images: SegmentationDataset, index: int) -> Tensor | None:
    """The ground truth of an image, ``[H, W]`` integer class ids; None if it is unknown.

    It comes from the method ``known_mask(index)`` that a data set of unlabelled images may have.
    """
    read: Callable[[int], Tensor | None] | None = getattr(images, "known_mask", None)
    return None if read is None else read(index)


@dataclass(frozen=True)
class DatasetSplits:
    """What a data set's ``build`` returns.

    Attributes:
        labelled: images with masks, for the supervised branch.
        unlabelled: images whose masks are neither needed nor read; None if there are none.
        validation: images with masks, never trained on.
        class_names: name of each class; its length is the number of classes.
        ignore_index: mask value that counts neither in the loss nor in the mIoU.
        palette: RGB of each class, 0-255, for pictures; None takes matplotlib's.
        background_class: id of the class of everything that belongs to no other class.
            Image-level labels need it; None if the data set has no such class.
        channels: of every image; `build_datasets` sets it to ``data.channels``.
    """

    labelled: SegmentationDataset
    unlabelled: SegmentationDataset | None
    validation: SegmentationDataset
    class_names: Sequence[str]
    ignore_index: int = 255
    palette: Sequence[tuple[int, int, int]] | None = None
    background_class: int | None = None
    channels: int = 3

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
