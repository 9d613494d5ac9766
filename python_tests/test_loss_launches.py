"""How many operations the loss asks of PyTorch: on a GPU each is a launch, most very short.

Counted on the CPU, where the operators call the same ones. The launches of the loss's own kernels
are counted on the emulated device (test_cuda_emulation.py). benchmarks/README.md has the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

import cac_ext

#: No launch: memory, views, and types that are right already.
FREE = {"empty", "empty_like", "empty_strided", "narrow", "slice", "select", "expand", "detach"}
FREE |= {"as_strided", "unsqueeze", "view", "resize_", "result_type", "alias", "view_as"}

#: Checks of values that only the CPU makes.
CPU_ONLY = {"isfinite", "logical_not_", "any", "item"}

NAMES = ("features1", "features2")


def arguments(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(60, 16, generator=generator, requires_grad=True) for _ in NAMES]
    others = [torch.rand(60, generator=generator) for _ in NAMES]
    others += [torch.randint(0, 4, (60,), generator=generator) for _ in NAMES]
    others += [torch.randn(90, 16, generator=generator)]
    others += [torch.randint(0, 4, (90,), generator=generator)]
    return features, others


def operations(run: Callable[[], object]) -> dict[str, Counter[str]]:
    """What each operator of this package, and the rest (``""``), calls directly, by name."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    found: dict[str, Counter[str]] = {}
    for event in recorded.events():
        if not event.name.startswith("aten::"):
            continue
        parent, name = event.cpu_parent, event.name.removeprefix("aten::")
        if parent is not None and parent.name.startswith("aten::"):
            continue  # a part of another operation
        if name in FREE or (name == "to" and not event.cpu_children):
            continue
        owner = parent.name if parent is not None and parent.name.startswith("cac_ext::") else ""
        found.setdefault(owner.removeprefix("cac_ext::"), Counter())[name] += 1
    return found


def without(counts: Counter[str], names: set[str]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if name not in names}


def test_the_operations_of_a_call_and_its_gradient(seed):
    features, others = arguments(seed)

    def forward() -> torch.Tensor:
        return cac_ext.directional_contrastive_loss(*features, *others, confidence_threshold=0.3)

    def step() -> None:
        for x in features:
            x.grad = None
        forward().backward()

    step()
    found = operations(forward)
    assert without(found["prepare_keys"], CPU_ONLY) == {
        "full": 1, "sort": 1, "arange": 1, "scatter_": 1, "clone": 1,
    }  # fmt: skip
    assert without(found["directional_contrastive_loss"], CPU_ONLY) == {
        "lt": 2, "gt": 2, "logical_and_": 2, "to": 1, "add_": 1, "where": 2, "searchsorted": 2,
        "stack": 1, "zeros": 1,
    }  # fmt: skip
    assert found[""] == {"eq": 2, "stack": 1, "sum": 3, "clamp": 1, "div": 1}
    assert operations(step)[""] - found[""] == {
        "ones_like": 1, "div": 1, "eq": 2, "ne": 2, "__or__": 2, "mul": 2, "masked_fill_": 2,
    }  # fmt: skip
