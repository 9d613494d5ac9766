"""Planned runs, trained one after the other into one folder: the engine of compare and ablate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypedDict, TypeVar

from cac_ext.train.config import Config
from cac_ext.train.evaluate import absent_names
from cac_ext.train.experiments.prepare import prepare
from cac_ext.train.loop import TrainResult, train
from cac_ext.train.methods import check_method
from cac_ext.train.preflight import require_labels_of_runs
from cac_ext.train.pseudo_labels.folders import PseudoLabelFolders
from cac_ext.train.runtime.distributed import current
from cac_ext.train.runtime.json_files import write_json

#: File of the records, a JSON list.
RESULTS = "results.json"


class RunId(NamedTuple):
    """A run of a plan: the method or row that it trains, and the seed."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"

    def folder_in(self, folder: Path) -> Path:
        """The folder of the run below the folder of the plan."""
        return folder / f"{self.name}-seed{self.seed}"


#: The configuration of each run, in the order in which they are trained.
Plan = Mapping[RunId, Config]


class Score(TypedDict):
    """What every record of ``results.json`` holds of its run's last evaluation.

    Attributes:
        miou: in [0, 1].
        class_iou: by class name, in [0, 1]; nan, null in the file, for a class that is absent.
        absent_classes: classes neither in the images nor predicted.
    """

    miou: float
    class_iou: Mapping[str, float | None]
    absent_classes: list[str]


RecordT = TypeVar("RecordT", bound=Score)


def run_plan(
    runs: Plan,
    folder: Path,
    describe: Callable[[RunId, Config, Score], RecordT],
    *,
    earlier: Mapping[RunId, RecordT] | None = None,
    after_each: Callable[[RunId, TrainResult, Mapping[RunId, RecordT]], None],
    progress: bool = True,
) -> dict[RunId, RecordT]:
    """Trains every run that is not finished yet; interrupted ones resume from their checkpoints.

    ``folder`` receives a run folder ``NAME-seedN`` for each run, the pseudo labels that they share,
    and ``results.json``, which is updated after each run. Within `distributed.process_group` all
    processes call this.

    Args:
        runs: what to train.
        folder: where.
        describe: makes the record of a run.
        earlier: records that stay in front of those of the runs.
        after_each: gets the result of each run and all records so far. A result holds a network:
            what it does not keep is freed before the next run.
        progress: whether to show progress.

    Returns:
        All records.

    Raises:
        UserError: a run cannot be trained. All are checked before the first one starts.
    """
    for config in runs.values():
        check_method(config)
    folders = {run.folder_in(folder): config for run, config in runs.items()}
    require_labels_of_runs(folders, progress=progress)
    records = dict(earlier or {})
    for number, (run, config) in enumerate(runs.items(), 1):
        label = f"[{number}/{len(runs)}] {run}"
        shared = PseudoLabelFolders.shared(folder, run.seed)
        ready = prepare(config, shared, label=label, progress=progress)
        result = train(ready, run.folder_in(folder), label=label, resume=True, progress=progress)
        records[run] = describe(run, config, _score(result))
        if current().is_main:
            write_json(folder / RESULTS, [*records.values()])
        after_each(run, result, records)
        del result
    return records


def _score(result: TrainResult) -> Score:
    return Score(
        miou=result.miou,
        class_iou=result.class_iou,
        absent_classes=absent_names(result.class_iou),
    )
