"""Images and masks of a folder, named by list files.

A list file has a line "image mask" for each labelled image, paths relative to ``data.root`` (or
absolute), and a line "image" for each unlabelled one; a second column there is not looked at. Empty
lines and lines that begin with ``#`` are skipped. Paths with spaces: separate the columns by a tab.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as VF

from cac_ext.train.config import DataConfig
from cac_ext.train.data import DatasetSplits
from cac_ext.train.errors import ConfigError, DataError


class ListFolderDataset(Dataset):
    """The images of one list; see `cac_ext.train.data` for what a sample is.

    Args:
        root: folder to which the paths of the list are relative.
        list_file: see the module's docstring.
        with_masks: whether samples have a mask; each line must then name one.
        num_classes, ignore_index: mask ids must be below the one or be the other.

    Raises:
        DataError: the list is missing, empty or malformed, or a file that it names is missing.
            Reading a sample: the image or mask is broken, they differ in size, an id is out of
            range.
    """

    def __init__(
        self, root: Path, list_file: Path, *, with_masks: bool, num_classes: int, ignore_index: int
    ) -> None:
        self.with_masks = with_masks
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.entries = read_list(list_file, with_masks)
        self._paths = [tuple(root / part for part in entry) for entry in self.entries]
        for number, paths in enumerate(self._paths):
            for path in paths:
                if not path.is_file():
                    raise DataError(
                        f"{list_file} names {self.entries[number][0]}, but there is no file "
                        f"{path}; paths are relative to data.root={root}"
                    )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        image_path, *mask_path = self._paths[index]
        image = VF.pil_to_tensor(_read_image(image_path).convert("RGB"))  # [3, H, W]
        sample = {"image": tv_tensors.Image(image), "name": self.entries[index][0]}
        if self.with_masks:
            sample["mask"] = tv_tensors.Mask(self._read_mask(mask_path[0], image_path, image))
        return sample

    def _read_mask(self, path: Path, image_path: Path, image: torch.Tensor) -> torch.Tensor:
        picture = _read_image(path)
        if picture.mode not in ("L", "P", "I", "I;16", "1"):
            raise DataError(
                f"the mask {path} has colours (mode {picture.mode}), but must be a single-channel "
                "picture of class ids"
            )
        mask = torch.from_numpy(np.array(picture).astype(np.int64))  # [H, W]
        if mask.shape != image.shape[1:]:
            raise DataError(
                f"the mask {path} is {mask.shape[1]} x {mask.shape[0]} pixels, but its image "
                f"{image_path} is {image.shape[2]} x {image.shape[1]}"
            )
        wrong = (mask >= self.num_classes) & (mask != self.ignore_index)
        if wrong.any():
            ids = ", ".join(map(str, mask[wrong].unique().tolist()[:8]))
            raise DataError(
                f"the mask {path} holds the ids {ids}, but data.num_classes is {self.num_classes} "
                f"(ids 0 to {self.num_classes - 1}) and data.ignore_index {self.ignore_index}"
            )
        return mask


def read_list(list_file: Path, with_masks: bool) -> list[tuple[str, ...]]:
    """The entries of a list file: (image, mask), or (image,) without masks."""
    if not list_file.is_file():
        raise DataError(f"there is no list file {list_file}")
    entries = []
    for number, line in enumerate(list_file.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        if with_masks and len(columns) != 2:
            raise DataError(
                f"{list_file}, line {number}: needs 'image mask', but has {len(columns)} columns: "
                f"{line!r}"
            )
        entries.append(tuple(columns[:2] if with_masks else columns[:1]))
    if not entries:
        raise DataError(f"the list {list_file} is empty")
    return entries


def build(config: DataConfig) -> DatasetSplits:
    """The splits that ``data.root`` and the three lists describe."""
    needed = {
        "data.root": config.root,
        "data.labelled_list": config.labelled_list,
        "data.validation_list": config.validation_list,
        "data.num_classes": config.num_classes,
    }
    missing = [key for key, value in needed.items() if value is None]
    if missing:
        raise ConfigError(
            f"the data set 'folder' needs {', '.join(missing)}: give them in the YAML file or as "
            "key=value on the command line"
        )
    names = config.class_names or [f"class {index}" for index in range(config.num_classes)]
    if len(names) != config.num_classes:
        raise ConfigError(
            f"data.class_names has {len(names)} names, but data.num_classes is {config.num_classes}"
        )
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise ConfigError(f"data.root: there is no folder {root}")

    def dataset(list_name: str, with_masks: bool) -> ListFolderDataset:
        path = Path(list_name).expanduser()
        return ListFolderDataset(
            root,
            path if path.is_file() else root / path,  # as given, or beside the images
            with_masks=with_masks,
            num_classes=config.num_classes,
            ignore_index=config.ignore_index,
        )

    return DatasetSplits(
        labelled=dataset(config.labelled_list, True),
        unlabelled=None
        if config.unlabelled_list is None
        else dataset(config.unlabelled_list, False),
        validation=dataset(config.validation_list, True),
        class_names=names,
        ignore_index=config.ignore_index,
    )


def _read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
