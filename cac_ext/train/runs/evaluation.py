"""A run evaluated again: a table of its classes, and files with the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.errors import DataError
from cac_ext.train.evaluate import Evaluation, absence_note, evaluate
from cac_ext.train.figures.panels import save_confusion
from cac_ext.train.inference import Inference, configured_inference
from cac_ext.train.runs.folder import Run, require_same_classes
from cac_ext.train.runtime.distributed import process_group
from cac_ext.train.runtime.json_files import read_json, write_json
from cac_ext.train.runtime.text_tables import aligned_table
from cac_ext.train.runtime.whole_files import write_whole

#: In a run folder: the record of the training's latest evaluation.
VALIDATION_FILE = "validation.json"
#: In a folder of ``cac-ext evaluate``.
EVALUATION_FILE = "evaluation.json"
_MOST_IN_JSON = 1000  # classes of a confusion matrix that the JSON file holds


class ClassRecord(TypedDict):
    """Shares of a class in [0, 1]; nan, null in the file, for one that does not occur."""

    iou: float
    accuracy: float
    precision: float


class EvaluationRecord(TypedDict):
    """``evaluation.json``, and ``validation.json`` of a training."""

    iteration: int
    inference: str
    images: int
    miou: float
    absent_classes: list[str]
    pixel_accuracy: float
    classes: dict[str, ClassRecord]
    confusion: list[list[int]] | str  # [K, K] pixels: true class, predicted class; or a file's name


@dataclass(frozen=True)
class RunEvaluation:
    """What `evaluate_run` measured.

    Attributes:
        evaluation: the confusion matrix and the shares that follow from it.
        class_names: of the classes, in the order of the ids.
        images: number of validation images.
        inference: how they were predicted.
        iteration: the number of steps that the network has seen.
        folder: holds ``evaluation.json`` and ``confusion_matrix.png``.
    """

    evaluation: Evaluation
    class_names: Sequence[str]
    images: int
    inference: Inference
    iteration: int
    folder: Path

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur or are predicted, in [0, 1]."""
        return self.evaluation.miou

    @property
    def class_iou(self) -> dict[str, float]:
        """IoU of each class in [0, 1]; nan for an absent class."""
        return dict(zip(self.class_names, self.evaluation.class_iou, strict=True))

    def __str__(self) -> str:
        """The table that ``cac-ext evaluate`` prints."""
        evaluation = self.evaluation
        more = {"accuracy": evaluation.class_accuracy, "precision": evaluation.class_precision}
        return (
            f"{class_table(self.class_iou, self.miou, more)}\n"
            f"pixel accuracy: {100 * evaluation.pixel_accuracy:.2f}\n"
            f"{self.images} images, {self.inference}; iteration {self.iteration}; {self.folder}"
        )


def evaluate_run(
    run: Run,
    *,
    inference: Inference | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> RunEvaluation:
    """Evaluates a run on its validation images, each once and at its original size.

    Writes ``evaluation.json`` and ``confusion_matrix.png``. Processes that torchrun started share
    the images; all get the same result, and the main one writes.

    Args:
        run: from `load_run`.
        inference: test-time options; by default the windows and the precision of the run.
        output: folder of the files; by default ``evaluation/NAME`` in the run folder, with a name
            made of the ``inference``, which begins with "best" for the best network.
        progress: whether to show a progress bar.

    Raises:
        UserError: the data cannot be read, has other classes than the run, or its validation masks
            hold no pixel that counts.
    """
    inference = inference or configured_inference(run.config)
    splits = build_datasets(run.config.data)
    require_same_classes(run, splits)
    with process_group(run.config.device) as processes:
        evaluation = evaluate(
            run.network,
            splits.validation,
            splits.num_classes,
            splits.ignore_index,
            num_workers=run.config.data.num_workers,
            progress=progress and processes.is_main,
            processes=processes,
            inference=inference,
        )
        is_main = processes.is_main
    images = len(splits.validation)
    if not evaluation.confusion.any():
        raise DataError(
            f"no pixel of the {images} validation masks counts: all are {splits.ignore_index}, "
            "which is data.ignore_index"
        )
    name = "best-" * run.best + str(inference).replace(", ", "-").replace(" ", "-")
    folder = run.folder / "evaluation" / name if output is None else Path(output)
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        save_evaluation(folder / EVALUATION_FILE, evaluation, splits, run.iteration, inference)
        save_confusion(
            folder / "confusion_matrix.png", evaluation.confusion, list(splits.class_names)
        )
    return RunEvaluation(evaluation, splits.class_names, images, inference, run.iteration, folder)


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


def save_evaluation(
    path: Path,
    evaluation: Evaluation,
    splits: DatasetSplits,
    iteration: int,
    inference: Inference,
) -> None:
    """Writes an `EvaluationRecord`; a very large confusion matrix goes into a file beside it.

    Args:
        path: of the JSON file.
        evaluation: of the validation images of ``splits``.
        splits: the data.
        iteration: the number of steps that the network has seen.
        inference: how the images were predicted.
    """
    names = list(splits.class_names)
    shares = zip(
        evaluation.class_iou, evaluation.class_accuracy, evaluation.class_precision, strict=True
    )
    record: EvaluationRecord = {
        "iteration": iteration,
        "inference": str(inference),
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
        matrix = path.with_name("confusion_matrix.npy")
        write_whole(matrix, lambda file: np.save(file, evaluation.confusion.numpy()))
        record["confusion"] = matrix.name
    write_json(path, record)


@dataclass(frozen=True)
class StoredEvaluation:
    """A record that `save_evaluation` wrote, read again.

    Attributes:
        record: the file, whose nan are None.
        confusion: pixels by true and by predicted class, ``[K, K]`` int64.
        path: of the file.
    """

    record: EvaluationRecord
    confusion: npt.NDArray[np.int64]
    path: Path


def load_evaluation(path: Path) -> StoredEvaluation:
    """Reads what `save_evaluation` wrote; DataError if the file is missing or damaged."""
    try:
        record: EvaluationRecord = read_json(path)
        stored = record["confusion"]
        matrix = np.load(path.with_name(stored)) if isinstance(stored, str) else np.array(stored)
        count = len(record["classes"])
        if matrix.shape != (count, count):
            raise ValueError(f"its confusion matrix has the shape {list(matrix.shape)}")
        return StoredEvaluation(record, matrix.astype(np.int64), path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot read the evaluation {path}: {type(error).__name__}: {error}"
        ) from error
