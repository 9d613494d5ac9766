"""Pseudo labels of unlabelled images: a folder of masks, written once, then trained on.

``FOLDER/NAME.png`` is the mask of the image whose sample is called NAME: class ids in 8 bits, 255
for "no label", independent of ``data.ignore_index``. With more than 255 classes it holds ids in 16
bits, 65535 for "no label". `self_training` and `weak` write such folders; others work, too.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision import tv_tensors

from cac_ext.train.data.contract import DatasetSplits, Sample, SegmentationDataset, known_mask
from cac_ext.train.data.files.pictures import picture_of_ids, read_ids
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.runtime.distributed import ALONE, Processes
from cac_ext.train.runtime.json_files import read_json, write_json
from cac_ext.train.runtime.progress import Progress
from cac_ext.train.runtime.signals import StopRequest, TrainingStopped
from cac_ext.train.runtime.whole_files import write_whole

_NO_LABEL = (255, 65535)  # in 8 and in 16 bits
_LOOKED_AT = 20  # pseudo labels read before a run
_ABOUT = "pseudo_labels.json"


class PseudoLabelled(SegmentationDataset):
    """A data set's images with the masks of a folder.

    Args:
        dataset: the images.
        folder: of masks, see the module's docstring.
        num_classes: ids must be below it.
        ignore_index: stands for "no label" in samples.

    Raises:
        DataError: reading a sample whose mask is missing, broken, of another size than its image,
            or holds an id out of range.
    """

    def __init__(
        self, dataset: SegmentationDataset, folder: Path, num_classes: int, ignore_index: int
    ) -> None:
        self.dataset = dataset
        self.folder = folder
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        return {**sample, "mask": tv_tensors.Mask(self.read_mask(sample))}

    def read_mask(self, sample: Sample) -> Tensor:
        """The mask of a sample's image, ``[H, W]`` int64."""
        path, no_label = mask_path(self.folder, sample["name"]), no_label_of(self.num_classes)
        height, width = sample["image"].shape[1:]
        stored = read_ids(path, (height, width), sample["name"], "pseudo label")
        ids = torch.from_numpy(stored).long()  # [H, W]
        wrong = ids[((ids < 0) | (ids >= self.num_classes)) & (ids != no_label)]
        if len(wrong):
            raise DataError(
                f"the pseudo label {path} holds the id {int(wrong[0])}, but there are "
                f"{self.num_classes} classes, and {no_label} stands for no label"
            )
        ids[ids == no_label] = self.ignore_index
        return ids


def pseudo_labelled(splits: DatasetSplits, folder: str, key: str) -> PseudoLabelled:
    """The unlabelled images with the masks of ``folder``, the value of configuration key ``key``.

    Raises:
        ConfigError: there are no unlabelled images, or there is no such folder.
        DataError: the first image has no mask, or a faulty one.

    Warns:
        UserWarning: 20 masks, spread over the images, hold no label at all.
    """
    images = unlabelled_images(splits, key)
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"{key}: there is no folder {folder}; {key}=auto makes the pseudo labels in the run's "
            "folder"
        )
    dataset = PseudoLabelled(images, path, splits.num_classes, splits.ignore_index)
    dataset[0]
    spread = torch.linspace(0, len(dataset) - 1, _LOOKED_AT).long().unique().tolist()
    if not any((dataset[index]["mask"] != splits.ignore_index).any() for index in spread):
        warnings.warn(
            f"{key}: no pixel of {len(spread)} pseudo labels in {folder} has a class, and nothing "
            "can be learned from them",
            stacklevel=2,
        )
    return dataset


def unlabelled_images(splits: DatasetSplits, key: str) -> SegmentationDataset:
    """The unlabelled images; ConfigError if there are none, or too many classes for 16 bits."""
    if splits.unlabelled is None:
        raise ConfigError(f"{key}: there are no unlabelled images to label")
    if splits.num_classes > _NO_LABEL[-1]:
        raise ConfigError(
            f"{key}: pseudo labels are stored in 16 bits, which hold up to {_NO_LABEL[-1]:,} "
            f"classes, but the data set has {splits.num_classes:,}"
        )
    return splits.unlabelled


def no_label_of(num_classes: int) -> int:
    """The value of "no label" in files of so many classes."""
    return next(value for value in _NO_LABEL if num_classes <= value)


@dataclass(frozen=True)
class PseudoLabelReport:
    """Quality of the pseudo labels that `write_pseudo_labels` wrote.

    Attributes:
        images: their number.
        labelled: share of the pixels that have a label.
        accuracy: share of these that are right; None if no true mask is known.
        miou: of these, in [0, 1], the mean over the classes that occur; None like ``accuracy``.
        absent: number of classes that occur neither in pseudo labels nor in true masks.
    """

    images: int
    labelled: float
    accuracy: float | None = None
    miou: float | None = None
    absent: int = 0

    def __str__(self) -> str:
        text = f"{self.images} images, {100 * self.labelled:.1f} % of the pixels labelled"
        if self.accuracy is None or self.miou is None:
            return text
        absent = f", {self.absent} of the classes do not occur" if self.absent else ""
        miou = f"mIoU {100 * self.miou:.2f}{absent}"
        return f"{text}, {100 * self.accuracy:.1f} % of these rightly ({miou})"


