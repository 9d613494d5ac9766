"""The figures of the CamVid trainings as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TypedDict

from benchmarks.measure.records import Commit, Machine, Software
from cac_ext.train.runtime.text_tables import markdown_table

METHODS = {"sup_only": "SupOnly", "cac": "CAC"}


class Run(TypedDict, total=False):
    """One training. Shares and IoU lie in [0, 1]."""

    method: str  # of the comparison
    row: str  # of the sweep
    seed: int
    miou: float
    class_iou: dict[str, float | None]
    evaluations: list[tuple[int, float]]  # iteration, mIoU
    iterations: int
    images_per_second: float
    memory_mib: float
    negatives: float  # of an anchor, at the end
    active_share: float  # of the anchors, in the last quarter


class Weights(TypedDict, total=False):
    """Of the backbone."""

    name: str
    sha256: str


class Gains(TypedDict):
    """mIoU of CAC minus that of SupOnly, in [-1, 1]."""

    by_seed: dict[str, float]
    mean: float


class CamvidResults(TypedDict, total=False):
    """The result file of one part."""

    part: str
    quick: bool
    command: str
    weights: Weights
    machine: Machine
    software: Software
    commit: Commit
    runs: list[Run]
    gains: Gains  # of the comparison


def gains_of(runs: Sequence[Run]) -> Gains:
    """Of each seed and their mean."""
    miou = {(run["method"], run["seed"]): run["miou"] for run in runs}
    seeds = dict.fromkeys(run["seed"] for run in runs)
    by_seed = {str(seed): miou["cac", seed] - miou["sup_only", seed] for seed in seeds}
    return {"by_seed": by_seed, "mean": fmean(by_seed.values())}


def camvid_table(results: CamvidResults) -> str:
    """The figures of a part in percent, how they were measured, and the command."""
    if results["part"] == "comparison":
        tables = [_seed_table(results), _class_table(results["runs"])]
    else:
        tables = [_negatives_table(results["runs"])]
    machine, run = results["machine"], results["runs"][-1]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    notes = ["A few iterations, to prove that it runs: these figures say nothing."]
    return "\n\n".join(
        [
            *(notes if results["quick"] else []),
            *tables,
            f"CamVid, 1/8 labelled, {run['iterations']} iterations, validation images at their own "
            f"size. {where}; torch {results['software']['torch']}; backbone weights: "
            f"{results['weights']['name']}; commit {results['commit'].get('commit', 'unknown')}.",
            f"    {results['command']}",
        ]
    )


def _seed_table(results: CamvidResults) -> str:
    by_seed, mean = results["gains"]["by_seed"], results["gains"]["mean"]
    rows = []
    for method, title in METHODS.items():
        found = [run["miou"] for run in results["runs"] if run["method"] == method]
        rows.append([title, *map(_percent, [*found, fmean(found)])])
    rows.append(["gain", *(f"{100 * gain:+.2f}" for gain in [*by_seed.values(), mean])])
    return markdown_table(["mIoU", *(f"seed {seed}" for seed in by_seed), "mean"], rows)


def _class_table(runs: Sequence[Run]) -> str:
    rows = []
    for name in runs[0]["class_iou"]:
        means = []
        for method in METHODS:
            of_seeds = [run["class_iou"][name] for run in runs if run["method"] == method]
            known = [iou for iou in of_seeds if iou is not None]
            means.append(fmean(known) if known else float("nan"))
        rows.append([name, *map(_percent, means), f"{100 * (means[1] - means[0]):+.2f}"])
    return markdown_table(["IoU, mean of the seeds", *METHODS.values(), "gain"], rows)


def _negatives_table(runs: Sequence[Run]) -> str:
    rows = [
        [
            run["row"].removeprefix("negatives-"),
            f"{run.get('negatives', 0):.0f}",
            _percent(run["miou"]),
            f"{run.get('images_per_second', 0):.1f}",
            f"{run['memory_mib']:.0f}" if "memory_mib" in run else "-",
        ]
        for run in runs
    ]
    header = ["row of Table 4", "negatives of an anchor", "mIoU", "images/s", "memory [MiB]"]
    return markdown_table(header, rows)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"
