"""The memory bank of negatives: positions of whole crops, of this step and a few before it."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class MemoryBank:
    """First in, first out over steps (paper section 3.3).

    Args:
        selected_num: positions drawn without replacement from each view at each step; None takes
            all. If there are fewer, all are taken and a warning says so once.
        step_save: earlier steps that are kept beside the current one.
    """

    def __init__(self, selected_num: int | None, step_save: int) -> None:
        self.selected_num = selected_num
        self._steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=step_save + 1)
        self._counts: deque[Tensor] = deque(maxlen=step_save + 1)
        self._warned = False

    def select(
        self,
        candidates: Tensor,  # [P] positions of one view that are on the image
        generator: torch.Generator,  # on the CPU
    ) -> Tensor:
        """The positions of one view that become negatives, ``[M]``. It waits for no device."""
        count = len(candidates)
        if self.selected_num is None or self.selected_num == count:
            return candidates
        if self.selected_num < count:
            drawn = torch.randperm(count, generator=generator)[: self.selected_num]
            if candidates.is_cuda:
                drawn = drawn.pin_memory()  # a copy from pageable memory would wait for the device
            return candidates[drawn.to(candidates.device, non_blocking=True)]
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"method.selected_num is {self.selected_num}, but a view has {count} positions: "
                "all of them become negatives",
                stacklevel=2,
            )
        return candidates

    def enqueue(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a step's ``[M, C]`` and ``[M]``; returns all negatives ``[N, C]`` and ``[N]``."""
        self._steps.append((features, labels))
        if len(self._steps) == 1:
            return features, labels
        return (
            torch.cat([step_features for step_features, _ in self._steps]),
            torch.cat([step_labels for _, step_labels in self._steps]),
        )

    def count(self, counts: Tensor) -> Tensor:
        """Adds a step's counts of negatives; returns those of all negatives kept, ``[K, K]``.

        Called once after each `enqueue`, or never: see `negative_precision.py`.
        """
        self._counts.append(counts)
        return torch.stack(list(self._counts)).sum(dim=0)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {
            "features": [features for features, _ in self._steps],
            "labels": [labels for _, labels in self._steps],
            "counts": list(self._counts),
        }

    def load_state_dict(self, state: Mapping[str, list[Any]], device: torch.device) -> None:
        self._steps.clear()
        for features, labels in zip(state["features"], state["labels"], strict=True):
            self._steps.append((features.to(device), labels.to(device)))
        self._counts.clear()
        self._counts.extend(counts.to(device) for counts in state["counts"])


def join_banks(states: Sequence[Mapping[str, list[Tensor]]]) -> dict[str, list[Any]]:
    """One bank's state of those of all processes, each with its own rows, on the CPU."""
    joined: dict[str, list[Any]] = {"counts": list(states[0]["counts"])}  # of all processes already
    for part in ("features", "labels"):
        steps = zip(*(state[part] for state in states), strict=True)
        joined[part] = [torch.cat(step) for step in steps]
    joined["shares"] = [
        [len(labels) for labels in step]
        for step in zip(*(state["labels"] for state in states), strict=True)
    ]
    return joined


def share_of_bank(state: Mapping[str, list[Any]], rank: int, size: int) -> dict[str, list[Any]]:
    """The state of the bank of process ``rank`` of ``size``, of that of all processes together.

    The inverse of `join_banks` for as many processes; otherwise about equal shares.
    """
    shared: dict[str, list[Any]] = {"counts": state["counts"], "features": [], "labels": []}
    for step, labels in enumerate(state["labels"]):
        shares = state["shares"][step] if "shares" in state else []
        if len(shares) != size:
            shares = [len(part) for part in labels.tensor_split(size)]
        for part in ("features", "labels"):
            shared[part].append(state[part][step].split(shares)[rank].clone())
    return shared
