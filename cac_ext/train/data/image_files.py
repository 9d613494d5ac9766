"""Images and masks in files: the data set behind every reader of a layout on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as VF

from cac_ext.train.data.list_file import Entry
from cac_ext.train.errors import DataError

_ID_MODES = ("L", "P", "I", "I;16", "1")  # single-channel pictures; of a palette's, the indices


class ImageFiles(Dataset):
    """The images that entries name; see `cac_ext.train.data` for what a sample is.

    Args:
        root: of the data set, for errors and for writing lists.
        entries: see `list_file.Entry`.
        with_masks: whether samples have a mask. Without, no mask is ever looked for.
        num_classes, ignore_index: mask ids must be below the one or be the other.

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
    ) -> None:
        self.root = root
        self.entries = list(entries)
        self.with_masks = with_masks
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        entry = self.entries[index]
        try:
            image = VF.pil_to_tensor(_open(entry.image, "image").convert("RGB"))  # [3, H, W]
            sample = {"image": tv_tensors.Image(image), "name": entry.name}
            if self.with_masks:
                sample["mask"] = tv_tensors.Mask(self._read_mask(entry, image.shape[1:]))
        except DataError as error:
            raise DataError(f"{entry.source}: {error}") from error.__cause__
        return sample

    def known_mask(self, index: int) -> Tensor | None:
        """The mask of an image, also where samples have none; None if there is no such file."""
        entry = self.entries[index]
        if entry.mask is None or not entry.mask.is_file():
            return None
        try:
            # The size stands in the file's header: the image need not be decoded for it.
            return self._read_mask(entry, _open(entry.image, "image", decode=False).size[::-1])
        except DataError as error:
            raise DataError(f"{entry.source}: {error}") from error.__cause__

    def missing_files(self) -> list[str]:
        """A sentence for each file that is listed, needed and not there."""
        return [
            f"{entry.source}: there is no {kind} {path}"
            for entry in self.entries
            for kind, path in (("image", entry.image), ("mask", entry.mask))
            if (kind == "image" or self.with_masks) and not path.is_file()
        ]

    def class_ids(self, path: Path, ids: np.ndarray) -> np.ndarray:
        """Ids of a mask file to class ids, ``[H, W]``; a layout may number them otherwise."""
        return ids

    def _read_mask(self, entry: Entry, size: tuple[int, int]) -> Tensor:
        """Class ids ``[H, W]``, uint8 where the file has 8 bits or fewer, else int64.

        ``size`` is the image's H, W.
        """
        path = entry.mask
        picture = _open(path, "mask")
        if picture.mode not in _ID_MODES:
            raise DataError(
                f"the mask {path} has colours (mode {picture.mode}), but must be a single-channel "
                "picture of class ids"
            )
        stored = np.array(picture)  # [H, W] bool, uint8, uint16 or int32
        stored = stored.astype(np.uint8 if stored.itemsize == 1 else np.int64)
        ids = self.class_ids(path, stored)
        if ids.shape != tuple(size):
            raise DataError(
                f"the mask {path} is {ids.shape[1]} x {ids.shape[0]} pixels, but its image "
                f"{entry.image} is {size[1]} x {size[0]}"
            )
        wrong = ((ids < 0) | (ids >= self.num_classes)) & (ids != self.ignore_index)
        if wrong.any():
            found = ", ".join(map(str, np.unique(ids[wrong])[:8]))
            raise DataError(
                f"the mask {path} holds the ids {found} in {int(wrong.sum())} pixels, but "
                f"data.num_classes is {self.num_classes} (ids 0 to {self.num_classes - 1}) and "
                f"data.ignore_index {self.ignore_index}"
            )
        return torch.from_numpy(ids)


def _open(path: Path, kind: str, *, decode: bool = True) -> Image.Image:
    if not path.is_file():
        raise DataError(f"there is no {kind} {path}")
    try:
        with Image.open(path) as picture:
            if decode:
                picture.load()
            return picture
    except Exception as error:  # of a broken file, each of Pillow's formats raises its own
        raise DataError(f"cannot read the {kind} {path}: {error}") from error
