"""The memory bank: which negatives there are, and for how long."""

from __future__ import annotations

import warnings

import pytest
import torch

from cac_ext.train.methods.memory_bank import MemoryBank


def every_position(batch: int = 2, side: int = 4) -> torch.Tensor:
    return torch.arange(batch * side * side)


def test_all_positions_of_a_view_become_negatives() -> None:
    selected = MemoryBank(None, 0).select(every_position(), torch.Generator())
    assert sorted(selected.tolist()) == list(range(32))


def test_selected_num_are_drawn_without_replacement_from_valid_positions(seed: int) -> None:
    second_image = every_position()[16:]
    generator = torch.Generator().manual_seed(seed)
    bank = MemoryBank(10, 0)
    draws = [bank.select(second_image, generator).tolist() for _ in range(5)]
    for selected in draws:
        assert len(set(selected)) == 10
        assert min(selected) >= 16
    assert any(selected != draws[0] for selected in draws)


def test_asking_for_more_than_there_are_takes_all_and_says_so_once() -> None:
    bank = MemoryBank(1000, 0)
    with pytest.warns(UserWarning, match=r"selected_num is 1000, but a view has 32"):
        assert len(bank.select(every_position(), torch.Generator())) == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(bank.select(every_position(), torch.Generator())) == 32


@pytest.mark.parametrize("step_save", [0, 1, 3])
def test_the_current_step_and_step_save_earlier_ones_are_kept(step_save: int) -> None:
    bank = MemoryBank(None, step_save)
    for step in range(6):
        features, labels = bank.enqueue(torch.full((5, 2), float(step)), torch.full((5,), step))
        kept = list(range(max(0, step - step_save), step + 1))
        assert labels.unique().tolist() == kept
        assert torch.equal(features[:, 0].long(), labels)
        assert len(labels) == 5 * len(kept)


@pytest.mark.parametrize("step_save", [0, 1, 3])
def test_counts_are_those_of_the_negatives_that_are_kept(step_save: int) -> None:
    bank = MemoryBank(None, step_save)
    for step in range(6):
        _, labels = bank.enqueue(torch.zeros(5, 2), torch.full((5,), step % 3))
        counts = bank.count(torch.diag(torch.bincount(torch.full((5,), step % 3), minlength=3)))
        assert torch.equal(counts.diagonal(), labels.bincount(minlength=3))


def test_a_restored_bank_goes_on_as_the_original() -> None:
    bank, restored = MemoryBank(None, 2), MemoryBank(None, 2)
    for step in range(4):
        bank.enqueue(torch.randn(3, 2), torch.full((3,), step))
        bank.count(torch.randint(9, (2, 2)))
    restored.load_state_dict(bank.state_dict(), torch.device("cpu"))
    new, counts = (torch.randn(3, 2), torch.full((3,), 9)), torch.randint(9, (2, 2))
    for one, other in zip(bank.enqueue(*new), restored.enqueue(*new), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(bank.count(counts), restored.count(counts))
