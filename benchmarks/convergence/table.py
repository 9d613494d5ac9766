"""The `convergence` results as a table for the terminal."""

from __future__ import annotations

from statistics import median

from benchmarks.measure.records import Curve
from benchmarks.measure.results import Results
from cac_ext.train.runtime.text_tables import aligned_table


def convergence_table(results: Results) -> str:
    """The distance of each curve from the first of its seed, the golden curve, and warnings."""
    header = ["seed", "loss", "largest distance", "at step", "anchors, labels that differ there"]
    header += ["median", "steps with others", "first", "largest before"]
    rows = []
    for seed, curves in results.extra["curves"].items():
        (_, yardstick), *others = curves.items()
        rows += [[seed, name, *_distances(curve, yardstick)] for name, curve in others]
    golden = results.extra["golden"]
    parts = [
        "relative distance from the float64 curve; others: anchors or pseudo labels that differ\n"
        + aligned_table(header, rows, left=2),
        f"golden curve: largest relative distance {golden['deviation']:.1e}"
        f" (allowed {golden['tolerance']:.0e})",
        results.warning(),
    ]
    return "\n\n".join(filter(None, parts))


def _distances(curve: Curve, yardstick: Curve) -> list[str]:
    pairs = zip(curve["loss"], yardstick["loss"], strict=True)
    distances = [abs(value / expected - 1) for value, expected in pairs]
    largest = max(range(len(distances)), key=lambda step: distances[step])
    anchors, labels = curve["anchors_changed"], curve["labels_changed"]
    changed = changed_steps(curve)
    before = distances[: changed[0]] if changed else distances
    return [
        f"{distances[largest]:.1e}",
        f"{largest + 1}",
        f"{anchors[largest]}, {labels[largest]}",
        f"{median(distances):.1e}",
        f"{len(changed)}",
        f"{changed[0] + 1}" if changed else "-",
        f"{max(before):.1e}" if before else "-",
    ]


def changed_steps(curve: Curve) -> list[int]:
    """Steps, from 0, with other anchors or pseudo labels than the float64 training."""
    pairs = zip(curve["anchors_changed"], curve["labels_changed"], strict=True)
    return [step for step, (anchors, labels) in enumerate(pairs) if anchors or labels]
