"""Cityscapes with fine annotations: 2,975 training and 500 validation images, 19 classes.

    cityscapes/                     data.root
        leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
        gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelTrainIds.png

If there is no ``labelTrainIds.png``, which the data set's own tools make, the ``labelIds.png`` of
the download is read and its ids are turned into train ids.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets import Cityscapes

from cac_ext.train.config import DataConfig
from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.data.datasets.file_splits import (
    FileLayout,
    build_file_splits,
    find_root,
    require_fixed_classes,
)
from cac_ext.train.data.files.find_images import require_images
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import Entry, relative_name
from cac_ext.train.data.files.stored_samples import Ids
from cac_ext.train.errors import DataError

_IGNORED = 255
_CLASSES = sorted(
    (known for known in Cityscapes.classes if 0 <= known.train_id < _IGNORED),
    key=lambda known: known.train_id,
)
CLASS_NAMES = tuple(known.name for known in _CLASSES)
PALETTE = tuple(known.color for known in _CLASSES)

_IMAGE_END = "_leftImg8bit.png"
_TRAIN_IDS_END, _IDS_END = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
_TRAIN_ID = np.full(256, _IGNORED, np.uint8)  # [label id] -> train id
for _known in _CLASSES:
    _TRAIN_ID[_known.id] = _known.train_id


class CityscapesFiles(ImageFiles):
    """`ImageFiles` that also read masks of label ids."""

    def class_ids(self, path: Path, ids: Ids) -> Ids:
        if not path.name.endswith(_IDS_END):
            return ids
        unknown = (ids < -1) | (ids >= len(_TRAIN_ID))  # -1 is the id of a license plate: ignored
        if unknown.any():
            raise DataError(
                f"the mask {path} holds the label id {ids[unknown][0]}, but Cityscapes has -1 to "
                f"{max(known.id for known in Cityscapes.classes)}"
            )
        return _TRAIN_ID[ids]


def build(config: DataConfig) -> DatasetSplits:
    """Cityscapes: 19 classes."""
    require_fixed_classes(config, CLASS_NAMES)
    root = find_root(config, ["leftImg8bit"])
    layout = FileLayout(
        root,
        CLASS_NAMES,
        palette=PALETTE,
        train=partial(_entries, root, "train"),
        validation=partial(_entries, root, "val"),
        repair=_existing_mask,
        dataset=CityscapesFiles,
    )
    return build_file_splits(config, layout)


def _entries(root: Path, part: str) -> list[Entry]:
    folder = root / "leftImg8bit" / part
    entries = []
    for image in require_images(folder, f"*/*{_IMAGE_END}"):
        stem = image.name.removesuffix(_IMAGE_END)
        mask = root / "gtFine" / part / image.parent.name / f"{stem}{_TRAIN_IDS_END}"
        entries.append(_existing_mask(Entry(relative_name(image, root), image, mask, str(folder))))
    return entries


def _existing_mask(entry: Entry) -> Entry:
    """The entry with the mask of label ids if there is none of train ids."""
    if entry.mask is None or os.path.isfile(entry.mask):
        return entry
    of_ids = entry.mask.with_name(entry.mask.name.replace(_TRAIN_IDS_END, _IDS_END))
    return replace(entry, mask=of_ids) if os.path.isfile(of_ids) else entry
