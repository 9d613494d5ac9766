"""`cac_ext.cpu_peak` measures every instruction set here, and refuses what it cannot measure."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

import cac_ext
from cac_ext import _C
from cac_ext.ops import DTYPE_NUMBERS

SETS = _C.cpu_capabilities()


@pytest.fixture(autouse=True)
def same_sets_afterwards() -> Iterator[None]:
    before = _C.cpu_capability()
    yield
    _C.limit_cpu_capability(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_higher_set_is_not_much_slower(dtype: torch.dtype) -> None:
    rates = [cac_ext.cpu_peak(dtype, name, 1) for name in SETS]
    # A multiplication and an addition of four or two numbers, once in two cycles of 1 GHz.
    assert rates[0] > 1e9
    for lower, higher in pairwise(rates):
        assert higher > lower / 2
    assert rates[-1] < 1e13  # a loop that the compiler has removed takes no time


@pytest.mark.parametrize("name", _C.cpu_peak_capabilities(DTYPE_NUMBERS[torch.bfloat16]))
def test_instructions_for_bfloat16_are_measured(name: str) -> None:
    # Some processors multiply pairs of bfloat16 no faster than float32, but none is much slower.
    float32 = cac_ext.cpu_peak(torch.float32, "avx2", 1)
    assert cac_ext.cpu_peak(torch.bfloat16, name, 1) > float32 / 2


def test_the_default_is_what_the_loss_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(_C, "cpu_peak", lambda *arguments: asked.append(arguments) or 1.0)
    for name in SETS:
        _C.limit_cpu_capability(name)
        cac_ext.cpu_peak(torch.float32)
    number = DTYPE_NUMBERS[torch.float32]
    assert asked == [(number, name, torch.get_num_threads()) for name in SETS]


def test_all_threads_run_the_loop() -> None:
    assert cac_ext.cpu_peak(torch.float32, SETS[0], min(2, os.cpu_count() or 1)) > 0


def test_what_cannot_be_measured_is_refused_with_what_can() -> None:
    with pytest.raises(ValueError, match="must be one of " + ", ".join(SETS) + ".*got 'mmx'"):
        cac_ext.cpu_peak(torch.float32, "mmx")
    with pytest.raises(ValueError, match=r"multiplies torch\.float16.*as torch\.float32"):
        cac_ext.cpu_peak(torch.float16)
    with pytest.raises(ValueError, match="no instruction set up to 'portable'"):
        cac_ext.cpu_peak(torch.bfloat16, "portable")
    with pytest.raises(TypeError, match=r"torch\.float32.*got torch\.int64"):
        cac_ext.cpu_peak(torch.int64)
    for threads in (0, 10**6):
        with pytest.raises(ValueError, match=f"threads must be from 1 to .*got {threads}"):
            cac_ext.cpu_peak(torch.float32, threads=threads)


def test_its_description_names_its_unit() -> None:
    assert "FLOP/s" in inspect.getdoc(cac_ext.cpu_peak)


def test_the_products_of_a_product_are_those_of_its_parts() -> None:
    numbers = {str(dtype): number for dtype, number in DTYPE_NUMBERS.items()}
    bf16, fp32 = numbers["torch.bfloat16"], numbers["torch.float32"]
    before = torch.get_float32_matmul_precision()
    try:
        for name in SETS:
            _C.limit_cpu_capability(name)
            for precision, products in (("highest", 6), ("high", 3)):
                torch.set_float32_matmul_precision(precision)
                used = _C.cpu_multiplication(fp32)
                if name == "amx":
                    assert used == ("amx", bf16, products)
                else:
                    assert used == (name.removesuffix("_bf16"), fp32, 1)
                assert _C.cpu_multiplication(numbers["torch.float16"]) == used
            own = name in ("avx512_bf16", "amx")
            assert _C.cpu_multiplication(bf16)[1:] == ((bf16 if own else fp32), 1)
    finally:
        torch.set_float32_matmul_precision(before)
