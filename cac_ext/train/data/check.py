"""Faults in the data, found before a run: the cheap ones always, all of them on demand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.image_files import ImageFiles
from cac_ext.train.data.picture_remarks import picture_remarks
from cac_ext.train.data.split import duplicates
from cac_ext.train.errors import DataError

_SAMPLES = 3  # read of each part before a run
_FAULTS_SHOWN = 5  # before a run; a check on demand shows all


@dataclass(frozen=True)
class PartReport:
    """What the images of one part (labelled, unlabelled, validation) hold.

    Attributes:
        images: their number, readable or not.
        pixels: of each class, ``[K]``; all zero for unlabelled images.
        images_with: images in which a class occurs, ``[K]``.
        ignored: pixels that count for nothing.
    """

    images: int
    pixels: Tensor
    images_with: Tensor
    ignored: int


@dataclass
class CheckReport:
    """What `check` found: ``problems`` that must be mended, ``remarks`` worth knowing."""

    parts: dict[str, PartReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def quick_check(splits: DatasetSplits) -> None:
    """What costs next to nothing, before every run.

    Raises:
        DataError: a part is empty, a file is missing, or one of the first samples is faulty.
    """
    for name, dataset in parts(splits).items():
        if len(dataset) == 0:
            raise DataError(f"there are no {name} images")
        missing = dataset.missing_files() if isinstance(dataset, ImageFiles) else []
        if missing:
            raise DataError(_shortened(missing, dataset.root))
    leaks = shared_images(splits.labelled, splits.validation)
    if leaks:
        warnings.warn(
            f"{leaks[0]}: {len(leaks)} of the validation images are trained on, and the mIoU will "
            "say too much",
            stacklevel=3,
        )
    for name, dataset in parts(splits).items():
        for index in range(min(_SAMPLES, len(dataset))):
            inspect_sample(dataset[index], splits, name, index)


def check(splits: DatasetSplits, *, num_workers: int = 0, progress: bool = True) -> CheckReport:
    """Reads every image and mask. Nothing is raised for a fault: all of them are in the report."""
    report = CheckReport()
    for name, dataset in parts(splits).items():
        if len(dataset) == 0:
            report.problems.append(f"there are no {name} images")
            continue
        report.problems += [
            f"{later.source}: {later.name} is listed twice, first in {first.source}"
            for first, later in duplicates(entries(dataset))
        ]
        report.parts[name] = _read_all(name, dataset, splits, report, num_workers, progress)

    report.problems += shared_images(splits.labelled, splits.validation)
    if splits.unlabelled is not None:
        shared = shared_images(splits.unlabelled, splits.validation)
        report.remarks += shared[:1] and [f"{shared[0]} (one of {len(shared)} such images)"]
    for name, part in report.parts.items():
        absent = [splits.class_names[k] for k in (part.images_with == 0).nonzero().flatten()]
        if name != "unlabelled" and absent:
            report.remarks.append(f"no pixel of the {name} images is of: {', '.join(absent)}")
    for name, dataset in parts(splits).items():
        if isinstance(dataset, ImageFiles):
            report.remarks += picture_remarks(name, dataset)
    return report


def inspect_sample(sample: dict, splits: DatasetSplits, name: str, index: int) -> None:
    """Raises DataError unless a sample is what `cac_ext.train.data` promises."""
    keys = ["image", "name"] if name == "unlabelled" else ["image", "name", "mask"]
    if not isinstance(sample, dict) or any(key not in sample for key in keys):
        kind = type(sample).__name__
        got = f"{kind} of {', '.join(map(str, sample))}" if isinstance(sample, dict) else kind
        raise DataError(
            f"sample {index} of the {name} images must be a dict of {', '.join(keys)}, but is {got}"
        )
    image, title = sample["image"], f"sample {index} of the {name} images ({sample['name']})"
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.shape[:-2] != (3,):
        raise DataError(f"{title}: image must be uint8 [3, H, W], but is {_described(image)}")
    if name == "unlabelled":
        return
    mask = sample["mask"]
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.shape != image.shape[-2:]:
        raise DataError(
            f"{title}: mask must be integers {list(image.shape[-2:])} like its image, but is "
            f"{_described(mask)}"
        )
    ids = mask.numpy()
    wrong = ids[((ids < 0) | (ids >= splits.num_classes)) & (ids != splits.ignore_index)]
    if len(wrong):
        raise DataError(
            f"{title}: the mask holds the ids {np.unique(wrong)[:8].tolist()}, but there are "
            f"{splits.num_classes} classes and {splits.ignore_index} is ignored"
        )


def parts(splits: DatasetSplits) -> dict[str, Dataset]:
    """The parts there are, by name."""
    named = {
        "labelled": splits.labelled,
        "unlabelled": splits.unlabelled,
        "validation": splits.validation,
    }
    return {name: dataset for name, dataset in named.items() if dataset is not None}


def entries(dataset: Dataset) -> Sequence:
    """The listed entries of a data set of files; none of another."""
    return dataset.entries if isinstance(dataset, ImageFiles) else ()


def shared_images(trained_on: Dataset, validation: Dataset) -> list[str]:
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
    shown = {name: part for name, part in report.parts.items() if name != "unlabelled"}
    width = max(len("class"), len("ignored"), *map(len, class_names))
    header = f"{'class':{width}}" + "".join(
        f"  {name + ' pixels':>17}  {'images':>7}" for name in shown
    )
    lines = [f"{name}: {part.images} images" for name, part in report.parts.items()]
    if shown:
        lines += ["", header, "-" * len(header)]
    for k, class_name in enumerate(class_names if shown else ()):
        cells = (
            f"  {_share(part.pixels[k], part):>17}  {int(part.images_with[k]):>7}"
            for part in shown.values()
        )
        lines.append(f"{class_name:{width}}" + "".join(cells))
    if shown:
        cells = (f"  {_share(part.ignored, part):>17}  {'':>7}" for part in shown.values())
        lines.append(f"{'ignored':{width}}" + "".join(cells).rstrip())
    lines += [f"remark: {remark}" for remark in report.remarks]
    lines += [f"problem: {problem}" for problem in report.problems]
    count = len(report.problems)
    lines.append(f"{count} problem{'s' * (count != 1)} found" if count else "no problems found")
    return "\n".join(lines)


class _Inspected(Dataset):
    """``[i]``: the fault of sample i, or None; pixels of each class ``[K]``; ignored pixels."""

    def __init__(self, dataset: Dataset, name: str, splits: DatasetSplits) -> None:
        self.dataset, self.name, self.splits = dataset, name, splits

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str | None, Tensor, int]:
        nothing = torch.zeros(self.splits.num_classes, dtype=torch.int64)
        try:
            sample = self.dataset[index]
            inspect_sample(sample, self.splits, self.name, index)
        except DataError as error:
            return str(error), nothing, 0
        except Exception as error:  # of a user's data set; the walk goes on
            fault = f"sample {index} of the {self.name} images: {type(error).__name__}: {error}"
            return fault, nothing, 0
        if self.name == "unlabelled":
            return None, nothing, 0
        ids = sample["mask"].numpy().ravel()
        counted = ids[ids != self.splits.ignore_index]
        pixels = np.bincount(counted, minlength=self.splits.num_classes)
        return None, torch.from_numpy(pixels), len(ids) - len(counted)


def _read_all(
    name: str,
    dataset: Dataset,
    splits: DatasetSplits,
    report: CheckReport,
    num_workers: int,
    progress: bool,
) -> PartReport:
    pixels = torch.zeros(splits.num_classes, dtype=torch.int64)
    images_with, ignored = pixels.clone(), 0
    loader = DataLoader(
        _Inspected(dataset, name, splits),
        batch_size=None,
        num_workers=num_workers,
        generator=torch.Generator(),
    )
    for fault, counts, left_out in tqdm(loader, name, unit="image", disable=not progress):
        if fault is not None:
            report.problems.append(fault)
        pixels += counts
        images_with += counts > 0
        ignored += left_out
    return PartReport(len(dataset), pixels, images_with, ignored)


def _share(pixels: Tensor | int, part: PartReport) -> str:
    return f"{100 * int(pixels) / max(int(part.pixels.sum()) + part.ignored, 1):.2f}%"


def _shortened(faults: Sequence[str], root: object) -> str:
    more = len(faults) - _FAULTS_SHOWN
    shown = "\n".join(faults[:_FAULTS_SHOWN])
    rest = f"\nand {more} more; `cac-ext data check CONFIG` names them all" if more > 0 else ""
    return f"{shown}{rest}\npaths are relative to data.root={root}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
