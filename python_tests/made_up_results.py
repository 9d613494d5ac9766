"""Results of `benchmarks loss` without a measurement."""

from __future__ import annotations

import torch

from benchmarks.measure.results import Results, Row

SIZES = (1_000, 4_000, 16_000)


def make_results(seed: int, slower: float = 1.0, spread: float = 0.02, more_memory: int = 0):
    """A made-up run of two implementations; the last case of ours is ``slower`` than it was."""
    generator = torch.Generator().manual_seed(seed)
    results = Results.start("loss", {"seed": 0}, torch.device("cpu"))
    rate = {"operations_per_second": 1e11, "shape": [8, 8, 8], "shapes": {}}
    results.limits = {"memory_bandwidth": 1e10, "matrix_rate": {"float32": rate}}
    for N in SIZES:
        workload = {"active_anchors": 76, "negatives": N, "differing_pairs": 50 * N}
        results.cases[f"n-{N}"] = {
            **{"name": f"n-{N}", "A": 100, "N": N, "C": 128, "K": 21, "group": "scale-n"},
            **{"active_share": 0.38, "background_share": 0.5, "workload": workload},
            "matrix_rate": {"float32": 1e11},
        }
        for name, seconds in (("official", 1e-3 * N), ("ours", 1e-5 * N)):
            planted = slower if name == "ours" and SIZES[-1] == N else 1.0
            noise = 1 + spread * torch.randn(15, generator=generator)
            row = Row(f"n-{N}", name, "float32", "both")
            row.samples = (seconds * planted * noise).tolist()
            row.extra_memory = 2**24 * (1 if name == "ours" else 20) + more_memory
            row.executed_operations = 4 * 128 * 50 * N
            row.nominal_operations = 4 * 128 * 200 * N
            row.compulsory_bytes = 4 * 128 * N
            row.share_of_matrix_rate, row.share_of_bandwidth = 0.5, 0.01
            results.rows.append(row)
    return results
