"""The form of the result files, and how they are read from run folders."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, TypedDict

import torch

from benchmarks.measure.machine import describe_commit, describe_machine, describe_software
from benchmarks.measure.records import Commit, Machine, Software
from cac_ext.train.runtime.json_files import read_json, write_json

#: Logged figures that say how a run was trained, not what it learned.
_COSTS = {"iteration", "images_per_second", "seconds_per_step", "memory_mib"}

#: Lower ends of the intervals of the largest class probability; the thresholds of CAC and FixMatch.
CONFIDENCES = (0.0, 0.5, 0.75, 0.95)


class Limits(TypedDict):
    """What limits a network; see `limits.find_limits`.

    Shares lie in [0, 1]; the lists follow `CONFIDENCES`.
    """

    labelled_miou: float  # of the images that it was trained on with masks
    confident: list[float]  # share of the pixels of unlabelled images whose confidence is there
    correct: list[float | None]  # share of those that are classified correctly; None if none are


class Run(TypedDict, total=False):
    """One training. Shares and IoU lie in [0, 1]."""

    method: str  # of a comparison
    row: str  # of a sweep
    seed: int
    miou: float
    class_iou: dict[str, float | None]
    evaluations: list[tuple[int, float]]  # iteration, mIoU
    iterations: int
    images_per_second: float
    seconds_per_step: float
    memory_mib: float  # on a GPU
    late: dict[str, float]  # mean of each other logged figure, in the last quarter
    limits: Limits  # of CamVid


class Gain(TypedDict):
    """mIoU of a method minus that of the first one, in [-1, 1]."""

    by_seed: dict[str, float]
    mean: float


class Weights(TypedDict, total=False):
    """Of the backbone."""

    name: str
    sha256: str


class Cost(TypedDict):
    """Of the steps of a method, in a process of its own."""

    method: str
    seconds_per_step: float
    memory_mib: float  # at the peak: of the whole process on a CPU, of tensors on a GPU


class TrainingResults(TypedDict, total=False):
    """The result file of one part."""

    part: str
    quick: bool
    command: str
    weights: Weights
    machine: Machine
    software: Software
    commit: Commit
    runs: list[Run]
    gains: dict[str, Gain]  # of a comparison, by method
    costs: list[Cost]


def new_results(part: str, command: str, device: torch.device, *, quick: bool) -> TrainingResults:
    """Results of a part without its figures."""
    return {
        "part": part,
        "quick": quick,
        "command": command,
        "machine": describe_machine(device),
        "software": describe_software(),
        "commit": describe_commit(),
    }


def write_results(folder: Path, results: TrainingResults, text: str) -> None:
    """Writes PART.json and PART.md, which holds ``text``; prints the text."""
    path = folder / results["part"]
    write_json(path.with_suffix(".json"), results)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nwritten: {path}.json, {path}.md")


def describe_weights(path: str | None) -> Weights:
    """Name and hash of a file of weights."""
    if path is None or not Path(path).is_file():
        return {"name": "those of the configuration"}
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return {"name": Path(path).name, "sha256": digest}


def collect_runs(folder: Path) -> list[Run]:
    """The runs in a folder of `compare` or `ablate`, with figures from their logs."""
    from cac_ext.train.runs.log import read_metrics

    runs: list[Run] = read_json(folder / "results.json")
    for run in runs:
        name = run["method"] if "method" in run else run["row"]
        lines = read_metrics(folder / f"{name}-seed{run['seed']}" / "metrics.jsonl")
        run["class_iou"] = {k: None if v != v else v for k, v in run["class_iou"].items()}
        run["evaluations"] = [(x["iteration"], x["miou"]) for x in lines if "miou" in x]
        run["iterations"] = lines[-1]["iteration"]
        _add_steps(run, [line for line in lines if "loss" in line])
    return runs


def _add_steps(run: Run, steps: Sequence[Mapping[str, Any]]) -> None:
    if not steps:
        return
    # A warm-up logs fewer figures, and its steps are cheaper.
    steps = [line for line in steps if line.keys() == steps[-1].keys()]
    run["images_per_second"] = median(line["images_per_second"] for line in steps)
    run["seconds_per_step"] = median(line["seconds_per_step"] for line in steps)
    if torch.cuda.is_available():  # on a CPU it is the peak of all runs of this process
        run["memory_mib"] = max(line["memory_mib"] for line in steps)
    late = steps[-max(1, len(steps) // 4) :]
    figures = [name for name, value in late[-1].items() if isinstance(value, int | float)]
    run["late"] = {
        name: fmean(known)
        for name in figures
        if name not in _COSTS and (known := [x[name] for x in late if x[name] is not None])
    }


def methods_of(runs: Sequence[Run]) -> list[str]:
    """In the order of the first seed."""
    return list(dict.fromkeys(run["method"] for run in runs))


def gains_of(runs: Sequence[Run]) -> dict[str, Gain]:
    """Of every method but the first one: of each seed, and their mean."""
    miou = {(run["method"], run["seed"]): run["miou"] for run in runs}
    seeds = dict.fromkeys(run["seed"] for run in runs)
    first, *others = methods_of(runs)
    gains: dict[str, Gain] = {}
    for method in others:
        by_seed = {str(seed): miou[method, seed] - miou[first, seed] for seed in seeds}
        gains[method] = {"by_seed": by_seed, "mean": fmean(by_seed.values())}
    return gains
