"""Images and masks in files: the data set that every layout on disk is read by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors

from cac_ext.train.data.contract import Sample, SegmentationDataset
from cac_ext.train.data.files.images import RGB_FILES, ImageForm, read_image, read_size
from cac_ext.train.data.files.list_file import Entry, line_hint
from cac_ext.train.data.files.mask_colors import MaskColors
from cac_ext.train.data.files.pictures import file_fault, read_ids
from cac_ext.train.data.files.stored_samples import Ids
from cac_ext.train.errors import DataError
from cac_ext.train.runtime.bands import bands


class ImageFiles(SegmentationDataset):
    """The images that entries name.

    Args:
        root: of the data set, for errors and for writing lists.
        entries: see `list_file.Entry`.
        with_masks: whether samples have a mask. If not, mask files are never opened.
        num_classes, ignore_index: a mask id must be below ``num_classes`` or be ``ignore_index``.
        max_pixels: most pixels of an image; None: any number.
        mask_colors: of the classes, if masks hold colors in place of ids.
        form: channels and range of the image files.

    Reading a sample raises a DataError that names the file and its line in the list if the image or
    mask is missing or broken, their sizes differ, or an id is out of range.
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
        mask_colors: MaskColors | None = None,
        form: ImageForm = RGB_FILES,
    ) -> None:
        self.root = root
        self.entries = list(entries)
        self.with_masks = with_masks
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.max_pixels = max_pixels
        self.mask_colors = mask_colors
        self.form = form

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        try:
            image = read_image(entry.image, self.max_pixels, self.form)  # [C, H, W]
            sample: Sample = {"image": tv_tensors.Image(image), "name": entry.name}
            if self.with_masks:
                size = (image.shape[1], image.shape[2])
                sample["mask"] = tv_tensors.Mask(self._read_mask(entry, size))
        except DataError as error:
            raise self._listed(entry, error) from error.__cause__
        return sample

    def known_mask(self, index: int) -> Tensor | None:
        """The mask of an image, even if samples have none; None if there is no such file."""
        entry = self.entries[index]
        if entry.mask is None or not os.path.exists(entry.mask):
            return None
        try:
            # The size is in the file's header: the image is not decoded.
            return self._read_mask(entry, read_size(entry.image, self.form))
        except DataError as error:
            raise self._listed(entry, error) from error.__cause__

    def missing_files(self) -> list[str]:
        """A sentence for each listed file that is needed and missing."""
        return [
            f"{entry.source}: {fault}{line_hint(entry.line)}"
            for entry in self.entries
            for kind, path in (("image", entry.image), ("mask", entry.mask))
            if path is not None
            and (kind == "image" or self.with_masks)
            and (fault := file_fault(path, kind))
        ]

    def class_ids(self, path: Path, ids: Ids) -> Ids:
        """Ids of a mask file to class ids, ``[H, W]``; a subclass may read other numbers."""
        return ids

    def _read_mask(self, entry: Entry, size: tuple[int, int]) -> Tensor:
        """Class ids ``[H, W]``, uint8 if the file has up to 8 bits, else int64.

        ``size`` is the image's H, W.
        """
        path = entry.mask
        if path is None:
            raise DataError(f"the image {entry.image} has no mask: name one in its list")
        stored = read_ids(path, size, entry.image, colors=self.mask_colors)
        ids = self.class_ids(path, stored)
        if any(self._unknown(ids[rows]).any() for rows in bands(*ids.shape)):
            wrong = self._unknown(ids)
            found = ", ".join(map(str, np.unique(ids[wrong])[:8]))
            raise DataError(
                f"the mask {path} holds the ids {found} in {int(wrong.sum())} pixels, but "
                f"data.num_classes is {self.num_classes} (ids 0 to {self.num_classes - 1}) and "
                f"data.ignore_index {self.ignore_index}"
            )
        return torch.from_numpy(ids)

    def _unknown(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Where ids are neither of a class nor ignored."""
        return ((ids < 0) | (ids >= self.num_classes)) & (ids != self.ignore_index)

    def _listed(self, entry: Entry, error: DataError) -> DataError:
        """The error with the line in the list and, if a file is missing, a hint about the line."""
        files = (entry.image, entry.mask) if self.with_masks else (entry.image,)
        there = all(file is None or os.path.exists(file) for file in files)
        return DataError(f"{entry.source}: {error}{'' if there else line_hint(entry.line)}")
