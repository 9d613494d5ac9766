"""The memory bank of negatives: positions of whole crops, of this step and a few before it."""

from __future__ import annotations

import warnings
from collections import deque

import torch
from torch import Tensor


class MemoryBank:
    """First in, first out over steps (paper section 3.3).

    Args:
        selected_num: positions drawn without replacement from each view at each step; None takes
            all. Where there are fewer, all are taken, and a warning says so once.
        step_save: earlier steps that are kept beside the current one.
    """

    def __init__(self, selected_num: int | None, step_save: int) -> None:
        self.selected_num = selected_num
        self._steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=step_save + 1)
        self._warned = False

    def most_selected(self, positions: int) -> int:
        """The most candidates that `select` finds in a view of so many positions."""
        return positions if self.selected_num is None else min(self.selected_num, positions)

    def select(
        self,
        projections: Tensor,  # [B, C, h, w] one view's projector outputs
        pseudo_labels: Tensor,  # [B, h, w]
        valid: Tensor,  # [B, h, w] bool, False on padding
        generator: torch.Generator,  # on the CPU
    ) -> tuple[Tensor, Tensor]:
        """Candidates of one view: features ``[M, C]`` and labels ``[M]``, without gradient."""
        candidates = valid.flatten().nonzero().squeeze(1)  # [number of valid positions]
        count = len(candidates)
        if self.selected_num is not None and self.selected_num < count:
            order = torch.randperm(count, generator=generator)[: self.selected_num]
            candidates = candidates[order.to(candidates.device)]
        elif self.selected_num is not None and self.selected_num > count and not self._warned:
            self._warned = True
            warnings.warn(
                f"method.selected_num is {self.selected_num}, but a view has {count} positions: "
                "all of them become negatives",
                stacklevel=2,
            )
        features = projections.detach().permute(0, 2, 3, 1).flatten(0, 2)  # [B h w, C]
        return features[candidates], pseudo_labels.flatten()[candidates]

    def enqueue(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a step's ``[M, C]`` and ``[M]``; returns all negatives ``[N, C]`` and ``[N]``."""
        self._steps.append((features, labels))
        return (
            torch.cat([step_features for step_features, _ in self._steps]),
            torch.cat([step_labels for _, step_labels in self._steps]),
        )

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {
            "features": [features for features, _ in self._steps],
            "labels": [labels for _, labels in self._steps],
        }

    def load_state_dict(self, state: dict[str, list[Tensor]], device: torch.device) -> None:
        self._steps.clear()
        for features, labels in zip(state["features"], state["labels"], strict=True):
            self._steps.append((features.to(device), labels.to(device)))
