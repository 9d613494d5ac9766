"""The form of a result file: what stands under each key of a `Results`.

Keys may be missing: files of older versions lack some, and some belong to one command alone.
"""

from __future__ import annotations

from typing import Any, TypedDict

from benchmarks.cases import Case
from benchmarks.operations import Workload


class Machine(TypedDict, total=False):
    """Hardware, and what in the environment of the process changes speed."""

    device: str
    cpu: str
    cores: int | None
    capability: str  # torch's name of the instruction set that it uses
    instruction_sets: list[str]
    threads: int
    system: str
    memory_bytes: int
    gpu: str
    gpu_memory_bytes: int
    gpu_capability: str
    environment: dict[str, str]
    niceness: int
    scheduling_policy: str
    halted_share: float  # of the time, at real-time priority
    foreign_load: float | None  # share of all processors that other programs used


class Software(TypedDict, total=False):
    """Versions that can change a figure."""

    python: str
    torch: str
    cuda: str | None
    cac_ext: dict[str, Any]  # `cac_ext.build_info()`


class Commit(TypedDict, total=False):
    """Of the checkout that the benchmark ran from; empty outside of one."""

    commit: str
    modified: bool


class WorkloadCounts(TypedDict, total=False):
    """A `Workload`."""

    anchors: int
    negatives: int
    channels: int
    active_anchors: int
    differing_pairs: int


class CaseRecord(TypedDict, total=False):
    """A `Case` of `loss` with its measured facts, or the sizes of a row of `step` or `data`."""

    name: str
    A: int
    N: int
    C: int
    K: int
    active_share: float
    background_share: float
    group: str
    workload: WorkloadCounts  # missing if the case was skipped
    matrix_rate: dict[str, float]  # input type -> operations a second of torch's matrix product
    peak: dict[str, float]  # a `Multiplication` -> operations a second of a loop on registers
    smaller_products: list[str]  # input types with smaller products than usual, for lack of time
    # of `step`
    negatives: int
    anchors: int
    batch: int  # also of `data`
    # of `data`, in pixels
    width: int
    height: int
    crop_size: int
    base_size: int | None  # long side before scaling; None: that of the file
    scale: float  # of the timed samples
    file_bytes: int  # of the JPEG


def case_record(case: Case, workload: Workload | None = None) -> CaseRecord:
    """A case of `loss`, before it is measured."""
    record: CaseRecord = {
        "name": case.name,
        "A": case.A,
        "N": case.N,
        "C": case.C,
        "K": case.K,
        "active_share": case.active_share,
        "background_share": case.background_share,
        "group": case.group,
    }
    if workload is not None:
        record["workload"] = {
            "anchors": workload.anchors,
            "negatives": workload.negatives,
            "channels": workload.channels,
            "active_anchors": workload.active_anchors,
            "differing_pairs": workload.differing_pairs,
        }
    return record


class MatrixRateRecord(TypedDict, total=False):
    """Torch's matrix product in one input type."""

    operations_per_second: float  # of the best shape
    shape: list[int]
    shapes: dict[str, float]  # each shape's rate
    smaller: dict[str, str]  # shapes that would take too long, with the one timed instead
    case: str


class Limits(TypedDict, total=False):
    """Rates that torch reaches on this machine: yardsticks, no limits of the hardware."""

    memory_bandwidth: float  # bytes a second, read and written
    matrix_rate: dict[str, MatrixRateRecord]  # the best of all cases, by input type


class CheckRecord(TypedDict, total=False):
    """Relative errors of an implementation against the float64 reference."""

    implementation: str
    dtype: str
    A: int
    N: int
    C: int
    K: int
    loss_error: float
    gradient_error: float
    loss_tolerance: float
    gradient_tolerance: float
    passed: bool


class Curve(TypedDict, total=False):
    """A training with one loss, step by step; differences are from the float64 training."""

    loss: list[float]
    loss_unsupervised: list[float]
    active: list[int]
    anchors_changed: list[int]
    labels_changed: list[int]


class Golden(TypedDict):
    """Largest relative distance of the loss from the golden curve."""

    deviation: float
    tolerance: float


class Largest(TypedDict, total=False):
    """The end of a search for the largest size that fits into memory."""

    loss: str
    what: str
    largest: int | None
    too_large: int | None
    stopped_by: str
    seconds: float
    budget_bytes: int


class PaperStep(TypedDict):
    """The paper's own figures of a training step."""

    negatives: list[int]
    seconds_per_iteration: list[float]
    memory_growth: str


class Extra(TypedDict, total=False):
    """What only some commands have."""

    skipped: list[str]
    curves: dict[str, dict[str, Curve]]  # seed -> loss -> curve
    golden: Golden
    largest: list[Largest]
    paper: PaperStep
    rest: dict[str, float]  # of `parts`: operation -> seconds a step
