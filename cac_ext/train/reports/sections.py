"""The parts of a report: tables and charts of the facts of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from cac_ext.train.config import to_yaml
from cac_ext.train.errors import DataError
from cac_ext.train.evaluate import absence_note
from cac_ext.train.experiments.run_figures import precision_curve
from cac_ext.train.figures.panels import class_colors
from cac_ext.train.reports.charts import Chart, Series, draw, look_of
from cac_ext.train.reports.facts import RunFacts
from cac_ext.train.reports.pictures import Picture, confusion_picture, hex_color
from cac_ext.train.reports.settings import named_configuration, notable_settings
from cac_ext.train.reports.tables import Cell, Row, Table, best_marked, percent, texts
from cac_ext.train.runs.environment import Session

Runs = Sequence[RunFacts]

_COSTS = {
    "seconds_per_step": "time a step (s)",
    "images_per_second": "images a second",
    "memory_mib": "peak memory (MiB)",
}
_PRECISION = ("negative_precision", "negative_precision_random")
_NO_CURVE = {"iteration", "split", *_COSTS, *_PRECISION}
_CONFUSIONS = 8  # most frequent ones that are listed
_MOST_IN_TABLE = 30  # classes of a confusion matrix that is a table of numbers


def summary(runs: Runs) -> Table:
    """What each run is and what came out."""
    rows = [
        _row(runs, "state", lambda run: run.state),
        _row(runs, "data", lambda run: run.config.data.name),
        _row(runs, "labelled", _labelled),
        _row(runs, "network", _network),
        _row(runs, "method", _method),
        _row(runs, "seed", lambda run: str(run.config.seed)),
        Row("last mIoU (%)", best_marked([_last_miou(run) for run in runs])),
        _row(runs, "of iteration", lambda run: _iteration(run.validations[-1:])),
        Row("best mIoU (%)", best_marked([run.best["miou"] if run.best else None for run in runs])),
        _row(runs, "of iteration", lambda run: _iteration([run.best] if run.best else [])),
        _row(runs, "pixel accuracy (%)", _pixel_accuracy),
    ]
    notes = []
    if len({run.validation_data for run in runs}) > 1:
        notes.append(
            "The runs were not evaluated on the same images: figures that stand side by side "
            "cannot be compared where the data differ."
        )
    if any(run.validations for run in runs):
        notes.append(
            "The best mIoU is chosen by the validation images, so it is an optimistic one."
        )
    return _table("run", runs, rows, notes)


def validation_charts(runs: Runs) -> list[Chart]:
    """The validation mIoU over the iterations, a chart for each data set."""
    charts = []
    for name in dict.fromkeys(run.config.data.name for run in runs):
        series = [
            Series(
                run.title,
                look_of(number),
                [(x["iteration"], _in_percent(x["miou"])) for x in run.validations],
            )
            for number, run in enumerate(runs)
            if run.config.data.name == name
        ]
        charts.append(draw(f"validation mIoU on {name} (%)", "iteration", series))
    return [chart for chart in charts if chart is not None]


def class_tables(runs: Runs) -> list[Table]:
    """The IoU of each class at the last evaluation, a table for each list of classes."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, run in enumerate(runs):
        if run.validations:
            alike.setdefault(tuple(run.validations[-1]["class_iou"]), []).append(number)
    return [_class_table(runs, numbers) for numbers in alike.values()]


