"""Data: the contract of a data set, and the registry of those shipped.

The way of an image:

    data set [i] -> sample -> stream.Stream (seeded order, seeded augmentation, endless)
        labelled:   augment.LabelledAugment -> image [3, S, S], mask [S, S]
        unlabelled: augment.CropPairAugment -> view1, view2 [3, S, S] and the overlap's indices

A data set is a map-style ``torch.utils.data.Dataset``: ``len(dataset)`` and ``dataset[i]``, which
returns a sample, a dict of

* ``"image"``: `torchvision.tv_tensors.Image`, uint8 ``[3, H, W]``; sizes may differ by image;
* ``"mask"``: `torchvision.tv_tensors.Mask`, uint8 or int64 ``[H, W]``, class ids or
  ``ignore_index``. Unlabelled images have none, and nobody asks for one;
* ``"name"``: str, to name the image in errors, pictures and predictions.

``dataset[i]`` must not depend on anything but ``i``: augmentation and order belong to the stream,
which makes a run repeatable and resumable whatever the number of workers or processes.

To add a data set, write ``build(config: DataConfig) -> DatasetSplits`` in a module of this package
and name it in `DATASETS`. Your own needs no change here: ``data.name: my_package.my_module:build``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import Dataset

from cac_ext.train.config import DataConfig
from cac_ext.train.registry import find_builder

#: ``data.name`` -> "module:function" of its builder, imported only when asked for.
DATASETS = {
    "synthetic": "cac_ext.train.data.synthetic:build",
    "folder": "cac_ext.train.data.list_folder:build",
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
    """

    labelled: Dataset
    unlabelled: Dataset | None
    validation: Dataset
    class_names: Sequence[str]
    ignore_index: int = 255
    palette: Sequence[tuple[int, int, int]] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def build_datasets(config: DataConfig) -> DatasetSplits:
    """The data that ``config.name`` names.

    Raises:
        ConfigError: the name is neither registered nor an importable "package.module:function".
    """
    return find_builder(config.name, DATASETS, "data.name")(config)


__all__ = ["DATASETS", "DatasetSplits", "build_datasets"]
