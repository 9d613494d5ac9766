"""What a run folder tells about its run, finished or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cac_ext.train.config import Config, to_mapping
from cac_ext.train.data.classes import Classes, load_classes
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.inference import configured_inference
from cac_ext.train.runs.environment import Session, load_sessions
from cac_ext.train.runs.evaluation import (
    EVALUATION_FILE,
    VALIDATION_FILE,
    StoredEvaluation,
    load_evaluation,
)
from cac_ext.train.runs.folder import CONFIG_FILE, read_config
from cac_ext.train.runs.log import read_metrics

#: Settings of the data that do not change the validation images.
_OF_TRAINING = (
    *("labelled_list", "unlabelled_list", "labelled_ratio", "split_seed"),
    *("background_class", "max_image_pixels", "num_workers"),
)


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder records it.

    Attributes:
        title: its name in the report.
        folder: of the run.
        config: of the run.
        entries: lines of its log; empty before the first one.
        class_names: of its classes; empty if nothing names them yet.
        classes: with their colors; None if the folder does not keep them.
        evaluation: with the confusion matrix of the latest evaluation; None if none is stored.
        sessions: the environments in which it was trained; empty if not recorded.
        missing: a sentence for each thing that the folder lacks.
    """

    title: str
    folder: Path
    config: Config
    entries: Sequence[Mapping[str, Any]]
    class_names: Sequence[str]
    classes: Classes | None
    evaluation: StoredEvaluation | None
    sessions: Sequence[Session]
    missing: Sequence[str]

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        """Logged steps of the training."""
        return [entry for entry in self.entries if entry["split"] == "train"]

    @property
    def validations(self) -> list[Mapping[str, Any]]:
        """Evaluations of the training."""
        return [entry for entry in self.entries if entry["split"] == "validation"]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The evaluation with the highest mIoU, of equal ones the first; None without any."""
        measured = [entry for entry in self.validations if entry["miou"] is not None]
        return max(measured, key=lambda entry: entry["miou"], default=None)

    @property
    def state(self) -> str:
        """How far the training has come."""
        total = self.config.iterations
        if not self.entries:
            return "not begun: nothing is logged"
        evaluated = self.validations[-1]["iteration"] if self.validations else 0
        if evaluated >= total:
            return "finished"
        if self._ran_out_of_patience():
            return f"stopped early, after iteration {evaluated} of {total} (schedule.patience)"
        return f"unfinished: logged up to iteration {self.entries[-1]['iteration']} of {total}"

    @property
    def validation_data(self) -> str:
        """Equal for runs with the same validation images: the settings that choose them."""
        data = to_mapping(self.config)["data"]
        synthetic = data.pop("synthetic")
        for key in _OF_TRAINING:
            del data[key]
        if data["name"] == "synthetic":
            chosen = ("seed", "image_size", "validation")
            data["synthetic"] = {key: synthetic[key] for key in chosen}
        return json.dumps([data, list(self.class_names)])

    def _ran_out_of_patience(self) -> bool:
        patience, best = self.config.schedule.patience, self.best
        if patience is None or best is None:
            return False
        since = sum(entry["iteration"] > best["iteration"] for entry in self.validations)
        return since >= patience


def read_facts(title: str, folder: Path) -> RunFacts:
    """Reads a run folder. Whatever it lacks but its configuration is named in ``missing``.

    Raises:
        ConfigError: the folder is no run folder.
    """
    _require_run(folder)
    config = read_config(folder)
    missing = []
    log = folder / "metrics.jsonl"
    entries = read_metrics(log) if log.is_file() else []
    if not log.is_file():
        missing.append("curves and figures: there is no metrics.jsonl; the training has not begun")
    validations = [entry for entry in entries if entry["split"] == "validation"]
    try:
        classes = load_classes(folder)
        names = list(classes.class_names)
    except ConfigError as error:
        classes, names = None, list(validations[-1]["class_iou"]) if validations else []
        missing.append(f"colors of the classes: {error}")
    if entries and not validations:
        missing.append(
            "mIoU: not evaluated yet (it is after every "
            f"schedule.evaluate_every={config.schedule.evaluate_every} epochs)"
        )
    evaluation = None
    if validations:
        try:
            evaluation = _stored_evaluation(folder, config, validations[-1]["iteration"])
        except DataError as error:
            missing.append(f"confusion matrix: {error}")
        else:
            if evaluation is None:
                missing.append(
                    "confusion matrix: not stored (earlier versions did not); measure it by "
                    "`cac-ext evaluate RUN_FOLDER`, then repeat the report"
                )
    sessions = load_sessions(folder)
    if not sessions:
        missing.append("environment: not recorded (earlier versions did not)")
    return RunFacts(title, folder, config, entries, names, classes, evaluation, sessions, missing)


def _require_run(folder: Path) -> None:
    """ConfigError for a folder that is no run but holds some, which a command can name."""
    if (folder / CONFIG_FILE).is_file() or not folder.is_dir():
        return
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    if inside:
        raise ConfigError(
            f"{folder} is no run folder, but holds {len(inside)} of them: give {folder}/*, or "
            f"some, such as {folder / inside[0]}"
        )


def _stored_evaluation(folder: Path, config: Config, iteration: int) -> StoredEvaluation | None:
    """The record of the training's latest evaluation, or of the same one by `cac-ext evaluate`."""
    inference = str(configured_inference(config))
    paths = [folder / VALIDATION_FILE, *sorted(folder.glob(f"evaluation/*/{EVALUATION_FILE}"))]
    for path in paths:
        if not path.is_file():
            continue
        stored = load_evaluation(path)
        same = stored.record["inference"] == inference
        if stored.record["iteration"] == iteration and same:
            return stored
    return None
