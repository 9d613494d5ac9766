"""Merges SBD's masks with VOC's own into the "SegmentationClassAug" used to train on VOC 2012.

SBD is distributed as MATLAB files, one for each of 11,355 images of VOC 2011:

    benchmark_RELEASE/dataset/cls/2008_000002.mat    GTcls.Segmentation: [H, W] uint8, ids 0 to 20

`merge` writes them as palette PNGs, like VOC's own, into VOC2012/SegmentationClassAug. If VOC has a
mask of the image, in SegmentationClass, that mask is taken, with its void border (255). The result
is the merged set in common use: 12,031 masks, 2,913 of VOC and 9,118 of SBD.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from scipy.io import loadmat

from cac_ext.train.data.datasets.voc import CLASS_NAMES, IMAGES, MASKS, OWN_MASKS, PLACES, color_map
from cac_ext.train.data.files.find_images import is_hidden, visible_files
from cac_ext.train.data.files.list_file import without_parents
from cac_ext.train.data.files.pictures import read_ids, read_size
from cac_ext.train.data.files.stored_samples import Ids
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.runtime.progress import Progress
from cac_ext.train.runtime.whole_files import write_whole

_SBD_PLACES = ("", "cls", "dataset/cls", "benchmark_RELEASE/dataset/cls")
#: Masks go here until all are written, so that no training finds only some of them.
_UNFINISHED = f"{MASKS}.unfinished"
_VOID = 255  # on the borders of VOC's own masks


@dataclass(frozen=True)
class MergedMasks:
    """The masks in ``folder`` after `merge`."""

    folder: Path
    of_voc: int
    of_sbd: int
    kept: int  # of both, from an earlier call

    def __str__(self) -> str:
        kept = f", {self.kept:,} of them already there" if self.kept else ""
        return (
            f"{self.folder}: {self.of_voc + self.of_sbd:,} masks, {self.of_voc:,} of VOC's own "
            f"and {self.of_sbd:,} of SBD{kept}"
        )


def merge(sbd: Path, voc: Path, *, progress: bool = True) -> MergedMasks:
    """Writes VOC2012/SegmentationClassAug; masks written by an interrupted call are kept.

    Args:
        sbd: SBD's folder, benchmark_RELEASE or one above or below it.
        voc: VOC2012, or a folder that holds it.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: a folder is not there.
        DataError: a file is broken or does not fit its image.
    """
    cls = _find_sbd(sbd)
    root = _find_voc(voc)
    own = {path.stem: path for path in visible_files(root / OWN_MASKS, "*.png")}
    sources = {path.stem: path for path in visible_files(cls, "*.mat")} | own  # VOC's own win
    folder, unfinished = root / MASKS, root / _UNFINISHED
    there = {path.stem for place in (folder, unfinished) for path in visible_files(place, "*.png")}
    unfinished.mkdir(exist_ok=True)
    missing = sorted(set(sources) - there)
    for name in Progress(missing, "masks", unit="mask", disable=not progress):
        target = unfinished / f"{name}.png"
        image = root / IMAGES / f"{name}.jpg"
        if name in own:
            _require_mask(own[name], image)
            write_whole(target, partial(_write_bytes, own[name].read_bytes()))
        else:
            write_whole(target, partial(_write_png, _picture(_read(sources[name], image))))
    _finish(unfinished, folder)
    return MergedMasks(folder, len(own), len(sources) - len(own), len(there & set(sources)))


def _write_bytes(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _write_png(mask: Image.Image, file: BinaryIO) -> None:
    mask.save(file, format="PNG")


def _finish(unfinished: Path, folder: Path) -> None:
    """Renames the folder or, if ``folder`` exists, moves each mask into it."""
    if not folder.exists():
        unfinished.rename(folder)
        return
    for path in visible_files(unfinished, "*.png"):
        path.rename(folder / path.name)
    for path in unfinished.iterdir():
        if is_hidden(Path(path.name)):  # on some disks macOS adds one to each file
            path.unlink()
    unfinished.rmdir()


def _require_mask(path: Path, image: Path) -> None:
    """DataError if one of VOC's own masks is broken, of another size, or holds other ids."""
    ids = read_ids(path, _size_of(image, path), image)
    wrong = ids[(ids >= len(CLASS_NAMES)) & (ids != _VOID)]
    if len(wrong):
        raise DataError(
            f"the mask {path} holds the id {wrong[0]}, but VOC's are 0 to {len(CLASS_NAMES) - 1} "
            f"and {_VOID}"
        )


def _size_of(image: Path, mask: Path) -> tuple[int, int]:
    try:
        return read_size(image)
    except DataError as error:
        raise DataError(f"{mask}: {error}; is VOC 2012 complete?") from error.__cause__


def _read(path: Path, image: Path) -> Ids:
    """Class ids of SBD's file, ``[H, W]`` uint8, checked against the image."""
    try:
        content = loadmat(path, variable_names=["GTcls"], squeeze_me=True, struct_as_record=False)
        ids = np.asarray(content["GTcls"].Segmentation)
    except Exception as error:  # a broken file can raise nearly anything
        raise DataError(
            f"cannot read GTcls.Segmentation of {path}: {type(error).__name__}: {error}; is SBD "
            "unpacked completely?"
        ) from error
    if ids.ndim != 2 or ids.dtype != np.uint8 or ids.max(initial=0) >= len(CLASS_NAMES):
        raise DataError(
            f"GTcls.Segmentation of {path} must be [H, W] uint8 with ids 0 to "
            f"{len(CLASS_NAMES) - 1}, but is {list(ids.shape)} {ids.dtype} with ids up to "
            f"{ids.max(initial=0)}: give the folder cls, not inst"
        )
    size = _size_of(image, path)
    if ids.shape != size:
        raise DataError(
            f"{path} is {ids.shape[1]} x {ids.shape[0]} pixels, but its image {image} is "
            f"{size[1]} x {size[0]}"
        )
    return ids


def _picture(ids: Ids) -> Image.Image:
    picture = Image.fromarray(ids)
    picture.putpalette([part for color in color_map(256) for part in color])
    return picture


def _find_sbd(given: Path) -> Path:
    root = without_parents(given.expanduser().absolute())
    for place in _SBD_PLACES:
        if any(visible_files(root / place, "*.mat")):
            return root / place
    if root.is_file():
        raise ConfigError(f"{root} is a file: unpack it (tar xzf), then name the folder")
    raise ConfigError(
        f"{root} holds no benchmark_RELEASE/dataset/cls/*.mat: give the folder that SBD's archive "
        "unpacks to"
    )


def _find_voc(given: Path) -> Path:
    root = without_parents(given.expanduser().absolute())
    for place in ("", *PLACES):
        if (root / place / IMAGES).is_dir():
            if any(visible_files(root / place / OWN_MASKS, "*.png")):
                return root / place
            raise ConfigError(
                f"{root / place} holds no masks {OWN_MASKS}/*.png: unpack VOC 2012's trainval "
                "archive there"
            )
    raise ConfigError(f"{root} is not VOC 2012: it holds no folder {IMAGES}/")
