"""Compares runs bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from cac_ext.train.runs.checkpoint import read_checkpoint


def assert_same_run(one: Path, other: Path) -> None:
    """Both run folders hold the same state and the same log."""
    states = [read_checkpoint(folder / "checkpoint.pt") for folder in (one, other)]
    assert_identical(*states, "checkpoint")
    lines = []
    for folder in (one, other):
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        unequal = {
            "images_per_second",
            "seconds_per_step",
            "memory_mib",
        }  # they differ from run to run
        lines.append([{k: v for k, v in r.items() if k not in unequal} for r in records])
    assert lines[0] == lines[1]


def assert_identical(one: object, other: object, where: str) -> None:
    """Nested dicts, lists, tensors and values are equal; nan equals nan."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_identical(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_identical(first, second, f"{where}[{index}]")
    else:
        assert one == other or (one != one and other != other), where
