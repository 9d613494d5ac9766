"""CamVid in the 480 x 360 form with 11 classes: 367 training and 101 validation images.

Either of two layouts below data.root:

    images/*.jpg  masks/*.png  lists/{train,val}.txt      "image mask" per line; 255 is ignored
    {train,val}/*.png  {train,val}annot/*.png             as SegNet ships it; id 11 is ignored
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

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
from cac_ext.train.data.files.list_file import Entry, read_list, relative_name
from cac_ext.train.data.files.stored_samples import Ids

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
_MASKS_END = "annot"  # of SegNet's folders of masks


class CamVidFiles(ImageFiles):
    """`ImageFiles` that also read SegNet's masks, whose id 11 stands for no class."""

    def class_ids(self, path: Path, ids: Ids) -> Ids:
        if not path.parent.name.endswith(_MASKS_END):
            return ids
        return np.where(ids == len(CLASS_NAMES), ids.dtype.type(self.ignore_index), ids)


def build(config: DataConfig) -> DatasetSplits:
    """CamVid: 11 classes."""
    require_fixed_classes(config, CLASS_NAMES)
    root = find_root(config, ["lists", f"train{_MASKS_END}"])
    layout = FileLayout(
        root,
        CLASS_NAMES,
        palette=PALETTE,
        train=partial(_entries, root, "train"),
        validation=partial(_entries, root, "val"),
        dataset=CamVidFiles,
    )
    return build_file_splits(config, layout)


def _entries(root: Path, part: str) -> list[Entry]:
    if (root / "lists").is_dir():
        return read_list(root / "lists" / f"{part}.txt", root, with_masks=True)
    folder = root / part
    masks = root / f"{part}{_MASKS_END}"
    return [
        Entry(relative_name(image, root), image, masks / image.name, str(folder))
        for image in require_images(folder, "*.png")
    ]
