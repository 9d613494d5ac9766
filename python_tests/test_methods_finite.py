"""Extremes say whether outputs are finite, exactly as looking at every value does."""

from __future__ import annotations

import pytest
import torch

from cac_ext.train.methods.finite import all_finite, finite_outside_padding

NUMBERS = [1.0, 3e38, -3e38, 0.0, float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(number, dtype, seed):
    torch.manual_seed(seed)
    for _ in range(20):
        values = torch.randn(3, 17, 5, 2, requires_grad=True).to(dtype)
        image, channel, row, column = (int(torch.randint(size, ())) for size in values.shape)
        with torch.no_grad():
            values[image, channel, row, column] = number
        valid = torch.rand(3, 5, 2) < 0.5
        finite = bool(torch.tensor(number).isfinite())
        assert all_finite(values).item() == finite
        expected = finite or not valid[image, row, column]
        assert finite_outside_padding(values, valid).item() == expected
