"""Several processes, one training: torchrun starts them, DDP averages their gradients.

    torchrun --nproc_per_node=2 -m cac_ext.train train CONFIG

NCCL joins GPUs, one a process; gloo joins CPU processes. Every process takes its share of the same
global batch (``schedule.labelled_batch``), so that the number of processes is no part of the
method: with ``run.normalize_over_ranks`` the result is that of one process, up to rounding (and up
to dropout and, with ``method.selected_num``, the choice of negatives).

Batch statistics are those of all processes. torch's SyncBatchNorm does that on CUDA alone; on CPUs
`GlooBatchNorm` stands in for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from cac_ext.train.errors import ConfigError, ProcessError
from cac_ext.train.runtime.signals import StopRequest, TrainingStopped

T = TypeVar("T")

_PATIENCE = timedelta(days=30)  # of `Processes.together`; gloo's own is half an hour
_POLL = 0.05  # seconds
# The name from torch 2.14 on, and the one before.
_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. Alone, every method is the identity of its kind."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process shows progress and writes files."""
        return self.rank == 0

    def share(self, total: int, key: str) -> int:
        """This process's part of ``total``; ConfigError where it cannot be shared equally."""
        if total % self.size:
            raise ConfigError(
                f"{key} is {total}, which {self.size} processes cannot share equally: it must be "
                f"a multiple of {self.size}"
            )
        return total // self.size

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, without gradient."""
        total = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, without gradient."""
        return self.sum(values) / self.size

    def mean_scalars(self, scalars: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all processes, which have the same keys."""
        means = self.mean(torch.tensor(list(scalars.values()), dtype=torch.float64))
        return dict(zip(scalars, means.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process. All wait for all here."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag))  # on the CPU, by gloo: no GPU has to wait
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen)

    def gather(self, value: Any) -> list[Any]:
        """The picklable value of each process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """Rank 0's value, in every process."""
        return self.gather(value)[0]

    def together(self, work: Callable[[], T]) -> list[T]:
        """``work()`` in every process, however long each takes; the results in the order of ranks.

        For work in which the processes need not meet, as where rank 0 alone has something to do: a
        collective would give up waiting after minutes. Where work raises in one process, or one
        dies, the others learn it as soon as they have done theirs.

        Raises:
            ProcessError: another process has left.
            TrainingStopped: SIGTERM came while this one waited for the others.
        """
        if self.size == 1:
            return [work()]
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            result = work()
            with StopRequest() as stop:
                arrival = dist.all_reduce(torch.zeros(1), group=patient, async_op=True)
                while not arrival.is_completed():  # waiting in C++ would be deaf to signals
                    if stop.requested:
                        raise TrainingStopped("stopped while waiting for the other processes")
                    time.sleep(_POLL)
            try:
                arrival.wait()
            except RuntimeError as error:  # gloo: the connection is closed
                raise ProcessError(
                    "another process has ended before its work was done; its own message says why"
                ) from error
        finally:
            dist.destroy_process_group(patient)  # closes the connections: nobody waits for this one
        return self.gather(result)

    def gather_negatives(
        self,
        features: Tensor,  # [M, C] of this process, no gradient
        labels: Tensor,  # [M]
    ) -> tuple[Tensor, Tensor]:
        """All processes' rows in the order of ranks, ``[sum of M, C]`` and ``[sum of M]``.

        The counts M may differ; the processes exchange them on the CPU, so no GPU is waited for.
        Features and labels travel together, as bytes.
        """
        if self.size == 1:
            return features, labels
        count, channels = features.shape
        counts = self._counts(count)
        feature_bytes = channels * features.element_size()
        packed = features.new_zeros((max(counts), feature_bytes + 4), dtype=torch.uint8)
        packed[:count, :feature_bytes] = features.detach().contiguous().view(torch.uint8)
        packed[:count, feature_bytes:] = labels.to(torch.int32)[:, None].view(torch.uint8)
        received = packed.new_empty((self.size * len(packed), packed.shape[1]))
        getattr(dist, _GATHER)(received, packed)
        parts = received.chunk(self.size) if len(received) else [received] * self.size
        rows = torch.cat([part[:filled] for part, filled in zip(parts, counts, strict=True)])
        all_features = rows[:, :feature_bytes].contiguous().view(features.dtype)
        all_labels = rows[:, feature_bytes:].contiguous().view(torch.int32).squeeze(1)
        return all_features, all_labels.to(labels.dtype)

    def _counts(self, count: int) -> list[int]:
        """Each process's count, in the order of ranks."""
        counts = torch.zeros(self.size, dtype=torch.int64)  # on the CPU, by gloo
        counts[self.rank] = count
        dist.all_reduce(counts)
        return counts.tolist()


ALONE = Processes()


def current() -> Processes:
    """This process among those of the initialised process group, or alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def process_group(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun started; alone where it did not, or started only one.

    Args:
        device: ``config.device``; it decides between NCCL and gloo.
    """
    if dist.is_initialized() or "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield current()
        return
    on_gpu = find_device(device).type == "cuda"
    # gloo beside NCCL: what lies on the CPU is agreed on without making a GPU wait.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def find_device(name: str) -> torch.device:
    """The device of ``config.device``; "auto" is a GPU, or the CPU where there is none.

    Each process of a node has a GPU of its own, that of its local rank.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    gpu = int(os.environ.get("LOCAL_RANK", 0)) if several else None
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {name!r} is no device: give auto, cpu, cuda or cuda:1"
        ) from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device is {name}, but there is no CUDA device here: use cpu or auto")
    if gpu is not None:
        if device.index is not None:
            raise ConfigError(f"device is {name}, but several processes were started: use cuda")
        device = torch.device("cuda", gpu)
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{device} is asked for, but this machine has {torch.cuda.device_count()} CUDA "
            "device(s): start one process a GPU (--nproc_per_node)"
        )
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def distribute(model: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """The model to call in training: in DDP, or the model itself where the process is alone."""
    if processes.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        # The projector takes no part in the warm-up and in SupOnly.
        find_unused_parameters=True,
    )


def synchronize_batch_norm(model: nn.Module, processes: Processes, device: torch.device) -> None:
    """Makes all batch normalisation in the model count the images of all processes, in place.

    The names in its state stay the same.
    """
    if processes.size == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = GlooBatchNorm  # the same parameters and buffers


class GlooBatchNorm(_BatchNorm):
    """SyncBatchNorm on CPUs, where torch has none: sums over processes by two all-reduces.

    It is no subclass of torch's, which DDP refuses on CPUs.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # any number, as torch's

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, ...] -> [B, C, ...]`` of the same type; under autocast too sums are float32."""
        if not self.training:
            return super().forward(x)
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_full((1,), x.numel() / x.shape[1])
        total = _SumOverProcesses.apply(torch.cat([x.sum(dims), count]))  # [C + 1]
        size = total[-1].detach()
        mean = total[:-1] / size  # [C]
        centred = x - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / size  # [C]
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                momentum = self.momentum
                if momentum is None:
                    momentum = 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * size / (size - 1).clamp(min=1), momentum)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradient)
