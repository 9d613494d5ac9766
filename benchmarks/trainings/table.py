"""The figures of trainings as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from benchmarks.trainings.records import CONFIDENCES, Cost, Run, TrainingResults, methods_of
from cac_ext.train.runtime.text_tables import markdown_table

_NOTHING = "A few iterations, to prove that it runs: these figures say nothing."


def page(results: TrainingResults, tables: Sequence[str], what: str) -> str:
    """Tables, and how their figures were measured.

    Args:
        results: of which part.
        tables: in Markdown.
        what: was trained, such as "CamVid, 1/8 labelled".
    """
    machine = results["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    facts = [what, where, f"torch {results['software']['torch']}"]
    if "weights" in results:
        facts.append(f"backbone weights: {results['weights']['name']}")
    facts.append(f"commit {results['commit'].get('commit', 'unknown')}")
    notes = [_NOTHING] if results["quick"] else []
    return "\n\n".join([*notes, *tables, f"{'; '.join(facts)}.", f"    {results['command']}"])


def seed_table(results: TrainingResults) -> str:
    """mIoU of each method in percent: of each seed, the mean with its spread, and the gain.

    The spread is the standard deviation between seeds, the gain that over the first method.
    """
    seeds = list(dict.fromkeys(run["seed"] for run in results["runs"]))
    rows = []
    for method in methods_of(results["runs"]):
        found = [run["miou"] for run in results["runs"] if run["method"] == method]
        gain = results["gains"].get(method)
        shown = "" if gain is None else f"{100 * gain['mean']:+.2f}"
        rows.append([_title(method), *map(percent, found), mean_and_spread(found), shown])
    return markdown_table(["mIoU", *(f"seed {seed}" for seed in seeds), "mean", "gain"], rows)


def class_table(runs: Sequence[Run]) -> str:
    """IoU of each class in percent, the mean of the seeds, by method."""
    rows = []
    for name in runs[0]["class_iou"]:
        means = []
        for method in methods_of(runs):
            of_seeds = [run["class_iou"][name] for run in runs if run["method"] == method]
            known = [iou for iou in of_seeds if iou is not None]
            means.append(fmean(known) if known else float("nan"))
        rows.append([name, *map(percent, means)])
    return markdown_table(["IoU, mean of the seeds", *map(_title, methods_of(runs))], rows)


def late_table(runs: Sequence[Run], figures: Sequence[str]) -> str:
    """Logged figures in the last quarter of the training, the mean of the seeds, by method."""
    rows = []
    for name in figures:
        cells = []
        for method in methods_of(runs):
            late = [run.get("late", {}) for run in runs if run["method"] == method]
            known = [figures[name] for figures in late if name in figures]
            cells.append(f"{fmean(known):.3g}" if known else "-")
        if set(cells) != {"-"}:
            rows.append([f"`{name}`", *cells])
    return markdown_table(["last quarter", *map(_title, methods_of(runs))], rows) if rows else ""


def limits_table(runs: Sequence[Run]) -> str:
    """What limits the networks, the mean of the seeds in percent, by method; see `limits`."""
    methods = methods_of(runs)
    of = {method: [run for run in runs if run["method"] == method] for method in methods}

    def row(name: str, figure: Callable[[Run], float | None]) -> list[str]:
        cells = []
        for method in methods:
            known = [value for run in of[method] if (value := figure(run)) is not None]
            cells.append(percent(fmean(known)) if known else "-")
        return [name, *cells]

    rows = [
        row("mIoU of its labelled images", lambda run: run["limits"]["labelled_miou"]),
        row("mIoU of validation images", lambda run: run["miou"]),
    ]
    for number, low in enumerate(CONFIDENCES):
        high = (*CONFIDENCES, 1.0)[number + 1]
        where = f"unlabelled pixels with confidence {low:g} to {high:g}"

        def share(run: Run, number: int = number) -> float:
            return run["limits"]["confident"][number]

        def correct(run: Run, number: int = number) -> float | None:
            return run["limits"]["correct"][number]

        rows += [row(where, share), row("- of them correct", correct)]
    return markdown_table(["after training, mean of the seeds", *map(_title, methods)], rows)


def negatives_table(runs: Sequence[Run]) -> str:
    """The rows of Table 4."""
    rows = [
        [
            run["row"].removeprefix("negatives-"),
            f"{run.get('late', {}).get('negatives', 0):.0f}",
            percent(run["miou"]),
            f"{run.get('images_per_second', 0):.1f}",
            f"{run['memory_mib']:.0f}" if "memory_mib" in run else "-",
        ]
        for run in runs
    ]
    header = ["row of Table 4", "negatives of an anchor", "mIoU", "images/s", "memory [MiB]"]
    return markdown_table(header, rows)


def cost_table(costs: Sequence[Cost]) -> str:
    """Time and memory of a step of each method."""
    first = costs[0]["seconds_per_step"]
    rows = [
        [
            _title(cost["method"]),
            f"{1000 * cost['seconds_per_step']:.0f}",
            f"{cost['seconds_per_step'] / first:.2f}x",
            f"{cost['memory_mib']:.0f}",
        ]
        for cost in costs
    ]
    return markdown_table(
        ["method", "step [ms]", f"of {_title(costs[0]['method'])}", "memory [MiB]"], rows
    )


def mean_and_spread(values: Sequence[float]) -> str:
    """In percent; the spread is missing for a single value."""
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.2f}{spread}"


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _title(method: str) -> str:
    from cac_ext.train.experiments.methods import title  # needs the trainer's packages

    return title(method)
