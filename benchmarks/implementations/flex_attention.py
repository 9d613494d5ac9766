"""FlexAttention with values = keys: output and log-sum-exp give the gradient and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from benchmarks.cases import Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.implementations.one_pass import Sorted, one_pass_loss
from benchmarks.operations import Workload

#: CPU: the fastest of 128, 256 and 512 on two AMX cores. GPU: as FlexAttention recommends.
BLOCK = {"cpu": 256, "cuda": 128}


def _block_mask(sort: Sorted) -> BlockMask:
    """Blocks of one shared class are skipped; blocks without a shared class need no mask."""
    block = BLOCK[sort.anchors.device.type]

    def bounds(labels: Tensor) -> tuple[Tensor, Tensor]:
        padding = -len(labels) % block
        labels = torch.cat([labels, labels[-1:].expand(padding)]).view(-1, block)
        return labels[:, 0], labels[:, -1]

    low, high = bounds(sort.anchor_labels)  # [M / block]
    negative_low, negative_high = bounds(sort.negative_labels)  # [N / block]
    apart = (low[:, None] > negative_high) | (high[:, None] < negative_low)
    same = (low == high)[:, None] & (negative_low == negative_high) & (low[:, None] == negative_low)

    def compressed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        blocks = blocks.to(torch.int32)[None, None]
        order = blocks.argsort(dim=-1, descending=True, stable=True)
        return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)

    anchor_labels, negative_labels = sort.anchor_labels, sort.negative_labels

    def differs(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return anchor_labels[row] != negative_labels[column]

    partial, full = compressed(~apart & ~same), compressed(apart)
    return BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=block,
        mask_mod=differs,
        seq_lengths=(len(anchor_labels), len(negative_labels)),
    )


#: Channels added for the sink on a CPU: one holds it, the others keep rows aligned.
SINK_CHANNELS = 8


class FlexAttention(Implementation):
    name = "flex-attention"
    description = "torch FlexAttention: label block mask, log-sum-exp, values = keys"
    cpu_dtypes = ("float32", "bfloat16")
    compiles = True

    def __init__(self, compiled: bool = True) -> None:
        self._attention: Callable[..., Any] = flex_attention
        if compiled:
            self._attention = torch.compile(flex_attention, dynamic=False)

    def loss(self, inputs: Inputs) -> Tensor:
        on_cpu = inputs.features1.device.type == "cpu"
        return one_pass_loss(inputs, self._attend_with_sink if on_cpu else self._attend)

    def _attend(self, sort: Sorted, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        keys = sort.negatives[None, None]  # [1, 1, N, C]
        output, auxiliary = self._attention(
            sort.anchors[None, None],
            keys,
            keys,
            block_mask=_block_mask(sort),
            scale=1.0,
            return_aux=AuxRequest(lse=True),
        )
        sums = auxiliary.lse[0, 0].float().exp()  # [M]
        return sums, output[0, 0].float() * sums[:, None] if with_gradient else None

    def _attend_with_sink(self, sort: Sorted, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
        """For the CPU, where torch compiles FlexAttention without the log-sum-exp.

        One more key, the sink, has a class that no anchor has and the same known logit for every
        anchor. Its attention weight, read from a channel that only the sink's value has, gives the
        sum.
        """
        channels = sort.anchors.shape[1]
        # About the expected sum, so that neither weight vanishes beside the other. A multiple of
        # 1/4 is exact in bfloat16.
        logit = math.ceil(4 * math.log(len(sort.negatives))) / 4
        anchors = F.pad(sort.anchors, (0, SINK_CHANNELS))  # [M, C + 8]
        anchors[:, channels] = logit
        keys = F.pad(sort.negatives, (0, SINK_CHANNELS, 1, 0))  # [1 + N, C + 8]
        keys[0, channels] = 1.0
        labels = F.pad(sort.negative_labels, (1, 0), value=-1)  # [1 + N]
        sort = replace(sort, anchors=anchors, negatives=keys, negative_labels=labels)
        keys = keys[None, None]
        output = self._attention(
            anchors[None, None], keys, keys, block_mask=_block_mask(sort), scale=1.0
        )[0, 0].float()  # [M, C + 8]
        sink = output[:, channels]  # [M]
        scale = math.exp(logit) / sink
        return scale * (1 - sink), output[:, :channels] * scale[:, None] if with_gradient else None

    def executed_operations(self, workload: Workload, phase: str) -> int:
        # Attention forms its output with or without a gradient.
        return 0 if phase == "backward" else workload.one_pass_operations("both")
