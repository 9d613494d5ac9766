"""The arithmetic and the memory traffic that a call needs, counted from labels and masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.cases import Inputs

PHASES = ("both", "forward", "backward")


@dataclass(frozen=True)
class Multiplication:
    """How the processor multiplies two features: as ``products`` products of narrower numbers."""

    dtype: str  # of the factors, as torch names it
    instruction_set: str  # that multiplies them; one of cac_ext.build_info()["cpu_capabilities"]
    products: int = 1

    def __str__(self) -> str:
        times = f"{self.products} products of " if self.products > 1 else ""
        return f"{times}{self.dtype} by {self.instruction_set}"


@dataclass(frozen=True)
class Workload:
    """The counts that every number of operations follows from."""

    anchors: int  # A
    negatives: int  # N
    channels: int  # C
    active_anchors: int  # of both directions together
    differing_pairs: int  # (active anchor, negative) pairs whose labels differ

    @classmethod
    def of(cls, inputs: Inputs) -> Workload:
        labels = torch.stack([inputs.pseudo_labels1, inputs.pseudo_labels2])  # [2, A]
        active_labels = labels[inputs.active()].long()
        classes = int(torch.cat([labels.flatten(), inputs.negative_labels]).max()) + 1
        anchors_of_class = active_labels.bincount(minlength=classes)
        negatives_of_class = inputs.negative_labels.long().bincount(minlength=classes)
        N = len(inputs.negative_labels)
        return cls(
            anchors=labels.shape[1],
            negatives=N,
            channels=inputs.negatives.shape[1],
            active_anchors=len(active_labels),
            differing_pairs=int((anchors_of_class * (N - negatives_of_class)).sum()),
        )

    @property
    def all_pairs(self) -> int:
        """Anchor-negative pairs of both directions, masked or not."""
        return 2 * self.anchors * self.negatives

    def nominal_operations(self, phase: str) -> int:
        """Operations of the equations if nothing is skipped: 2C a pair forward, 2C backward."""
        passes = {"forward": 1, "backward": 1, "both": 2}[phase]
        return 2 * self.channels * self.all_pairs * passes

    def needed_operations(self, phase: str) -> int:
        """The same for active anchors and negatives of another class only."""
        passes = {"forward": 1, "backward": 1, "both": 2}[phase]
        return 2 * self.channels * self.differing_pairs * passes

    def one_pass_operations(self, phase: str) -> int:
        """Operations of one pass that forms loss and gradient; its backward scales rows."""
        return 0 if phase == "backward" else self.needed_operations(phase)

    def compulsory_bytes(self, phase: str, bytes_per_value: int) -> int:
        """Inputs read once and outputs written once: no implementation can move less."""
        features = 2 * self.anchors * self.channels * bytes_per_value
        bank = self.negatives * self.channels * bytes_per_value
        labels_and_confidences = 2 * self.anchors * (8 + 4) + self.negatives * 8
        if phase == "forward":
            return features + bank + labels_and_confidences
        if phase == "backward":
            return 2 * features  # the stored gradient read, the scaled one written
        return 2 * features + bank + labels_and_confidences
