"""Runs calls of the CUDA sources on the device emulation.

`builds.build` compiles the `emulate` program, optionally with sanitizers or with changed sources;
`Emulator.run` writes calls to a file, runs the program and reads the outcomes.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEATURE_DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # enum class DType

#: Compute mode -> (enum class Arithmetic, type of the prepared negatives).
ARITHMETICS = {
    "bf16": (0, torch.bfloat16),
    "fp16": (1, torch.float16),
    "tf32": (2, torch.float32),
    "fp32": (3, torch.float32),
}

#: Label that sorts behind all others.
IGNORED = torch.iinfo(torch.int64).max


class EmulationError(AssertionError):
    """The program ended with an error: misuse of the device, or a sanitizer's report."""


@dataclasses.dataclass
class Call:
    """One call of the kernels. ``direction``: 0 inactive, 1 or 2 the view that holds the anchor."""

    features1: Tensor  # [A, C]
    features2: Tensor | None  # [A, C]; None: masked_logsumexp
    direction: Tensor  # [A] int8
    anchor_labels: Tensor  # [A]
    negatives: Tensor  # [N, C]
    negative_labels: Tensor  # [N]
    arithmetic: str = "bf16"
    temperature: float = 0.1
    eps: float = 0.0
    normalize: bool = True
    with_gradient: bool = True
    valid: Tensor | None = None  # [N] bool, the negatives that count; None: all
    # The whole family of losses; see ContrastiveProblem.
    objective: int | None = None  # None: by features2
    mask: str = "different"  # "same" or "all"
    excluded: Tensor | None = None  # [A] a negative as given or, with column_ids, an id; -1: none
    column_ids: Tensor | None = None  # [N] as given
    log_sums: Tensor | None = None  # [A] float32
    columns: tuple[Tensor, Tensor] | None = None  # 2 x [N] float32: log-sums and weights, as given
    with_statistics: bool = False
    temperature_on_device: bool = False
    # How the device runs it.
    multiprocessors: int = 2
    shared_kib: int = 0  # shared memory of a block; 0: the least of the architecture's GPUs
    execution_order: int = 0  # of warps and blocks: 0 first to last, 1 last to first, else a seed
    max_workers: int = 0  # 0: as planned
    wave_tiles: int = 0  # 0: as planned


@dataclasses.dataclass
class Outcome:
    values: Tensor  # [A] float32
    gradients: Tensor | None  # [A, C] float32
    matrix_products: int  # mma.sync instructions
    launches: int  # of kernels, the preparation of the negatives among them
    statistics: Tensor | None = None  # [4, A] float32


def numpy_of(tensor: Tensor) -> np.ndarray:
    tensor = tensor.contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def span(tensor: Tensor) -> bytes:
    """The memory of a [R, C] tensor from its first element to its last, with gaps between rows."""
    rows, columns = tensor.shape
    if rows == 0:
        return b""
    size = (rows - 1) * tensor.stride(0) + columns
    return numpy_of(torch.as_strided(tensor, (size,), (1,), tensor.storage_offset())).tobytes()


def family_arrays(call: Call, order: Tensor, rank: Tensor) -> list[Tensor]:
    arrays = []
    if call.excluded is not None:
        none = call.excluded < 0
        is_place = call.column_ids is None and len(rank) > 0
        places = rank[call.excluded.clamp(min=0)] if is_place else call.excluded
        arrays.append(torch.where(none, -1, places))
    if call.column_ids is not None:
        ids = call.column_ids[order]  # [N]
        met = ids == arrays[0][:, None]  # [A, N]
        columns = torch.arange(len(ids))
        first = torch.where(met, columns, len(ids)).amin(1)
        arrays += [ids, first, torch.where(met, columns + 1, 0).amax(1)]
    if call.log_sums is not None:
        arrays.append(call.log_sums)
    if call.columns is not None:
        arrays += [x[order] for x in call.columns]
    return arrays


