"""A run evaluated again: a table of its classes, and files with the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.errors import DataError
from cac_ext.train.evaluate import Evaluation, absence_note, evaluate
from cac_ext.train.figures.panels import save_confusion
from cac_ext.train.inference import configured_inference
from cac_ext.train.runs.folder import load_run, require_same_classes
from cac_ext.train.runtime.distributed import process_group
from cac_ext.train.runtime.json_files import write_json
from cac_ext.train.runtime.text_tables import aligned_table

_MOST_IN_JSON = 1000  # classes of a confusion matrix that the JSON file holds


class ClassRecord(TypedDict):
    """Shares of a class in [0, 1]; nan, null in the file, for one that does not occur."""

    iou: float
    accuracy: float
    precision: float


class EvaluationRecord(TypedDict):
    """``evaluation.json``."""

    iteration: int
    inference: str
    images: int
    miou: float
    absent_classes: list[str]
    pixel_accuracy: float
    classes: dict[str, ClassRecord]
    confusion: list[list[int]] | str  # [K, K] pixels: true class, predicted class; or a file's name


def evaluate_run(
    folder: Path,
    overrides: Sequence[str],
    *,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    output: Path | None = None,
) -> str | None:
    """Evaluates a run on its validation images.

    Args:
        folder: of the run.
        overrides: ``key=value`` that replace settings of the run; `load_run` says which.
        scales, flip: see `inference.Inference`, whose other options are the run's.
        output: receives ``evaluation.json`` and ``confusion_matrix.png``; by default it is
            ``evaluation/NAME`` in the run folder, with a name made of the test-time options.

    Returns:
        The table; None in a process other than the main one.

    Raises:
        UserError: the run cannot be read, or its validation masks hold no pixel that counts.
    """
    run = load_run(folder, overrides)
    inference = replace(configured_inference(run.config), scales=scales, flip=flip)
    splits = build_datasets(run.config.data)
    require_same_classes(run, splits)
    with process_group(run.config.device) as processes:
        evaluation = evaluate(
            run.network,
            splits.validation,
            splits.num_classes,
            splits.ignore_index,
            num_workers=run.config.data.num_workers,
            progress=processes.is_main,
            processes=processes,
            inference=inference,
        )
        if not processes.is_main:
            return None
    images = len(splits.validation)
    if not evaluation.confusion.any():
        raise DataError(
            f"no pixel of the {images} validation masks counts: all are {splits.ignore_index}, "
            "which is data.ignore_index"
        )
    name = str(inference).replace(", ", "-").replace(" ", "-")
    output = output or folder / "evaluation" / name
    output.mkdir(parents=True, exist_ok=True)
    _write(output, evaluation, splits, run.iteration, str(inference))
    class_iou = dict(zip(splits.class_names, evaluation.class_iou, strict=True))
    more = {"accuracy": evaluation.class_accuracy, "precision": evaluation.class_precision}
    table = class_table(class_iou, evaluation.miou, more)
    return (
        f"{table}\npixel accuracy: {100 * evaluation.pixel_accuracy:.2f}\n"
        f"{images} images, {inference}; iteration {run.iteration}; {output}"
    )


def class_table(
    class_iou: Mapping[str, float],
    miou: float,
    more: Mapping[str, Sequence[float]] | None = None,
) -> str:
    """Figures of each class in percent, the mIoU below them, and the classes that it leaves out.

    Args:
        class_iou: in [0, 1] by class name.
        miou: in [0, 1].
        more: further columns, a number in [0, 1] for each class.
    """
    columns = {"IoU": [*class_iou.values()], **(more or {})}
    rows = [
        [name, *(f"{100 * value:.2f}" for value in values)]
        for name, *values in zip(class_iou, *columns.values(), strict=True)
    ]
    rows.append(["mIoU", f"{100 * miou:.2f}", *[""] * (len(columns) - 1)])
    table = aligned_table(["class", *columns], rows)
    note = absence_note(class_iou)
    return f"{table}  ({note})" if note else table


def _write(
    output: Path, evaluation: Evaluation, splits: DatasetSplits, iteration: int, inference: str
) -> None:
    names = list(splits.class_names)
    shares = zip(
        evaluation.class_iou, evaluation.class_accuracy, evaluation.class_precision, strict=True
    )
    record: EvaluationRecord = {
        "iteration": iteration,
        "inference": inference,
        "images": len(splits.validation),
        "miou": evaluation.miou,
        "absent_classes": [names[k] for k in evaluation.absent_classes],
        "pixel_accuracy": evaluation.pixel_accuracy,
        "classes": {
            name: {"iou": iou, "accuracy": accuracy, "precision": precision}
            for name, (iou, accuracy, precision) in zip(names, shares, strict=True)
        },
        "confusion": evaluation.confusion.tolist(),
    }
    if len(names) > _MOST_IN_JSON:
        record["confusion"] = "confusion_matrix.npy"
        np.save(output / "confusion_matrix.npy", evaluation.confusion.numpy())
    write_json(output / "evaluation.json", record)
    save_confusion(output / "confusion_matrix.png", evaluation.confusion, names)
