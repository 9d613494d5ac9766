"""Several methods at equal iterations, seeds and images: a table, a picture, a run folder each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from cac_ext.train.config import Config, load
from cac_ext.train.data import DatasetSplits
from cac_ext.train.errors import ConfigError, listed
from cac_ext.train.evaluate import absence_note
from cac_ext.train.experiments.engine import Plan, RunId, Score, run_plan
from cac_ext.train.experiments.methods import method_overrides, title
from cac_ext.train.figures.panels import save_panel
from cac_ext.train.inference import configured_inference
from cac_ext.train.loop import TrainResult
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runtime.distributed import current
from cac_ext.train.runtime.text_tables import aligned_table
from cac_ext.train.runtime.whole_files import naming, write_text_whole


class MethodRecord(Score):
    """A run of a comparison in ``results.json``."""

    method: str
    seed: int


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        records: mIoU and IoU of each class by (method, seed): ``records["cac", 0]["miou"]``.
        folder: holds a run folder for each, ``results.json``, ``table.txt`` and ``picture.png``.
    """

    records: Mapping[RunId, MethodRecord]
    folder: Path

    def __str__(self) -> str:
        """The table of mIoUs in percent that ``cac-ext compare`` prints."""
        table = format_table({run: record["miou"] for run, record in self.records.items()})
        return table + format_absences(
            {run: record["class_iou"] for run, record in self.records.items()}
        )


def plan(
    name_or_path: str, overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> dict[RunId, Config]:
    """The configuration of each (method, seed), all checked before anything is trained."""
    if not methods or not seeds:
        raise ConfigError("a comparison needs at least one method and one seed")
    return {
        RunId(method, seed): load(
            name_or_path, [*overrides, *method_overrides(method), f"seed={seed}"]
        )
        for seed in seeds
        for method in methods
    }


def compare(runs: Plan, folder: Path, *, progress: bool = True) -> Comparison:
    """Trains every run that is not finished yet.

    ``folder`` receives what `run_plan` writes, ``table.txt`` and ``picture.png`` of the first seed.
    """
    first_seed = next(iter(runs)).seed
    splits: DatasetSplits | None = None
    shown: dict[str, SegmentationNetwork] = {}

    def describe(run: RunId, config: Config, score: Score) -> MethodRecord:
        return {"method": run.name, "seed": run.seed, **score}

    def keep_what_is_shown(
        run: RunId, result: TrainResult, records: Mapping[RunId, MethodRecord]
    ) -> None:
        nonlocal splits
        splits = splits or result.splits
        if run.seed == first_seed:
            shown[title(run.name)] = result.network.cpu()

    records = run_plan(runs, folder, describe, after_each=keep_what_is_shown, progress=progress)
    comparison = Comparison(records, folder)
    if current().is_main and splits is not None:
        picture = folder / "picture.png"
        with naming(picture):
            # Float32: the networks are on the CPU, which need not have the types of a GPU.
            config = next(iter(runs.values()))
            inference = replace(configured_inference(config), precision="fp32")
            save_panel(picture, splits, shown, inference=inference)
        write_text_whole(folder / "table.txt", f"{comparison}\n")
    return comparison


def format_absences(class_iou: Mapping[tuple[str, int], Mapping[str, float | None]]) -> str:
    """Lines below a table for runs whose mIoU leaves classes out; empty if there are none."""
    lines: dict[str, list[str]] = {}
    for (method, seed), of_classes in class_iou.items():
        note = absence_note(of_classes)
        if note:
            lines.setdefault(note, []).append(f"{method} seed {seed}")
    return "".join(f"\n{listed(runs)}: {note}" for note, runs in lines.items())


def format_table(miou: Mapping[tuple[str, int], float]) -> str:
    """mIoU in percent: a row for each method and its gain, a column for each seed and the mean."""
    methods = list(dict.fromkeys(method for method, _ in miou))
    seeds = list(dict.fromkeys(seed for _, seed in miou))
    rows = []
    for method in methods:
        values = [miou[method, seed] for seed in seeds]
        rows.append([title(method), *(f"{100 * value:.2f}" for value in (*values, fmean(values)))])
    for method in methods[1:]:
        gains = [miou[method, seed] - miou[methods[0], seed] for seed in seeds]
        name = "gain" if len(methods) == 2 else f"{title(method)} gain"
        rows.append([name, *(f"{100 * gain:+.2f}" for gain in (*gains, fmean(gains)))])
    return aligned_table(["method", *(f"seed {seed}" for seed in seeds), "mean mIoU"], rows)
