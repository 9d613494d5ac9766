"""Images and masks in files: the data set behind every reader of a layout on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from cac_ext.train.data.list_file import Entry, line_hint
from cac_ext.train.data.pictures import file_fault, read_ids, read_image, read_size
from cac_ext.train.errors import DataError


class ImageFiles(Dataset):
    """The images that entries name; see `cac_ext.train.data` for what a sample is.

    Args:
        root: of the data set, for errors and for writing lists.
        entries: see `list_file.Entry`.
        with_masks: whether samples have a mask. Without, no mask is ever looked for.
        num_classes, ignore_index: mask ids must be below the one or be the other.
        max_pixels: that an image may have; None: any number.

    Reading a sample raises DataError, which names the file and where it is listed: the image or
    mask is missing or broken, they differ in size, an id is out of range.
    """

    def __init__(
        self,
        root: Path,
        entries: Sequence[Entry],
        *,
        with_masks: bool,
        num_classes: int,
        ignore_index: int,
        max_pixels: int | None = None,
    ) -> None:
        self.root = root
        self.entries = list(entries)
        self.with_masks = with_masks
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        try:
            image = read_image(entry.image, self.max_pixels)  # [3, H, W]
            sample = {"image": tv_tensors.Image(image), "name": entry.name}
            if self.with_masks:
                sample["mask"] = tv_tensors.Mask(self._read_mask(entry, image.shape[1:]))
        except DataError as error:
            raise self._listed(entry, error) from error.__cause__
        return sample

    def known_mask(self, index: int) -> Tensor | None:
        """The mask of an image, also where samples have none; None if there is no such file."""
        entry = self.entries[index]
        if entry.mask is None or not os.path.exists(entry.mask):
            return None
        try:
            # The size stands in the file's header: the image need not be decoded for it.
            return self._read_mask(entry, read_size(entry.image))
        except DataError as error:
            raise self._listed(entry, error) from error.__cause__

    def missing_files(self) -> list[str]:
        """A sentence for each file that is listed, needed and not there."""
        return [
            f"{entry.source}: {fault}{line_hint(entry.line)}"
            for entry in self.entries
            for kind, path in (("image", entry.image), ("mask", entry.mask))
            if (kind == "image" or self.with_masks) and (fault := file_fault(path, kind))
        ]

    def class_ids(self, path: Path, ids: np.ndarray) -> np.ndarray:
        """Ids of a mask file to class ids, ``[H, W]``; a layout may number them otherwise."""
        return ids

    def _read_mask(self, entry: Entry, size: tuple[int, int]) -> Tensor:
        """Class ids ``[H, W]``, uint8 where the file has 8 bits or fewer, else int64.

        ``size`` is the image's H, W.
        """
        path = entry.mask
        ids = self.class_ids(path, read_ids(path, size, entry.image))
        wrong = ((ids < 0) | (ids >= self.num_classes)) & (ids != self.ignore_index)
        if wrong.any():
            found = ", ".join(map(str, np.unique(ids[wrong])[:8]))
            raise DataError(
                f"the mask {path} holds the ids {found} in {int(wrong.sum())} pixels, but "
                f"data.num_classes is {self.num_classes} (ids 0 to {self.num_classes - 1}) and "
                f"data.ignore_index {self.ignore_index}"
            )
        return torch.from_numpy(ids)

    def _listed(self, entry: Entry, error: DataError) -> DataError:
        """The error with the place in the list; where a file is missing, what the line lacks."""
        files = (entry.image, entry.mask) if self.with_masks else (entry.image,)
        there = all(file is None or os.path.exists(file) for file in files)
        return DataError(f"{entry.source}: {error}{'' if there else line_hint(entry.line)}")
