"""The memory bank: which negatives there are, and for how long."""

from __future__ import annotations

import warnings

import pytest
import torch

from cac_ext.train.memory_bank import MemoryBank


def view(batch: int = 2, channels: int = 3, side: int = 4):
    """Projections whose first channel numbers the positions; labels are that number, too."""
    number = torch.arange(batch * side * side).view(batch, side, side)
    projections = torch.randn(batch, channels, side, side)
    projections[:, 0] = number.float()
    return projections, number, torch.ones_like(number, dtype=torch.bool)


def test_all_positions_of_a_view_become_negatives(seed: int) -> None:
    torch.manual_seed(seed)
    projections, labels, valid = view()
    features, selected = MemoryBank(None, 0).select(
        projections.requires_grad_(), labels, valid, torch.Generator()
    )
    assert sorted(selected.tolist()) == list(range(32))
    assert torch.equal(features[:, 0].long(), selected)  # a label stays with its feature
    assert not features.requires_grad


def test_selected_num_are_drawn_without_replacement_from_valid_positions(seed: int) -> None:
    projections, labels, valid = view()
    valid[0] = False
    generator = torch.Generator().manual_seed(seed)
    _, selected = MemoryBank(10, 0).select(projections, labels, valid, generator)
    assert len(set(selected.tolist())) == 10
    assert selected.min() >= 16
    _, again = MemoryBank(10, 0).select(projections, labels, valid, generator)
    assert selected.tolist() != again.tolist()


def test_asking_for_more_than_there_are_takes_all_and_says_so_once() -> None:
    projections, labels, valid = view()
    bank = MemoryBank(1000, 0)
    with pytest.warns(UserWarning, match=r"selected_num is 1000, but a view has 32"):
        assert len(bank.select(projections, labels, valid, torch.Generator())[1]) == 32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(bank.select(projections, labels, valid, torch.Generator())[1]) == 32


@pytest.mark.parametrize("step_save", [0, 1, 3])
def test_the_current_step_and_step_save_earlier_ones_are_kept(step_save: int) -> None:
    bank = MemoryBank(None, step_save)
    for step in range(6):
        features, labels = bank.enqueue(torch.full((5, 2), float(step)), torch.full((5,), step))
        kept = list(range(max(0, step - step_save), step + 1))
        assert labels.unique().tolist() == kept
        assert torch.equal(features[:, 0].long(), labels)
        assert len(labels) == 5 * len(kept)


def test_a_restored_bank_goes_on_as_the_original() -> None:
    bank, restored = MemoryBank(None, 2), MemoryBank(None, 2)
    for step in range(4):
        bank.enqueue(torch.randn(3, 2), torch.full((3,), step))
    restored.load_state_dict(bank.state_dict(), torch.device("cpu"))
    new = torch.randn(3, 2), torch.full((3,), 9)
    for one, other in zip(bank.enqueue(*new), restored.enqueue(*new), strict=True):
        assert torch.equal(one, other)
