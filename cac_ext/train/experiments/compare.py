"""Several methods at equal iterations, seeds and images: a table, a picture, a run folder each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from cac_ext.train.config import Config, load
from cac_ext.train.errors import ConfigError, listed
from cac_ext.train.evaluate import absence_note, absent_names
from cac_ext.train.experiments.methods import method_overrides, title
from cac_ext.train.experiments.prepare import prepare
from cac_ext.train.figures.panels import save_panel
from cac_ext.train.loop import train
from cac_ext.train.methods import check_method
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.preflight import require_labels_of_runs
from cac_ext.train.pseudo_labels.folders import PseudoLabelFolders
from cac_ext.train.runs.log import finite
from cac_ext.train.runtime.distributed import current
from cac_ext.train.runtime.whole_files import naming


def plan(
    name_or_path: str, overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> dict[tuple[str, int], Config]:
    """The configuration of each (method, seed), all checked before anything is trained."""
    if not methods or not seeds:
        raise ConfigError("a comparison needs at least one method and one seed")
    return {
        (method, seed): load(name_or_path, [*overrides, *method_overrides(method), f"seed={seed}"])
        for seed in seeds
        for method in methods
    }


def compare(runs: dict[tuple[str, int], Config], folder: Path, *, progress: bool = True) -> str:
    """Trains every run that is not finished yet; returns the table.

    ``folder`` receives a run folder ``METHOD-seedN`` each, ``results.json``, ``table.txt`` and
    ``picture.png`` (of the first seed). A comparison that was interrupted goes on where its
    checkpoints are.
    """
    first_seed = next(iter(runs))[1]
    records: dict[tuple[str, int], dict] = {}
    shown: dict[str, SegmentationNetwork] = {}
    for config in runs.values():
        check_method(config)  # before the first of them takes hours
    folders_of_runs = {
        folder / f"{method}-seed{seed}": config for (method, seed), config in runs.items()
    }
    require_labels_of_runs(folders_of_runs, progress=progress)
    for number, ((method, seed), config) in enumerate(runs.items(), 1):
        label = f"[{number}/{len(runs)}] {method} seed {seed}"
        run_folder = folder / f"{method}-seed{seed}"
        folders = PseudoLabelFolders.shared(folder, seed)
        ready = prepare(config, folders, label=label, progress=progress)
        result = train(ready, run_folder, label=label, resume=True, progress=progress)
        records[method, seed] = {
            "method": method,
            "seed": seed,
            "miou": result.miou,
            "class_iou": finite(result.class_iou),
            "absent_classes": absent_names(result.class_iou),
        }
        if not shown:
            splits = result.splits
        if seed == first_seed:
            shown[title(method)] = result.network.cpu()
        del result  # the next run's memory is its own

    table = format_table({key: record["miou"] for key, record in records.items()})
    table += format_absences({key: record["class_iou"] for key, record in records.items()})
    if not current().is_main:
        return table
    picture = folder / "picture.png"
    with naming(picture):
        save_panel(picture, splits, shown)
    text = json.dumps([*records.values()], indent=2) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    (folder / "table.txt").write_text(table + "\n", encoding="utf-8")
    return table


def format_absences(class_iou: dict[tuple[str, int], dict[str, float | None]]) -> str:
    """Lines below a table: which runs' mIoUs are no means over all classes; nothing if none."""
    lines: dict[str, list[str]] = {}
    for (method, seed), of_classes in class_iou.items():
        note = absence_note(of_classes)
        if note:
            lines.setdefault(note, []).append(f"{method} seed {seed}")
    return "".join(f"\n{listed(runs)}: {note}" for note, runs in lines.items())


def format_table(miou: dict[tuple[str, int], float]) -> str:
    """mIoU in percent: a row for each method, a column for each seed, and the mean."""
    methods = list(dict.fromkeys(method for method, _ in miou))
    seeds = list(dict.fromkeys(seed for _, seed in miou))
    width = max(len("method"), *(len(title(method)) for method in methods))
    header = "  ".join([f"{'method':{width}}", *(f"seed {s:<3}" for s in seeds), "mean mIoU"])
    lines = [header, "-" * len(header)]
    means = {method: fmean(miou[method, seed] for seed in seeds) for method in methods}
    for method in methods:
        cells = [f"{100 * miou[method, seed]:8.2f}" for seed in seeds]
        lines.append("  ".join([f"{title(method):{width}}", *cells, f"{100 * means[method]:9.2f}"]))
    for method in methods[1:]:
        gains = [miou[method, seed] - miou[methods[0], seed] for seed in seeds]
        cells = [f"{100 * gain:+8.2f}" for gain in gains]
        name = "gain" if len(methods) == 2 else f"{title(method)} gain"
        lines.append("  ".join([f"{name:{width}}", *cells, f"{100 * fmean(gains):+9.2f}"]))
    return "\n".join(lines)
