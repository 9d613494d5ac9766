"""Data: the contract of a data set, the registry of those shipped, and the way to a batch.

The way of an image:

    data set [i] -> sample -> stream.Stream (seeded order, seeded augmentation, endless)
        labelled:   augment.LabelledAugment      -> image [3, S, S], mask [S, S]
        unlabelled: augment.CropPairAugment      -> two views [3, S, S], positions of the overlap
                    whole_crops.WholeCropAugment -> one crop, weakly and strongly augmented
    -> batches.collate_* -> batch

Beside it:

    datasets/   the data sets shipped: what they are, where their files lie, which are labelled
    files/      lists of files; images, masks and ids read from them
    checks/     faults found before a run

A data set (`SegmentationDataset`) has ``len(dataset)`` and ``dataset[i]``, as a map-style
``torch.utils.data.Dataset`` does. ``dataset[i]`` returns a `Sample`, a dict of

* ``"image"``: uint8 tensor ``[C, H, W]`` with the C of ``data.channels``, 3 by default; sizes may
  differ by image;
* ``"mask"``: integer tensor ``[H, W]``, class ids or ``ignore_index``. Unlabelled images need none;
* ``"name"``: str, names the image in errors, pictures and predictions.

A data set of unlabelled images may have a method ``known_mask(i)``: the mask of an image, or None.
It serves image-level labels (`pseudo_labels/image_labels.py`) that no list gives, and measures how
good pseudo labels and negatives are (`truth.py`).

``dataset[i]`` must depend on ``i`` alone: augmentation and order belong to the stream, which makes
a run repeatable and resumable with any number of workers or processes.

`files.pictures` says which pictures are read from files, and how.

To add a data set, write ``build(config: DataConfig) -> DatasetSplits`` in a module of `datasets`
and name it in `DATASETS`; for images in files, `datasets.file_splits` does nearly all of it.

A custom data set needs no change here. ``data.name: my_package.my_module:build`` names such a
function. ``data.name: my_package.my_module:MyDataset`` names a data set class. It is called as
``MyDataset(config, split)`` with the `DataConfig` and "labelled", "unlabelled" or "validation"; its
length is 0 if there are no unlabelled images. It has the attribute ``class_names`` (otherwise
``data.class_names`` must be given) and may have ``ignore_index``, ``palette`` and
``background_class``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cac_ext.train.config import DataConfig
from cac_ext.train.config.checks import check_class_names
from cac_ext.train.data.checks.check import quick_check
from cac_ext.train.data.contract import (
    DatasetSplits,
    Sample,
    SegmentationDataset,
    known_mask,
)
from cac_ext.train.errors import ConfigError, listed
from cac_ext.train.runtime.registry import find_builder

#: ``data.name`` -> "module:function" of its builder, imported when a configuration names it.
DATASETS = {
    "synthetic": "cac_ext.train.data.datasets.synthetic:build",
    "folder": "cac_ext.train.data.datasets.folder:build",
    "voc": "cac_ext.train.data.datasets.voc:build",
    "cityscapes": "cac_ext.train.data.datasets.cityscapes:build",
    "camvid": "cac_ext.train.data.datasets.camvid:build",
}


def build_datasets(config: DataConfig, *, check: bool = True) -> DatasetSplits:
    """The data that ``config.name`` names.

    Args:
        config: the section ``data`` of a configuration.
        check: look for the faults that cost little to find (`checks.check.quick_check`): a missing
            file, an empty list, samples that break the contract above.

    Raises:
        ConfigError: the name is neither registered nor an importable "package.module:name", or
            the settings do not fit the data set.
        DataError: a list or file cannot be used.
    """
    builder = find_builder(config.name, DATASETS, "data.name")
    if isinstance(builder, type) and hasattr(builder, "__getitem__"):
        splits = _splits_of_class(builder, config)
    else:
        splits = builder(config)
    if not isinstance(splits, DatasetSplits):
        raise ConfigError(
            f"data.name: {config.name} must return a cac_ext.train.data.DatasetSplits, but "
            f"returned {type(splits).__name__}"
        )
    splits = replace(splits, channels=config.channels)
    _require_classes(splits, config)
    background = splits.background_class
    if background is not None and not 0 <= background < splits.num_classes:
        raise ConfigError(
            f"data.background_class is {background}, but the {splits.num_classes} classes of "
            f"{config.name!r} are 0 to {splits.num_classes - 1}"
        )
    if check:
        quick_check(splits)
    return splits


def _require_classes(splits: DatasetSplits, config: DataConfig) -> None:
    """ConfigError where names, number and colors of the classes cannot be used, or contradict."""
    names = list(splits.class_names)
    check_class_names(names, f"the class names of the data set {config.name!r}")
    if len(names) < 2:
        raise ConfigError(
            f"the data set {config.name!r} has {len(names)} class, and one alone leaves nothing to "
            "tell apart: the background is a class too; name it and store its own id in the masks"
        )
    if config.num_classes not in (None, len(names)):
        raise ConfigError(
            f"data.num_classes is {config.num_classes}, but the data set {config.name!r} has "
            f"{len(names)} classes: {listed(names)}"
        )
    if config.class_names is not None and list(config.class_names) != names:
        raise ConfigError(
            f"data.class_names is {listed(config.class_names)}, but the classes of the data set "
            f"{config.name!r} are {listed(names)}: leave it out"
        )
    if splits.palette is not None:
        colors = [list(color) for color in splits.palette]
        if len(colors) != len(names) or not all(
            len(color) == 3 and all(0 <= part <= 255 for part in color) for color in colors
        ):
            raise ConfigError(
                f"the palette of the data set {config.name!r} must be {len(names)} colors, one "
                f"for each class, of three numbers within 0 and 255, but is {listed(colors)}"
            )


def _splits_of_class(
    dataset: Callable[[DataConfig, str], SegmentationDataset], config: DataConfig
) -> DatasetSplits:
    """The splits of a custom data set class; see the module's docstring."""
    class_names = getattr(dataset, "class_names", None) or config.class_names
    if not class_names:
        raise ConfigError(
            f"data.name: the class {config.name} has no attribute class_names, and the "
            "configuration no data.class_names: give a name for each class in either"
        )
    labelled, unlabelled, validation = (
        dataset(config, split) for split in ("labelled", "unlabelled", "validation")
    )
    return DatasetSplits(
        labelled=labelled,
        unlabelled=unlabelled if len(unlabelled) else None,
        validation=validation,
        class_names=class_names,
        ignore_index=getattr(dataset, "ignore_index", config.ignore_index),
        palette=getattr(dataset, "palette", None),
        background_class=getattr(dataset, "background_class", config.background_class),
    )


__all__ = [
    "DATASETS",
    "DatasetSplits",
    "Sample",
    "SegmentationDataset",
    "build_datasets",
    "known_mask",
]
