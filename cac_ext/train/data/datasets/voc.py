"""PASCAL VOC 2012, with its own masks or with those of SBD too (10,582 training images).

    VOC2012/                        data.root, or a folder that holds it or VOCdevkit/
        JPEGImages/2007_000032.jpg
        SegmentationClass/2007_000032.png        VOC's own: ids 0 to 20, 255 on borders
        SegmentationClassAug/2007_000032.png     the same and SBD's; `cac-ext data sbd` makes it
        ImageSets/Segmentation/val.txt           an id a line: the 1,449 validation images
        ImageSets/Segmentation/train.txt         VOC's own 1,464 training images
        ImageSets/Segmentation/trainaug.txt      optional

A mask that is missing in SegmentationClassAug is taken from SegmentationClass. Training images are
those of ``trainaug.txt`` (or ``train_aug.txt``). Without such a list they are all images with a
mask in SegmentationClassAug, except validation images; without that folder, and with a warning,
those of ``train.txt``. A list in the configuration has "image mask" per line or, as VOC's own, an
id per line.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

from cac_ext.train.config import DataConfig
from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.data.datasets.file_splits import (
    FileLayout,
    build_file_splits,
    find_root,
    require_fixed_classes,
)
from cac_ext.train.data.files.find_images import visible_files
from cac_ext.train.data.files.list_file import Entry, read_list
from cac_ext.train.errors import DataError

CLASS_NAMES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
_BACKGROUND = 0
#: Folders of VOC2012, and its place below a folder that may be given as the root.
IMAGES, MASKS, OWN_MASKS = "JPEGImages", "SegmentationClassAug", "SegmentationClass"
PLACES = ("VOC2012", "VOCdevkit/VOC2012")
_LISTS = "ImageSets/Segmentation"
_TRAIN_LISTS = ("trainaug.txt", "train_aug.txt")


def color_map(count: int) -> tuple[tuple[int, int, int], ...]:
    """VOC's colors: the top bits of R are bits 0, 3, 6 of a class id; G: 1, 4, 7; B: 2, 5, 8."""

    def channel(class_id: int, first_bit: int) -> int:
        return sum(((class_id >> (3 * k + first_bit)) & 1) << (7 - k) for k in range(3))

    return tuple((channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(count))


def build(config: DataConfig) -> DatasetSplits:
    """VOC 2012, with SBD if its masks are there: 21 classes."""
    require_fixed_classes(config, CLASS_NAMES, _BACKGROUND)
    root = find_root(config, [IMAGES], PLACES)
    layout = FileLayout(
        root,
        CLASS_NAMES,
        palette=color_map(len(CLASS_NAMES)),
        train=partial(_train_entries, root),
        validation=partial(_read, root, root / _LISTS / "val.txt"),
        expand=_expand_id,
        repair=_existing_mask,
        background_class=_BACKGROUND,
    )
    return build_file_splits(config, layout)


def _train_entries(root: Path) -> list[Entry]:
    for name in _TRAIN_LISTS:
        path = root / _LISTS / name
        if os.path.isfile(path):
            return _read(root, path)
    if not (root / MASKS).is_dir():
        what = (
            f"there is neither {root / _LISTS / _TRAIN_LISTS[0]} nor a folder {root / MASKS} of "
            "VOC's and SBD's masks"
        )
        cure = f"`cac-ext data sbd SBD_FOLDER {root}` makes the folder"
        own = root / _LISTS / "train.txt"
        if not os.path.isfile(own):
            raise DataError(f"{what}, nor {own}; {cure}, or give data.labelled_list")
        entries = _read(root, own)
        warnings.warn(
            f"{what}: the training images are VOC's own {len(entries):,}, without SBD's. {cure}",
            stacklevel=2,
        )
        return entries
    held_out = {entry.image for entry in _read(root, root / _LISTS / "val.txt")}
    entries = [
        Entry(f"{IMAGES}/{mask.stem}.jpg", root / IMAGES / f"{mask.stem}.jpg", mask, str(mask))
        for mask in visible_files(root / MASKS, "*.png")
    ]
    return [entry for entry in entries if entry.image not in held_out]


def _read(root: Path, list_file: Path) -> list[Entry]:
    entries = read_list(list_file, root, with_masks=True, expand=_expand_id)
    return [_existing_mask(entry) for entry in entries]


def _existing_mask(entry: Entry) -> Entry:
    """The entry with VOC's own mask if SegmentationClassAug has none."""
    if entry.mask is None or entry.mask.parent.name != MASKS or os.path.isfile(entry.mask):
        return entry
    own = entry.mask.parent.with_name(OWN_MASKS) / entry.mask.name
    return replace(entry, mask=own) if os.path.isfile(own) else entry


def _expand_id(columns: list[str]) -> list[str]:
    """An id alone stands for its image and mask."""
    if len(columns) == 1 and not Path(columns[0]).suffix:
        return [f"{IMAGES}/{columns[0]}.jpg", f"{MASKS}/{columns[0]}.png"]
    return columns
