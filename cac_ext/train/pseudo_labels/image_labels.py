"""Image-level labels: the classes that each unlabelled image shows."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from cac_ext.train.config import DataConfig, WeakConfig
from cac_ext.train.data import DatasetSplits, SegmentationDataset, known_mask
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import (
    line_hint,
    locate,
    read_lines,
    relative_name,
    split_columns,
)
from cac_ext.train.data.pseudo_label_files import unlabelled_images
from cac_ext.train.errors import ConfigError, DataError, listed
from cac_ext.train.runtime.progress import Progress


def foreground_classes(splits: DatasetSplits, data: DataConfig) -> list[int]:
    """Ids of the K - 1 classes that image-level labels can name: all except the background.

    Raises:
        ConfigError: the data has no background class.
    """
    if splits.background_class is None:
        raise ConfigError(
            f"the data set {data.name!r} has no background class, so image-level labels cannot "
            "become pseudo labels: no label would mark the pixels without any of an image's "
            "classes. If a class of custom data is the background, set data.background_class=ID; "
            "or give masks with weak.pseudo_labels=FOLDER"
        )
    return [k for k in range(splits.num_classes) if k != splits.background_class]


def read_image_labels(
    config: WeakConfig, data: DataConfig, splits: DatasetSplits, *, progress: bool = True
) -> Tensor:
    """Classes of every unlabelled image, ``[M, K - 1]`` float 0 or 1.

    Column ``c`` is the class ``foreground_classes(...)[c]``.

    The source is the list file ``weak.image_labels``. Its lines hold the name of an image, as in
    lists of images, and the ids of its classes: ``JPEGImages/2007_000032.jpg 1 15``. Without a list
    the source is the masks of the unlabelled images, and ``progress`` shows a progress bar; nothing
    but the classes is taken from the masks.

    Raises:
        ConfigError: there is neither a list nor a mask of an image; there is no background class.
        DataError: the list is missing, malformed, or lacks an image.
    """
    foreground = foreground_classes(splits, data)
    images = unlabelled_images(splits, "weak")
    if config.image_labels is not None:
        path = Path(config.image_labels).expanduser()
        return _from_list(path, data, images, splits)[:, foreground]
    labels = torch.zeros(len(images), splits.num_classes)
    indices = range(len(images))
    for index in Progress(indices, "image labels", unit="mask", leave=False, disable=not progress):
        mask = _known_mask(images, index)
        classes = mask[mask != splits.ignore_index].unique().long()
        labels[index, classes] = 1
    return labels[:, foreground]


def check_image_labels(config: WeakConfig, data: DataConfig, splits: DatasetSplits) -> None:
    """Raises as `read_image_labels`, but without a list reads only the first mask."""
    if config.image_labels is not None:
        require_images_of_classes(read_image_labels(config, data, splits), splits, data)
        return
    foreground_classes(splits, data)
    _known_mask(unlabelled_images(splits, "weak"), 0)


def require_images_of_classes(labels: Tensor, splits: DatasetSplits, data: DataConfig) -> None:
    """Checks that image-level labels ``[M, K - 1]`` name every class.

    Raises:
        DataError: they name no class.

    Warns:
        UserWarning: no image shows some classes.
    """
    names = [splits.class_names[k] for k in foreground_classes(splits, data)]
    absent = [names[c] for c in (labels.sum(0) == 0).nonzero().flatten()]
    if len(absent) == len(names):
        raise DataError(
            f"none of the {len(labels)} unlabelled images shows a class other than the background, "
            "so the image classifier has nothing to learn: check weak.image_labels and "
            "data.background_class"
        )
    if absent:
        warnings.warn(
            f"none of the {len(labels)} unlabelled images shows: {listed(absent)}. The image "
            "classifier cannot learn them, and no pseudo label will have these classes",
            stacklevel=3,
        )


def _known_mask(images: SegmentationDataset, index: int) -> Tensor:
    mask = known_mask(images, index)
    if mask is None:
        raise ConfigError(
            f"weak.image_labels is not given, and the unlabelled image {images[index]['name']} has "
            "no mask to read its classes from: set weak.image_labels to a file with lines "
            "'image id id ...'"
        )
    return mask


def _from_list(
    path: Path, data: DataConfig, images: SegmentationDataset, splits: DatasetSplits
) -> Tensor:
    """The classes of each image in a list, ``[M, K]`` float 0 or 1."""
    if not os.path.isfile(path) and data.root is not None:
        path = Path(data.root).expanduser() / path
    allowed = {str(class_id) for class_id in foreground_classes(splits, data)}
    given: dict[str, list[int]] = {}
    lines = read_lines(path, "file of weak.image_labels")
    for number, line in lines:
        name, *ids = split_columns(line)
        if not allowed.issuperset(ids):
            raise DataError(
                f"{path}, line {number}: needs an image and ids of 0 to {splits.num_classes - 1} "
                f"except the background, {splits.background_class}, but is {line!r}"
                f"{line_hint(line)}"
            )
        given[_same_name(name, images)] = [int(text) for text in ids]
    labels = torch.zeros(len(images), splits.num_classes)
    for index in range(len(images)):
        # The names of files are known without reading the images.
        name = (
            images.entries[index].name if isinstance(images, ImageFiles) else images[index]["name"]
        )
        if _same_name(name, images) not in given:
            hint = line_hint(lines[0][1]) if lines else ""
            raise DataError(f"{path} has no line for the unlabelled image {name}{hint}")
        labels[index, given[_same_name(name, images)]] = 1
    return labels


def _same_name(name: str, images: SegmentationDataset) -> str:
    """The name of an image in the form in which names are compared."""
    if isinstance(images, ImageFiles):
        name = relative_name(locate(name, images.root), images.root)
    return name.lstrip("/")
