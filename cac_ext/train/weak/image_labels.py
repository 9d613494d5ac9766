"""Image-level labels: which classes each unlabelled image shows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cac_ext.train.config import DataConfig, WeakConfig
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.image_files import ImageFiles
from cac_ext.train.data.pseudo_label_files import unlabelled_images
from cac_ext.train.errors import ConfigError, DataError


def read_image_labels(config: WeakConfig, data: DataConfig, splits: DatasetSplits) -> Tensor:
    """Classes of every unlabelled image, ``[M, K - 1]`` float 0 or 1; column ``c`` is class c + 1.

    From the list file ``weak.image_labels``, whose lines are an image's name, as lists of images
    give it, and the ids of its classes: ``JPEGImages/2007_000032.jpg 1 15``. Where no list is
    given, from the unlabelled images' masks, of which nothing else is used.

    Raises:
        ConfigError: no list, and a mask that is not known.
        DataError: the list is missing, malformed, or lacks an image.
    """
    images = unlabelled_images(splits, "weak")
    if config.image_labels is not None:
        return _from_list(Path(config.image_labels).expanduser(), data, images, splits)
    labels = torch.zeros(len(images), splits.num_classes)
    known_mask = getattr(images, "known_mask", lambda index: None)
    for index in range(len(images)):
        mask = known_mask(index)
        if mask is None:
            raise ConfigError(
                f"weak.image_labels is not given, and the unlabelled image "
                f"{images[index]['name']} has no mask from which its classes could be read: name a "
                "file of lines 'image id id ...'"
            )
        classes = mask[mask != splits.ignore_index].unique().long()
        labels[index, classes] = 1
    return labels[:, 1:]


def _from_list(path: Path, data: DataConfig, images: Dataset, splits: DatasetSplits) -> Tensor:
    if not path.is_file() and data.root is not None:
        path = Path(data.root).expanduser() / path
    if not path.is_file():
        raise DataError(f"weak.image_labels: there is no file {path}")
    allowed = {str(class_id) for class_id in range(1, splits.num_classes)}
    given: dict[str, list[int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *ids = line.split("\t") if "\t" in line else line.split()
        if not allowed.issuperset(ids):
            raise DataError(
                f"{path}, line {number}: needs an image and ids of 1 to {splits.num_classes - 1}, "
                f"but is {line!r}"
            )
        given[name.lstrip("/")] = [int(text) for text in ids]
    labels = torch.zeros(len(images), splits.num_classes)
    for index in range(len(images)):
        # Names without reading the images, where that can be had.
        named = isinstance(images, ImageFiles)
        name = images.entries[index].name if named else images[index]["name"]
        if name.lstrip("/") not in given:
            raise DataError(f"{path} has no line of the unlabelled image {name}")
        labels[index, given[name.lstrip("/")]] = 1
    return labels[:, 1:]
