"""The example that swaps losses of the field for ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "swap_losses", raising=False)
    import swap_losses

    return swap_losses


def test_pixel_contrast_is_learned(example) -> None:
    losses = example.train_contrastive_seg(steps=25, size=16)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_queue_fills_and_the_training_goes_on(example) -> None:
    losses = example.train_moco(steps=25, size=16)
    assert losses[0] == 0  # nothing to be told from yet
    assert all(x > 0 for x in losses[1:])


def test_it_runs_as_a_program(example, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["swap_losses.py", "--steps", "2"])
    example.main()
    assert "MoCo v2: loss" in capsys.readouterr().out
