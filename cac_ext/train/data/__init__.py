"""Data: the contract of a data set, and the registry of those shipped.

The way of an image:

    data set [i] -> sample -> stream.Stream (seeded order, seeded augmentation, endless)
        labelled:   augment.LabelledAugment -> image [3, S, S], mask [S, S]
        unlabelled: augment.CropPairAugment -> view1, view2 [3, S, S] and the overlap's indices

A data set is a map-style ``torch.utils.data.Dataset``: ``len(dataset)`` and ``dataset[i]``, which
returns a sample, a dict of

* ``"image"``: uint8 tensor ``[3, H, W]``; sizes may differ by image;
* ``"mask"``: integer tensor ``[H, W]``, class ids or ``ignore_index``. Unlabelled images have none,
  and nobody needs one;
* ``"name"``: str, to name the image in errors, pictures and predictions.

A data set of unlabelled images may have a method ``known_mask(i)``: the mask of an image, or None.
It is asked only for image-level labels (`weak/`), where no list gives them, and to tell how good
pseudo labels and negatives are (`truth.py`).

``dataset[i]`` must not depend on anything but ``i``: augmentation and order belong to the stream,
which makes a run repeatable and resumable whatever the number of workers or processes.

What a picture in a file may be, and how it is read, is said in `pictures`.

To add a data set, write ``build(config: DataConfig) -> DatasetSplits`` in a module of this package
and name it in `DATASETS`; for images in files, `file_splits` does nearly all of it. Your own needs
no change here. ``data.name: my_package.my_module:build`` names such a function, and
``data.name: my_package.my_module:MyDataset`` a data set class, which is called as
``MyDataset(config, split)`` with the `DataConfig` and "labelled", "unlabelled" or "validation", and
has the attributes ``class_names`` (else ``data.class_names`` must be given) and, if wanted,
``ignore_index``, ``palette`` and ``background_class``. Where there are no unlabelled images, its
length for them is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from cac_ext.train.config import DataConfig
from cac_ext.train.config.bounds import check_class_names
from cac_ext.train.errors import ConfigError, listed
from cac_ext.train.runtime.registry import find_builder

#: ``data.name`` -> "module:function" of its builder, imported only when asked for.
DATASETS = {
    "synthetic": "cac_ext.train.data.synthetic:build",
    "folder": "cac_ext.train.data.list_folder:build",
    "voc": "cac_ext.train.data.voc:build",
    "cityscapes": "cac_ext.train.data.cityscapes:build",
    "camvid": "cac_ext.train.data.camvid:build",
}


@dataclass(frozen=True)
class DatasetSplits:
    """What a data set's ``build`` returns.

    Attributes:
        labelled: images with masks, for the supervised branch.
        unlabelled: images, masks neither needed nor looked at; None if there are none.
        validation: images with masks, never trained on.
        class_names: name of each class; its length is the number of classes.
        ignore_index: mask value that counts neither in the loss nor in the mIoU.
        palette: RGB of each class, 0-255, for pictures; None takes matplotlib's.
        background_class: id of the class of all that belongs to no other, which image-level labels
            (`weak/`) rest on; None where each class is one like the others.
    """

    labelled: Dataset
    unlabelled: Dataset | None
    validation: Dataset
    class_names: Sequence[str]
    ignore_index: int = 255
    palette: Sequence[tuple[int, int, int]] | None = None
    background_class: int | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def build_datasets(config: DataConfig, *, check: bool = True) -> DatasetSplits:
    """The data that ``config.name`` names.

    Args:
        config: the section ``data`` of a configuration.
        check: find now what is cheap to find (`check.quick_check`): a missing file, an empty list,
            samples that are not what is promised above.

    Raises:
        ConfigError: the name is neither registered nor an importable "package.module:name", or
            the settings do not fit the data set.
        DataError: a list or file cannot be used.
    """
    from cac_ext.train.data.check import quick_check  # it needs DatasetSplits

    builder = find_builder(config.name, DATASETS, "data.name")
    if isinstance(builder, type) and issubclass(builder, Dataset):
        splits = _splits_of_class(builder, config)
    else:
        splits = builder(config)
    if not isinstance(splits, DatasetSplits):
        raise ConfigError(
            f"data.name: {config.name} must return a cac_ext.train.data.DatasetSplits, but "
            f"returned {type(splits).__name__}"
        )
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
    """ConfigError where names, number and colours of the classes cannot be used, or contradict."""
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
        colours = [list(colour) for colour in splits.palette]
        if len(colours) != len(names) or not all(
            len(colour) == 3 and all(0 <= part <= 255 for part in colour) for colour in colours
        ):
            raise ConfigError(
                f"the palette of the data set {config.name!r} must be {len(names)} colours, one "
                f"for each class, of three numbers within 0 and 255, but is {listed(colours)}"
            )


def _splits_of_class(dataset: type[Dataset], config: DataConfig) -> DatasetSplits:
    """The splits of a user's data set class, see the module's docstring."""
    class_names = getattr(dataset, "class_names", None) or config.class_names
    if not class_names:
        raise ConfigError(
            f"data.name: the class {config.name} needs an attribute class_names, a name for each "
            "class, or the configuration data.class_names"
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


__all__ = ["DATASETS", "DatasetSplits", "build_datasets"]