def _class_table(runs: Runs, numbers: Sequence[int]) -> Table:
    chosen = [runs[number] for number in numbers]
    last = [run.validations[-1] for run in chosen]
    ious: list[Mapping[str, float | None]] = [entry["class_iou"] for entry in last]
    corner, columns = "class: IoU (%)", [run.title for run in chosen]
    shares = [[iou[name] for iou in ious] for name in ious[0]]
    total: list[float | None] = [entry["miou"] for entry in last]
    of_columns: list[int | None] = [*numbers]
    cells = [best_marked(of_class) for of_class in shares]
    sums = best_marked(total)
    evaluation = chosen[0].evaluation
    if len(chosen) == 1 and evaluation is not None:
        corner, columns = "class", ["IoU (%)", "accuracy (%)", "precision (%)"]
        of_columns += [None, None]
        for row, of_class in zip(cells, evaluation.record["classes"].values(), strict=True):
            row += [Cell(percent(of_class["accuracy"])), Cell(percent(of_class["precision"]))]
        sums += texts(["", ""])
    colors = [""] * len(cells)
    if chosen[0].classes is not None:
        colors = [hex_color(color) for color in class_colors(chosen[0].classes)]
    rows = [Row(*row) for row in zip(ious[0], cells, colors, strict=True)]
    rows.append(Row("mIoU", sums, total=True))
    notes = []
    for run, iou in zip(chosen, ious, strict=True):
        note = absence_note(iou)
        notes += [f"{run.title}: {note}."] if note else []
    if len(columns) > len(chosen):
        notes.append(
            "Accuracy: share of a class's pixels that are predicted as this class. Precision: "
            "share of the pixels predicted as a class that belong to it."
        )
    return Table(corner, columns, of_columns, rows, notes, numbers=True)


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of a run.

    Attributes:
        run: its number.
        title: of the run.
        names: of the classes.
        pixels: by true and by predicted class, ``[K, K]``.
        shares: the same as shares of each true class, ``[K][K]``; None for an absent class.
        picture: of the matrix, for too many classes for a table of numbers.
        common: the most frequent confusions.
        source: where the numbers come from.
    """

    run: int
    title: str
    names: Sequence[str]
    pixels: npt.NDArray[np.int64]
    shares: Sequence[Sequence[float | None]]
    picture: Picture | None
    common: Table
    source: str


def confusions(runs: Runs) -> list[Confusion]:
    """The confusion matrices that runs have stored."""
    return [
        _confusion(number, run) for number, run in enumerate(runs) if run.evaluation is not None
    ]


def _confusion(number: int, run: RunFacts) -> Confusion:
    assert run.evaluation is not None
    record, pixels = run.evaluation.record, run.evaluation.confusion
    names = list(record["classes"])
    of_class = pixels.sum(axis=1, keepdims=True)  # [K, 1]
    shares = [
        [value / total if total else None for value in row]
        for row, (total,) in zip(pixels.tolist(), of_class.tolist(), strict=True)
    ]
    wrong = pixels * (1 - np.eye(len(names), dtype=np.int64))
    all_wrong = max(1, int(wrong.sum()))
    rows = []
    for flat in wrong.argsort(axis=None)[::-1][:_CONFUSIONS].tolist():
        true, predicted = divmod(flat, len(names))
        count = int(wrong[true, predicted])
        if count:
            cells = [
                Cell(names[predicted]),
                Cell(percent(shares[true][predicted])),
                Cell(percent(count / all_wrong)),
            ]
            rows.append(Row(names[true], cells))
    common = Table(
        "true class",
        ["predicted as", "% of the class's pixels", "% of all wrong pixels"],
        [None] * 3,
        rows,
        numbers=True,
    )
    source = (
        f"Iteration {record['iteration']}, {record['images']} images, {record['inference']}; mIoU "
        f"{percent(record['miou'])}%; from {run.evaluation.path.relative_to(run.folder)}."
    )
    picture = None
    if len(names) > _MOST_IN_TABLE:
        picture = confusion_picture(pixels, names, f"confusion matrix of {run.title}")
    return Confusion(number, run.title, names, pixels, shares, picture, common, source)


def training_charts(runs: Runs) -> list[Chart]:
    """A chart for each figure that the steps log, the total loss first."""
    keys = dict.fromkeys(key for run in runs for entry in run.steps for key in entry)
    return _charts(runs, {key: key for key in keys if key not in _NO_CURVE})


def cost_charts(runs: Runs) -> list[Chart]:
    """Charts of time and memory."""
    return _charts(runs, _COSTS)


def _charts(runs: Runs, titles: Mapping[str, str]) -> list[Chart]:
    charts = []
    for key, title in titles.items():
        series = [
            Series(
                run.title,
                look_of(number),
                [(entry["iteration"], entry[key]) for entry in run.steps if key in entry],
            )
            for number, run in enumerate(runs)
        ]
        charts.append(draw(title, "iteration", series))
    return [chart for chart in charts if chart is not None]


def negative_charts(runs: Runs) -> tuple[list[Chart], list[str]]:
    """The precision of the negatives by epoch; and why runs have none."""
    series, reasons = [], []
    for number, run in enumerate(runs):
        try:
            curve = precision_curve(Path(run.title), run.config, run.entries)
        except DataError as error:
            reasons.append(f"{error}.")
            continue
        look = look_of(number)
        for label, shares in (("selected", curve.selected), ("random", curve.random)):
            points = [(x, 100 * y) for x, y in zip(curve.epochs, shares, strict=True)]
            series.append(Series(f"{run.title}, {label}", look, points, label == "random"))
    chart = draw("true negatives (% of the pairs)", "epoch", series) if series else None
    return ([chart] if chart else []), reasons


def costs(runs: Runs) -> Table:
    """Time and memory of the training."""
    rows = [
        _row(runs, "time a step, median (s)", _figure("seconds_per_step", median, "{:.3g}")),
        _row(runs, "slowest logged (s)", _figure("seconds_per_step", max, "{:.3g}")),
        _row(runs, "images a second, median", _figure("images_per_second", median, "{:.3g}")),
        _row(runs, "all logged steps", _duration),
        _row(runs, "peak memory (MiB)", _figure("memory_mib", max, "{:,.0f}")),
    ]
    notes = [
        "Times are of the steps alone, without evaluations. Memory is that of the tensors on a "
        "GPU, and that of the process on a processor."
    ]
    return _table("cost", runs, rows, notes)


def settings(runs: Runs) -> Table:
    """Settings that differ from the named configuration, or between the runs."""
    found = notable_settings([run.config for run in runs])
    names = list(dict.fromkeys(named_configuration(run.config) for run in runs))
    rows = []
    for setting in found:
        defaults = list(dict.fromkeys(setting.defaults.values()))
        default = defaults[0]
        if len(defaults) > 1:
            default = "; ".join(f"{name}: {value}" for name, value in setting.defaults.items())
        cells = [
            Cell(value, changed)
            for value, changed in zip(setting.values, setting.changed, strict=True)
        ]
        rows.append(Row(setting.key, [*cells, Cell(default)], meaning=setting.meaning))
    columns = [*(run.title for run in runs), f"default ({', '.join(names)})"]
    notes = ["Bold values differ from the default; every other setting is the default."]
    if not rows:
        notes = ["Every setting is the default."]
    return Table("setting", columns, [*range(len(runs)), None], rows, notes)


def whole_settings(runs: Runs) -> list[tuple[str, str]]:
    """Title and whole configuration of each run, as YAML."""
    return [(run.title, to_yaml(run.config)) for run in runs]


def environment(runs: Runs) -> Table:
    """On what the runs were trained; without rows if none has recorded it."""
    packages = dict.fromkeys(
        name for run in runs for session in run.sessions for name in session["packages"]
    )
    rows = [
        _row(runs, "device", _by_session(lambda x: x["device"])),
        _row(runs, "model", _by_session(lambda x: x["processor"])),
        _row(runs, "processes", _by_session(lambda x: str(x["processes"]))),
        _row(runs, "threads of a process", _by_session(lambda x: str(x["threads"]))),
        _row(runs, "kernels on a processor", _by_session(lambda x: x["kernels"])),
        _row(runs, "Python", _by_session(lambda x: x["python"])),
        *(_row(runs, name, _by_session(partial(_version, name))) for name in packages),
        _row(runs, "CUDA of torch", _by_session(lambda x: x["cuda"] or "none")),
        _row(runs, "system", _by_session(lambda x: x["platform"])),
        _row(runs, "began", _by_session(lambda x: x["began"])),
    ]
    return _table("environment", runs, rows if packages else [])


def _table(corner: str, runs: Runs, rows: Sequence[Row], notes: Sequence[str] = ()) -> Table:
    return Table(corner, [run.title for run in runs], range(len(runs)), rows, notes)


def _row(runs: Runs, label: str, tell: Callable[[RunFacts], str]) -> Row:
    return Row(label, texts(tell(run) for run in runs))


def _labelled(run: RunFacts) -> str:
    data = run.config.data
    if data.labelled_ratio is not None:
        return f"{data.labelled_ratio} (split {data.split_seed})"
    if data.labelled_list is not None:
        return data.labelled_list
    return "those of the data set"


def _network(run: RunFacts) -> str:
    network = run.config.network
    of_backbone = network.name in ("deeplabv3plus", "pspnet")
    return f"{network.name}, {network.backbone}" if of_backbone else network.name


def _method(run: RunFacts) -> str:
    method, weak = run.config.method, run.config.weak.pseudo_labels
    parts = [method.name]
    if method.name == "cac" and method.unsupervised_weight == 0 and weak is None:
        parts.append("without its loss on unlabelled images")
    if method.directional_contrast:
        parts.append("with the directional contrastive loss")
    if run.config.self_training.pseudo_labels is not None:
        parts.append("with a teacher's pseudo labels")
    if weak is not None:
        parts.append("with image-level labels")
    return ", ".join(parts)


def _last_miou(run: RunFacts) -> float | None:
    return run.validations[-1]["miou"] if run.validations else None


def _iteration(entries: Sequence[Mapping[str, Any]]) -> str:
    return str(entries[0]["iteration"]) if entries else "–"


def _pixel_accuracy(run: RunFacts) -> str:
    return "–" if run.evaluation is None else percent(run.evaluation.record["pixel_accuracy"])


def _in_percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _figure(
    key: str, reduce: Callable[[list[float]], float], form: str
) -> Callable[[RunFacts], str]:
    """A function from a run to the median or maximum of a logged figure, as text."""

    def tell(run: RunFacts) -> str:
        values = [entry[key] for entry in run.steps if entry.get(key) is not None]
        return form.format(reduce(values)) if values else "–"

    return tell


def _duration(run: RunFacts) -> str:
    """The time of all steps up to the last one that is logged."""
    seconds, before = 0.0, 0
    for entry in run.steps:
        seconds += (entry["iteration"] - before) * (entry.get("seconds_per_step") or 0)
        before = entry["iteration"]
    return f"{timedelta(seconds=round(seconds))}" if before else "–"


def _version(package: str, session: Session) -> str:
    return session["packages"].get(package, "–")


def _by_session(tell: Callable[[Session], str]) -> Callable[[RunFacts], str]:
    """A function from a run to what its sessions have in common, or to what each has."""

    def of_run(run: RunFacts) -> str:
        parts: list[str] = []
        last = None
        for session in run.sessions:
            text = tell(session)
            if text != last:
                parts.append(f"{text} (from iteration {session['from_iteration']})")
            last = text
        if len(parts) == 1:
            return str(last)
        return "; ".join(parts) if parts else "not recorded"

    return of_run
