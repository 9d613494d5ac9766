"""PyTorch's FlashAttention for the CPU with values = keys, one call for each label interval."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cases import Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.implementations.one_pass import Sorted, one_pass_loss
from benchmarks.operations import Workload


def attend_flash(sort: Sorted, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Anchors of a class attend to the negatives before and behind their own class."""
    sums = sort.anchors.new_zeros(len(sort.anchors), dtype=torch.float32)  # [M]
    weighted = sums.new_zeros(sort.anchors.shape) if with_gradient else None  # [M, C]
    anchor_offsets = sort.class_offsets(sort.anchor_labels)
    offsets = sort.class_offsets(sort.negative_labels)
    for c in range(sort.classes):
        rows = slice(anchor_offsets[c], anchor_offsets[c + 1])
        for side in (slice(offsets[c]), slice(offsets[c + 1], None)):
            anchors, keys = sort.anchors[rows][None, None], sort.negatives[side][None, None]
            if not anchors.numel() or not keys.numel():
                continue
            # The public function does not return the log-sum-exp.
            output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                anchors, keys, keys, scale=1.0
            )
            part = log_sum.flatten().float().exp()  # [rows]
            sums[rows] += part
            if weighted is not None:
                weighted[rows] += output[0, 0].float() * part[:, None]
    return sums, weighted


class FlashAttention(Implementation):
    name = "flash-attention"
    description = "torch's own attention on the CPU: negatives before and behind a class apart"
    devices = ("cpu",)  # on a GPU, flex-attention takes its place
    cpu_dtypes = ("float32", "bfloat16")

    def loss(self, inputs: Inputs) -> Tensor:
        return one_pass_loss(inputs, attend_flash)

    def executed_operations(self, workload: Workload, phase: str) -> int:
        # Attention forms its output with or without a gradient.
        return 0 if phase == "backward" else workload.one_pass_operations("both")
