"""Faults in the data: `quick_check` before every run, `check` of every file on demand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cac_ext.train.config import DataConfig
from cac_ext.train.data.checks.channel_moments import channel_moments, channel_settings
from cac_ext.train.data.checks.class_findings import (
    absent_classes,
    absent_remark,
    ignored_class_remark,
    worthless,
)
from cac_ext.train.data.checks.mask_scan import count_pixels
from cac_ext.train.data.checks.picture_remarks import picture_remarks
from cac_ext.train.data.checks.sample import inspect_sample
from cac_ext.train.data.checks.split_search import split_advice
from cac_ext.train.data.contract import DatasetSplits, SegmentationDataset
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import Entry, duplicates
from cac_ext.train.errors import DataError, listed
from cac_ext.train.runtime.progress import Progress
from cac_ext.train.runtime.text_tables import aligned_table

_SAMPLES = 3  # read of each part before a run
_FAULTS_SHOWN = 5  # before a run; a check on demand shows all
_RGB = 3  # channels, for which ImageNet's mean and deviation are usual
_SMALLEST_SIDE = 8  # pixels: the stride of the compared features in the paper's networks


@dataclass(frozen=True)
class PartReport:
    """What the images of one part (labelled, unlabelled, validation) hold.

    Attributes:
        images: their number, readable or not.
        pixels: number of pixels of each class, ``[K]``; all zero for unlabelled images.
        images_with: number of images in which a class occurs, ``[K]``.
        ignored: number of ignored pixels.
        tiny: name and size of each image that is hardly larger than a feature.
        moments: sums of each channel over all pixels, white being 1: of ones, values, squares.
    """

    images: int
    pixels: Tensor
    images_with: Tensor
    ignored: int
    tiny: list[str] = field(default_factory=list)
    moments: Tensor | None = None  # [3, C] float64, for other than three channels


@dataclass
class CheckReport:
    """What `check` found.

    Attributes:
        parts: report of each part, by its name.
        problems: faults that stop a run or make its result worthless.
        remarks: other things worth knowing.
    """

    parts: dict[str, PartReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def quick_check(splits: DatasetSplits) -> None:
    """The checks that cost next to nothing, before every run.

    Raises:
        DataError: a part is empty, a file is missing, or one of the first samples is faulty.
    """
    for name, dataset in parts(splits).items():
        if len(dataset) == 0:
            raise DataError(f"there are no {name} images")
        missing, root = [], None
        if isinstance(dataset, ImageFiles):
            missing, root = dataset.missing_files(), dataset.root
        if missing:
            raise DataError(_shortened(missing, root))
        twice = duplicates(entries(dataset))
        if twice:
            warnings.warn(
                f"{_listed_twice(*twice[0])}: {len(twice)} of the {name} images are repetitions, "
                "and count as often as they are listed",
                stacklevel=3,
            )
    leaks = shared_images(splits.labelled, splits.validation)
    if leaks:
        warnings.warn(
            f"{leaks[0]}: {len(leaks)} of the validation images are trained on, and the mIoU will "
            "be too high",
            stacklevel=3,
        )
    for name, dataset in parts(splits).items():
        for index in range(min(_SAMPLES, len(dataset))):
            inspect_sample(dataset[index], splits, name, index)


def check(
    splits: DatasetSplits,
    *,
    data: DataConfig | None = None,
    num_workers: int = 0,
    progress: bool = True,
) -> CheckReport:
    """Reads every image and mask. Faults are reported, not raised.

    Args:
        splits: the data.
        data: its section of the configuration: a remark on a split that lacks classes then offers
            a better one.
        num_workers: processes that read.
        progress: whether to show a progress bar.
    """
    report = CheckReport()
    for name, dataset in parts(splits).items():
        if len(dataset) == 0:
            report.problems.append(f"there are no {name} images")
            continue
        report.problems += [_listed_twice(*pair) for pair in duplicates(entries(dataset))]
        report.parts[name] = _read_all(name, dataset, splits, report, num_workers, progress)

    report.problems += shared_images(splits.labelled, splits.validation)
    if splits.unlabelled is not None:
        shared = shared_images(splits.unlabelled, splits.validation)
        report.remarks += shared[:1] and [f"{shared[0]} (one of {len(shared)} such images)"]
        known = {entry.image for entry in entries(splits.labelled)}
        both = sum(entry.image in known for entry in entries(splits.unlabelled))
        if both:
            report.remarks.append(f"{both} of the unlabelled images are labelled ones, too")
    for name, part in report.parts.items():
        _find_faults_of_classes(name, part, splits, data, report)
        if part.tiny:
            report.remarks.append(
                f"{len(part.tiny)} of the {name} images have a side below {_SMALLEST_SIDE} pixels, "
                f"hardly a feature of a network: {listed(part.tiny)}"
            )
    ignored = ignored_class_remark(splits)
    report.remarks += [ignored] if ignored else []
    for name, dataset in parts(splits).items():
        if isinstance(dataset, ImageFiles):
            report.remarks += picture_remarks(name, dataset)
    return report


def _find_faults_of_classes(
    name: str,
    part: PartReport,
    splits: DatasetSplits,
    data: DataConfig | None,
    report: CheckReport,
) -> None:
    if name == "unlabelled":
        return
    fault = worthless(name, part.images, part.pixels, part.ignored, splits)
    if fault is not None and int(part.pixels.sum()) + part.ignored > 0:  # some were readable
        report.problems.append(fault)
        return
    missing = absent_classes(part.pixels, splits)
    advice = ""
    if missing and name == "labelled" and data is not None:
        advice = split_advice(data, splits, missing)
    remark = absent_remark(name, part.pixels, part.ignored, splits, advice)
    report.remarks += [remark] if remark else []


def parts(splits: DatasetSplits) -> dict[str, SegmentationDataset]:
    """The parts of the data, by name, without a missing one."""
    named = {
        "labelled": splits.labelled,
        "unlabelled": splits.unlabelled,
        "validation": splits.validation,
    }
    return {name: dataset for name, dataset in named.items() if dataset is not None}


def entries(dataset: SegmentationDataset) -> Sequence[Entry]:
    """The entries of a data set of files; none for any other."""
    return dataset.entries if isinstance(dataset, ImageFiles) else ()


def shared_images(trained_on: SegmentationDataset, validation: SegmentationDataset) -> list[str]:
    """A sentence for each validation image that is trained on."""
    known = {entry.image: entry for entry in entries(trained_on)}
    return [
        f"{entry.source}: the validation image {entry.name} is trained on "
        f"({known[entry.image].source})"
        for entry in entries(validation)
        if entry.image in known
    ]


def format_report(report: CheckReport, class_names: Sequence[str]) -> str:
    """Tables of the classes' shares, then remarks, then problems."""
    lines = [f"{name}: {part.images} images" for name, part in report.parts.items()]
    shown = {name: part for name, part in report.parts.items() if name != "unlabelled"}
    if shown:
        header = ["class"]
        ignored = ["ignored"]
        for name, part in shown.items():
            header += [f"{name} pixels", "images"]
            ignored += [_share(part.ignored, part), ""]
        rows = [
            [class_name]
            + [
                cell
                for part in shown.values()
                for cell in (_share(part.pixels[k], part), str(int(part.images_with[k])))
            ]
            for k, class_name in enumerate(class_names)
        ]
        lines += ["", aligned_table(header, [*rows, ignored])]
    moments = [
        part.moments
        for name, part in report.parts.items()
        if name != "validation" and part.moments is not None
    ]
    if moments:
        found = channel_settings(torch.stack(moments).sum(dim=0))
        lines.append(f"mean and deviation of the training images' channels: {found}")
    lines += [f"remark: {remark}" for remark in report.remarks]
    lines += [f"problem: {problem}" for problem in report.problems]
    lines.append(f"{_counted('problem', report.problems)} found")
    if report.remarks:
        lines[-1] += f", {_counted('remark', report.remarks)}"
    return "\n".join(lines)


