"""The strongest plain-PyTorch loss a user could write by hand: tiles of matrix products.

Labels are sorted, so the negatives of one class are an interval. Tiles of anchors of a single class
leave it out; tiles of several rare classes set it to zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.cases import Inputs
from benchmarks.implementations.base import Implementation
from benchmarks.implementations.one_pass import Sorted, one_pass_loss
from benchmarks.operations import Workload

#: Anchors and negatives of a tile, by bytes of an element. CPU: the fastest of twenty shapes from
#: 256 x 512 to 2,048 x 8,192 on two AMX cores. GPU: large enough to fill it.
TILE = {
    "cpu": {4: (1_024, 2_048), 2: (2_048, 1_024)},
    "cuda": dict.fromkeys((2, 4), (4_096, 16_384)),
}


def _anchor_tiles(offsets: list[int], size: int) -> Iterator[tuple[int, int, int, int]]:
    """``(row, row_end, first, last)`` with classes [first, last); a frequent class stands alone."""
    classes = len(offsets) - 1
    c = 0
    while c < classes:
        first = c
        if offsets[c + 1] - offsets[c] >= size // 2:
            c += 1
        else:  # as many rare classes as fit
            while c < classes and offsets[c + 1] - offsets[first] <= size:
                c += 1
        # Equal cuts: no sliver remains at the end of a class.
        rows = offsets[c] - offsets[first]
        pieces = -(-rows // size)
        cuts = [offsets[first] + rows * i // max(pieces, 1) for i in range(pieces + 1)]
        for start, stop in pairwise(cuts):
            yield start, stop, first, c


def _columns(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    pieces = -(-(stop - start) // size)
    for i in range(pieces):
        yield start + (stop - start) * i // pieces, start + (stop - start) * (i + 1) // pieces


def attend_tiled(sort: Sorted, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    M, C = sort.anchors.shape
    N = len(sort.negatives)
    rows, columns = TILE[sort.anchors.device.type][sort.anchors.element_size()]
    anchor_offsets = sort.class_offsets(sort.anchor_labels)
    offsets = sort.class_offsets(sort.negative_labels)
    sums = torch.zeros(M, device=sort.anchors.device)  # [M]
    weighted = sums.new_zeros(M, C) if with_gradient else None
    scores = sort.anchors.new_empty(rows * columns)
    # On a CPU torch adds in float32 anyway; asking for a float32 result would copy the tile.
    sum_dtype = torch.float32 if scores.is_cuda else None

    for row, row_end, first, last in _anchor_tiles(anchor_offsets, rows):
        anchors = sort.anchors[row:row_end]
        single_class = last - first == 1
        hole = (offsets[first], offsets[last]) if single_class else (0, 0)
        for side in ((0, hole[0]), (hole[1], N)):
            for column, column_end in _columns(*side, columns):
                negatives = sort.negatives[column:column_end]
                size = (row_end - row, column_end - column)
                tile = scores[: size[0] * size[1]].view(size)
                torch.mm(anchors, negatives.T, out=tile)
                tile.exp_()  # at most e^10 each: no shift is needed at temperature 0.1
                if not single_class:
                    for c in range(first, last):
                        left = max(offsets[c], column) - column
                        right = min(offsets[c + 1], column_end) - column
                        if left < right:
                            top = anchor_offsets[c] - row
                            bottom = anchor_offsets[c + 1] - row
                            tile[top:bottom, left:right] = 0
                sums[row:row_end] += tile.sum(1, dtype=sum_dtype)
                if weighted is not None:
                    if tile.dtype == torch.float32:
                        weighted[row:row_end].addmm_(tile, negatives)
                    elif tile.is_cuda:
                        weighted[row:row_end] += torch.mm(tile, negatives, out_dtype=torch.float32)
                    else:
                        weighted[row:row_end] += tile @ negatives
    return sums, weighted


class Tiled(Implementation):
    name = "tiled"
    description = "pure PyTorch by hand: active anchors, label intervals, one pass over tiles"
    cpu_dtypes = ("float32", "float32-high", "bfloat16")

    def loss(self, inputs: Inputs) -> Tensor:
        return one_pass_loss(inputs, attend_tiled)

    def executed_operations(self, workload: Workload, phase: str) -> int:
        return workload.one_pass_operations(phase)
