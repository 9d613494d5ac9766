"""The paper's Fig. 6, 7 and 8 for any number of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cac_ext.train.config import Config
from cac_ext.train.data import build_datasets
from cac_ext.train.errors import DataError
from cac_ext.train.experiments.figure_folders import output_folder, titled
from cac_ext.train.figures.curves import (
    IOU_1,
    PrecisionCurve,
    ValidationCurve,
    precision_figure,
    validation_figure,
)
from cac_ext.train.figures.panels import save_panel
from cac_ext.train.inference import configured_inference
from cac_ext.train.runs.folder import load_run, read_config, require_same_classes
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runtime.text_tables import aligned_table

_DPI = 110
_PRECISION = "negative_precision"


def draw_validation_curves(folders: Sequence[Path], output: Path | None = None) -> str:
    """Writes ``validation_curves.png`` (Fig. 7); returns a table of the last and best mIoU.

    Needs the configurations and the logs, so a run may still be training.

    Args:
        folders: of the runs.
        output: folder of the picture; see `output_folder`.

    Raises:
        UserError: a run has no log, or has not been evaluated yet.
    """
    curves = {}
    for title, folder in titled(folders).items():
        config, entries = read_config(folder), _log(folder)
        curves[title] = _validation_curve(folder, config, entries)
    path = _new_picture(folders, output, "validation_curves.png")
    validation_figure(curves).savefig(path, dpi=_DPI)
    rows = []
    for title, curve in curves.items():
        best = max(range(len(curve.miou)), key=curve.miou.__getitem__)
        figures = (curve.miou[-1], curve.miou[best])
        name = f"{title} ({IOU_1})" if curve.whole_overlap else title
        rows.append([name, *(f"{100 * x:.2f}" for x in figures), f"{curve.epochs[best]:g}"])
    table = aligned_table(["validation mIoU", "last", "best", "in epoch"], rows)
    return f"{table}\n{path}"


def draw_negative_precision(folders: Sequence[Path], output: Path | None = None) -> str:
    """Writes ``negative_precision.png`` (Fig. 6); returns a table of the last epoch's precision.

    Args:
        folders: of the runs.
        output: folder of the picture; see `output_folder`.

    Raises:
        UserError: a run has no log, or has not logged the precision.
    """
    curves = {}
    for title, folder in titled(folders).items():
        config, entries = read_config(folder), _log(folder)
        curves[title] = precision_curve(folder, config, entries)
    path = _new_picture(folders, output, "negative_precision.png")
    precision_figure(curves).savefig(path, dpi=_DPI)
    rows = [
        [
            title,
            f"{curve.epochs[-1]}",
            *(f"{100 * x[-1]:.2f}" for x in (curve.selected, curve.random)),
        ]
        for title, curve in curves.items()
    ]
    table = aligned_table(["precision of negatives", "epoch", "selected", "random"], rows)
    return f"{table}\n{path}"


def draw_panel(
    folders: Sequence[Path],
    overrides: Sequence[str],
    output: Path | None = None,
    *,
    images: int,
) -> str:
    """Writes ``predictions.png`` (Fig. 8): validation images, their truth, a column for each run.

    Args:
        folders: of the runs. Data and test-time options are those of the first.
        overrides: ``key=value`` of data and device, for all runs.
        output: folder of the picture; see `output_folder`.
        images: number of validation images, spread evenly over the set.

    Returns:
        The path of the picture.

    Raises:
        UserError: a run cannot be read, or the runs have different classes.
    """
    runs = {title: load_run(folder, overrides) for title, folder in titled(folders).items()}
    config = next(iter(runs.values())).config
    splits = build_datasets(config.data)
    for run in runs.values():
        require_same_classes(run, splits)
    path = _new_picture(folders, output, "predictions.png")
    networks = {title: run.network for title, run in runs.items()}
    save_panel(path, splits, networks, count=images, inference=configured_inference(config))
    return str(path)


def _new_picture(folders: Sequence[Path], output: Path | None, name: str) -> Path:
    folder = output_folder(folders, output)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{folder} holds no metrics.jsonl: its training has not begun")
    return read_metrics(path)


def _validation_curve(
    folder: Path, config: Config, entries: Sequence[Mapping[str, Any]]
) -> ValidationCurve:
    miou = {
        entry["iteration"]: entry["miou"]
        for entry in entries
        if entry["split"] == "validation" and entry["miou"] is not None
    }
    if not miou:
        raise DataError(
            f"{folder} has no validation curve: it has not been evaluated yet (after every "
            f"schedule.evaluate_every={config.schedule.evaluate_every} epochs)"
        )
    pairs_were_used = any("active_share" in entry for entry in entries)
    return ValidationCurve(
        config.data.name,
        [iteration / config.schedule.iterations_per_epoch for iteration in miou],
        [*miou],
        [*miou.values()],
        whole_overlap=pairs_were_used and config.method.iou_range[0] == 1,
    )


def precision_curve(
    folder: Path, config: Config, entries: Sequence[Mapping[str, Any]]
) -> PrecisionCurve:
    """Means over the logged steps of each epoch; an epoch without anchors is left out.

    Args:
        folder: of the run, for errors.
        config: of the run.
        entries: of its log, from `read_metrics`.

    Raises:
        DataError: the run has not logged the precision.
    """
    of_epochs: dict[int, list[tuple[float, float]]] = {}
    for entry in entries:
        pair = entry.get(_PRECISION), entry.get(f"{_PRECISION}_random")
        if pair[0] is not None and pair[1] is not None:
            epoch = (entry["iteration"] - 1) // config.schedule.iterations_per_epoch + 1
            of_epochs.setdefault(epoch, []).append((float(pair[0]), float(pair[1])))
    if not of_epochs and any(_PRECISION in entry for entry in entries):
        raise DataError(
            f"{folder} has no precision of negatives: no logged step had an anchor with a negative "
            "of another pseudo label"
        )
    if not of_epochs:
        raise DataError(
            f"{folder} has logged no precision of negatives: train a method with the contrastive "
            "loss, with run.negative_precision=true and masks of the unlabelled images"
        )
    means = [[fmean(values) for values in zip(*pairs, strict=True)] for pairs in of_epochs.values()]
    return PrecisionCurve([*of_epochs], [mean[0] for mean in means], [mean[1] for mean in means])