class _Finding(NamedTuple):
    """What was found in one sample."""

    fault: str | None
    pixels: Tensor  # [K] number of pixels of each class
    ignored: int = 0  # pixels
    tiny: str | None = None  # name and size of an image that is hardly larger than a feature
    moments: Tensor | None = None  # [3, C], see `PartReport`


class _Inspected(Dataset[_Finding]):
    """The `_Finding` in each sample of the part called ``name``."""

    def __init__(self, dataset: SegmentationDataset, name: str, splits: DatasetSplits) -> None:
        self.dataset, self.name, self.splits = dataset, name, splits

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Finding:
        nothing = torch.zeros(self.splits.num_classes, dtype=torch.int64)
        try:
            sample = self.dataset[index]
            inspect_sample(sample, self.splits, self.name, index)
        except DataError as error:
            return _Finding(str(error), nothing)
        except Exception as error:  # in a custom data set; the check continues
            fault = f"sample {index} of the {self.name} images: {type(error).__name__}: {error}"
            return _Finding(fault, nothing)
        height, width = sample["image"].shape[-2:]
        tiny = None
        if min(height, width) < _SMALLEST_SIDE:
            tiny = f"{sample['name']} ({width} x {height})"
        moments = None if self.splits.channels == _RGB else channel_moments(sample["image"])
        if self.name == "unlabelled":
            return _Finding(None, nothing, tiny=tiny, moments=moments)
        return _Finding(None, *count_pixels(sample["mask"], self.splits), tiny, moments)


def _read_all(
    name: str,
    dataset: SegmentationDataset,
    splits: DatasetSplits,
    report: CheckReport,
    num_workers: int,
    progress: bool,
) -> PartReport:
    pixels = torch.zeros(splits.num_classes, dtype=torch.int64)
    images_with, ignored, tiny = pixels.clone(), 0, list[str]()
    moments: Tensor | None = None
    loader = DataLoader(
        _Inspected(dataset, name, splits),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    for found in Progress(loader, name, unit="image", disable=not progress):
        report.problems += [found.fault] if found.fault is not None else []
        pixels += found.pixels
        images_with += found.pixels > 0
        ignored += found.ignored
        tiny += [found.tiny] if found.tiny is not None else []
        if found.moments is not None:
            moments = found.moments if moments is None else moments + found.moments
    return PartReport(len(dataset), pixels, images_with, ignored, tiny, moments)


def _listed_twice(first: Entry, later: Entry) -> str:
    return f"{later.source}: {later.name} is listed twice, first in {first.source}"


def _counted(what: str, found: Sequence[str]) -> str:
    return f"{len(found) or 'no'} {what}{'s' * (len(found) != 1)}"


def _share(pixels: Tensor | int, part: PartReport) -> str:
    return f"{100 * int(pixels) / max(int(part.pixels.sum()) + part.ignored, 1):.2f}%"


def _shortened(faults: Sequence[str], root: object) -> str:
    more = len(faults) - _FAULTS_SHOWN
    shown = "\n".join(faults[:_FAULTS_SHOWN])
    rest = f"\nand {more} more; `cac-ext data check CONFIG` names them all" if more > 0 else ""
    return f"{shown}{rest}\npaths are relative to data.root={root}"