def warn_of_no_labels(report: PseudoLabelReport, advice: str) -> None:
    """Warns if no pixel has a label; ``advice`` says how to get some."""
    if report.labelled == 0:
        warnings.warn(
            f"no pixel of the {report.images} pseudo labels has a class, and nothing can be "
            f"learned from them: {advice}, remove their folder and make them again",
            stacklevel=3,
        )


@torch.no_grad()
def write_pseudo_labels(
    splits: DatasetSplits,
    label: Callable[[int, Sample], Tensor],
    folder: Path,
    description: str,
    *,
    made_by: dict[str, Any] | None = None,
    processes: Processes = ALONE,
    progress: bool = True,
) -> PseudoLabelReport:
    """Writes a mask of each unlabelled image into ``folder``; existing masks are kept.

    Several processes share the images and return the same report. ``pseudo_labels.json``, beside
    the masks, holds it and ``made_by``.

    Args:
        splits: the data.
        label: index and sample to ``[H, W]`` class ids, ``splits.ignore_index`` for "no label".
        folder: where the masks go.
        description: of the progress bar.
        made_by: what the labels depend on, plain values; None: only masks are written.
        processes: of the run.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: there are no unlabelled images, or the folder holds labels made otherwise.
        TrainingStopped: SIGTERM came; the masks written so far are kept.
    """
    images = unlabelled_images(splits, "pseudo labels")
    about = folder / _ABOUT

    def begin() -> PseudoLabelReport | None:
        if made_by is None or not processes.is_main:
            return None
        report = _read_report(about, made_by)
        if report is not None and _count_masks(folder) >= len(images):
            return report  # an earlier call was complete
        _write_report(about, made_by, None)
        return None

    finished = processes.together(begin)[0]
    if finished is not None:
        return finished
    shares = processes.together(
        lambda: _write_share(images, splits, label, folder, description, processes, progress)
    )
    table = torch.stack([share.confusion for share in shares]).sum(0)
    pixels = sum(share.pixels for share in shares)
    labelled = sum(share.labelled for share in shares)
    report = PseudoLabelReport(len(images), labelled / pixels)
    if table.any():
        right = table.diagonal().double()
        iou = right / (table.sum(0) + table.sum(1) - right)
        accuracy = (right.sum() / table.sum()).item()
        absent = int(iou.isnan().sum())
        report = replace(report, accuracy=accuracy, miou=iou.nanmean().item(), absent=absent)
    if made_by is not None and processes.is_main:
        _write_report(about, made_by, report)
    return report


class _Share(NamedTuple):
    """What one process has written."""

    confusion: Tensor  # [K, K] int64, true class and pseudo label
    pixels: int
    labelled: int  # of the pixels


def _write_share(
    images: SegmentationDataset,
    splits: DatasetSplits,
    label: Callable[[int, Sample], Tensor],
    folder: Path,
    description: str,
    processes: Processes,
    progress: bool,
) -> _Share:
    """Writes this process's masks."""
    written = PseudoLabelled(images, folder, splits.num_classes, splits.ignore_index)
    confusion = MulticlassConfusionMatrix(
        splits.num_classes,
        ignore_index=splits.ignore_index,
        validate_args=False,
        sync_on_compute=False,
    )
    pixels = labelled = 0
    mine = range(processes.rank, len(images), processes.size)
    with StopRequest() as stop:
        for index in Progress(mine, description, unit="image", disable=not progress):
            if stop.requested:
                raise TrainingStopped(f"stopped before pseudo label {index} of {len(images)}")
            sample = images[index]
            path = mask_path(folder, sample["name"])
            if not os.path.isfile(path):
                _write(path, label(index, sample), splits)
            mask = written.read_mask(sample)
            counted = mask != splits.ignore_index
            pixels += mask.numel()
            labelled += int(counted.sum())
            truth = known_mask(images, index)
            if truth is not None:
                confusion.update(mask[counted], truth.long()[counted])
    return _Share(confusion.confmat.long(), pixels, labelled)


def _read_report(path: Path, made_by: dict[str, Any]) -> PseudoLabelReport | None:
    """The report of a finished folder; ConfigError if its labels were made otherwise."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        origin, report = content["made_by"], content["report"]
        report = None if report is None else PseudoLabelReport(**report)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove its folder") from error
    if origin != made_by:
        raise ConfigError(
            f"{path.parent} holds pseudo labels made by {_listed(origin)}, but this run needs "
            f"those of {_listed(made_by)}: take another folder, or remove it"
        )
    return report


def _write_report(path: Path, made_by: dict[str, Any], report: PseudoLabelReport | None) -> None:
    content = {"made_by": made_by, "report": None if report is None else asdict(report)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _count_masks(folder: Path) -> int:
    # On some disks macOS adds a file "._NAME" to each.
    return sum(not path.name.startswith("._") for path in folder.rglob("*.png"))


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def mask_path(folder: Path, name: str) -> Path:
    """The mask file of the image called ``name``; folders in the name are kept.

    Raises:
        DataError: ``..`` in the name could lead out of the folder, to the mask of another run.
    """
    if ".." in Path(name).parts:
        raise DataError(
            f"the image name {name!r} contains '..', and cannot name a pseudo label in {folder}: "
            "the data set must give its samples names without '..'"
        )
    return folder / f"{name.lstrip('/')}.png"


def _write(path: Path, mask: Tensor, splits: DatasetSplits) -> None:
    no_label = no_label_of(splits.num_classes)
    ids = mask.cpu().numpy()
    picture = picture_of_ids(np.where(ids == splits.ignore_index, no_label, ids), no_label + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: picture.save(file, format="PNG"))