def serialize(call: Call) -> bytes:
    number, negative_dtype = ARITHMETICS[call.arithmetic]
    num_anchors, channels = call.features1.shape
    num_negatives = call.negatives.shape[0]
    # Negatives that do not count come last, in the given order.
    labels = call.negative_labels.long()
    valid = torch.ones_like(labels, dtype=torch.bool) if call.valid is None else call.valid
    labels, order = torch.sort(torch.where(valid, labels, IGNORED), stable=True)
    anchor_labels = call.anchor_labels.long()
    begin = torch.searchsorted(labels, anchor_labels)
    end = torch.searchsorted(labels, anchor_labels, right=True)
    if call.mask == "all":
        begin, end = torch.zeros_like(begin), torch.zeros_like(end)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(num_negatives)
    given_order = torch.cat([rank[valid], rank[~valid]])
    leading_rows = given_order[:8000] if call.eps > 0 else given_order[:0]
    multiple = 16 // negative_dtype.itemsize
    header = struct.pack(
        "29q2d",
        int(call.features2 is not None) if call.objective is None else call.objective,
        FEATURE_DTYPES[call.features1.dtype],
        num_anchors,
        channels,
        call.features1.stride(0),
        call.features2 is not None,
        number,
        num_negatives,
        call.negatives.stride(0),
        FEATURE_DTYPES[negative_dtype],
        -(-channels // multiple) * multiple,
        len(leading_rows),
        call.normalize,
        call.with_gradient,
        call.features1.dtype.itemsize,
        negative_dtype.itemsize,
        call.multiprocessors,
        call.execution_order,
        call.max_workers,
        call.wave_tiles,
        -1 if call.valid is None else int(valid.sum()),
        call.mask == "same",
        call.excluded is not None,
        call.column_ids is not None,
        call.with_statistics,
        call.log_sums is not None,
        call.columns is not None,
        call.temperature_on_device,
        call.shared_kib,
        call.temperature,
        call.eps,
    )
    parts = [header, span(call.features1)]
    if call.features2 is not None:
        parts.append(span(call.features2))
    parts += [numpy_of(t).tobytes() for t in (call.direction, begin, end)]
    parts += [span(call.negatives), numpy_of(order).tobytes(), numpy_of(leading_rows).tobytes()]
    parts += [numpy_of(t).tobytes() for t in family_arrays(call, order, rank)]
    return b"".join(parts)


@dataclasses.dataclass
class Emulator:
    """Runs calls on the emulated device with a program of ``builds.build``."""

    program: Path

    def plan(
        self, anchors: int, negatives: int, channels: int, arithmetic: str, multiprocessors: int
    ) -> dict[str, int]:
        """The launch plan of a call with a gradient: fields of ``LaunchPlan`` and
        ``workspace_bytes``. One block runs on a multiprocessor at a time."""
        number, dtype = ARITHMETICS[arithmetic]
        numbers = (number, anchors, negatives, channels, FEATURE_DTYPES[dtype], multiprocessors)
        done = subprocess.run(
            [self.program, "plan", *map(str, numbers)], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise EmulationError(done.stderr)
        words = done.stdout.split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))

    def run(self, calls: Sequence[Call], timeout: float = 600) -> list[Outcome]:
        with tempfile.TemporaryDirectory() as folder:
            request, result = Path(folder, "request"), Path(folder, "result")
            with request.open("wb") as file:
                for call in calls:
                    file.write(serialize(call))
            environment = dict(
                os.environ, ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="print_stacktrace=1"
            )
            done = subprocess.run(
                [self.program, request, result],
                capture_output=True,
                text=True,
                timeout=timeout,
                env=environment,
            )
            if done.returncode != 0:
                raise EmulationError(
                    f"emulate ended with {done.returncode}:\n{done.stderr[-4000:]}"
                )
            data = result.read_bytes()
        outcomes = []
        offset = 0

        def take(dtype: torch.dtype, *shape: int) -> Tensor:
            nonlocal offset
            size = int(np.prod(shape)) * dtype.itemsize
            part = bytearray(data[offset : offset + size])
            offset += size
            return (
                torch.frombuffer(part, dtype=dtype).reshape(shape)
                if size
                else torch.empty(shape, dtype=dtype)
            )

        for call in calls:
            num_anchors, channels = call.features1.shape
            values = take(torch.float32, num_anchors)
            gradients = take(torch.float32, num_anchors, channels) if call.with_gradient else None
            statistics = take(torch.float32, 4, num_anchors) if call.with_statistics else None
            products, launches = take(torch.int64, 2).tolist()
            outcomes.append(Outcome(values, gradients, products, launches, statistics))
        return outcomes
