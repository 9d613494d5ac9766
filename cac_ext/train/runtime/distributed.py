"""One training in several processes: torchrun starts them, DDP averages their gradients.

    torchrun --nproc_per_node=2 -m cac_ext.train train CONFIG

NCCL connects GPUs, one a process; gloo connects CPU processes. Every process takes an equal share
of the global batch (``schedule.labelled_batch``). With ``run.normalize_over_ranks`` the result is
that of one process, except for rounding, dropout and, with ``method.selected_num``, the choice of
negatives.

Batch statistics cover the batches of all processes. torch's SyncBatchNorm does so on CUDA alone;
`GlooBatchNorm` replaces it on CPUs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
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

_PATIENCE = timedelta(days=30)  # of `Processes.together`; gloo's default is half an hour
_POLL = 0.05  # seconds
# The first name exists from torch 2.14 on.
_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. With one process, no method communicates."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process shows progress and writes files."""
        return self.rank == 0

    def share(self, total: int, key: str, parts: int = 1) -> int:
        """The share of one process, in one of the parts of a step, in ``total``.

        ConfigError, which names ``key``, if the shares are not equal.
        """
        shares = self.size * parts
        if total % shares:
            who = f"{self.size} processes"
            if parts > 1:
                who = f"{self.size} process(es) in {parts} parts (schedule.accumulation)"
            raise ConfigError(
                f"{key} is {total}, which {who} cannot share equally: set it to a multiple of "
                f"{shares}"
            )
        return total // shares

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, without gradient."""
        total = values.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, without gradient."""
        return self.sum(values) / self.size

    def mean_count(self, count: Tensor) -> Tensor:
        """The mean over all processes of an integer count, float32; at least 1 in all together.

        A process's sum divided by it is, averaged over the processes, the mean over everything that
        they count, and 0 if they count nothing.
        """
        return self.mean(count.double()).clamp(min=1 / self.size).float()

    def sum_with_gradient(self, values: Tensor) -> Tensor:
        """The sum over all processes, through which gradients reach the values of each.

        If all processes compute the same loss from it, the mean of their gradients is the gradient
        of that loss.
        """
        return _SumOverProcesses.apply(values) if self.size > 1 else values

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its mean over all processes, as DDP does within a backward.

        Parameters that have no gradient in any process keep none.
        """
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        has = torch.tensor([parameter.grad is not None for parameter in trained]).int()
        dist.all_reduce(has)  # on the CPU, by gloo, so that no GPU waits
        used = [parameter for parameter, count in zip(trained, has.tolist(), strict=True) if count]
        for dtype in {parameter.dtype for parameter in used}:
            group = [parameter for parameter in used if parameter.dtype == dtype]
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            parts = (flat / self.size).split([parameter.numel() for parameter in group])
            for parameter, gradient, part in zip(group, gradients, parts, strict=True):
                parameter.grad = gradient.copy_(part.view_as(gradient))

    def mean_scalars(self, scalars: dict[str, float]) -> dict[str, float]:
        """The mean of each value over all processes; all must have the same keys."""
        means = self.mean(torch.tensor(list(scalars.values()), dtype=torch.float64))
        return dict(zip(scalars, means.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is True in any process. Every process waits for all others."""
        if self.size == 1:
            return flag
        seen = torch.tensor(int(flag))  # on the CPU, by gloo, so that no GPU waits
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen)

    def gather(self, value: Any) -> list[Any]:
        """The (picklable) values of all processes, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def collect(self, value: Any) -> list[Any]:
        """The (picklable) values of all processes in rank 0; nothing in the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.is_main else None
        dist.gather_object(value, values)
        return values or []

    def first(self, value: Any) -> Any:
        """The value of rank 0, in every process."""
        return self.gather(value)[0]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Runs ``work()`` in every process, without time limit; the results in the order of ranks.

        For work without collectives, for example if rank 0 alone has something to do: a collective
        would time out after minutes. If the work raises in one process, or a process dies, the
        others learn it as soon as they have finished theirs.

        Raises:
            ProcessError: another process has left.
            TrainingStopped: SIGTERM came while this process waited for the others.
        """
        if self.size == 1:
            return [work()]
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
        assert isinstance(patient, dist.ProcessGroup)  # this process is a member
        try:
            result = work()
            with StopRequest() as stop:
                arrival = dist.all_reduce(torch.zeros(1), group=patient, async_op=True)
                assert arrival is not None  # asynchronous
                while not arrival.is_completed():  # a wait in C++ would block signal handlers
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
            # Closes the connections, so that no process waits for this one.
            dist.destroy_process_group(patient)
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
        counts = self.counts(count)
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

    def gather_in_chunks(
        self,
        features: Tensor,  # [M, C] of this process, no gradient
        labels: Tensor,  # [M]
        most: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All processes' rows in chunks of at most ``most``, with equal shares of each process.

        There is at least one chunk, which may be empty. ``most`` is at least the number of
        processes, and every process must take all chunks.
        """
        share = most // self.size
        for start in range(0, max(*self.counts(len(features)), 1), share):
            rows = slice(start, start + share)
            yield self.gather_negatives(features[rows], labels[rows])

    def counts(self, count: int) -> list[int]:
        """Each process's count, in the order of ranks."""
        if self.size == 1:
            return [count]
        counts = torch.zeros(self.size, dtype=torch.int64)  # on the CPU, by gloo
        counts[self.rank] = count
        dist.all_reduce(counts)
        return counts.tolist()


ALONE = Processes()


def current() -> Processes:
    """This process among those of the process group; `ALONE` if no group is initialized."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def process_group(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun started; `ALONE` without torchrun or with one process.

    Args:
        device: ``config.device``; decides between NCCL and gloo.
    """
    if dist.is_initialized() or "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield current()
        return
    on_gpu = find_device(device).type == "cuda"
    # gloo beside NCCL: collectives of CPU tensors do not make a GPU wait.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def find_device(name: str) -> torch.device:
    """The device of ``config.device``; "auto" is a GPU, or the CPU if there is no GPU.

    Each process of a node uses the GPU of its local rank.
    """
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    gpu = int(os.environ.get("LOCAL_RANK", 0)) if several else None
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {name!r} is no device: give auto, cpu, cuda or for example cuda:1"
        ) from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device is {name}, but this machine has no CUDA device: use cpu or auto")
    if gpu is not None:
        if device.index is not None:
            raise ConfigError(
                f"device is {name}, but each of the processes started needs its own GPU: use cuda"
            )
        device = torch.device("cuda", gpu)
    if (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{device} is needed, but this machine has {torch.cuda.device_count()} CUDA device(s): "
            "give a smaller number, or start one process a GPU (torchrun --nproc_per_node)"
        )
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def distribute(model: nn.Module, processes: Processes, device: torch.device) -> nn.Module:
    """The model to call in training: wrapped in DDP if there are several processes."""
    if processes.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        # The projector is unused in the warm-up and in SupOnly.
        find_unused_parameters=True,
    )


@contextmanager
def without_synchronization(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context in which no backward averages gradients over the processes.

    The forward passes belong inside: DDP decides there what the backward will do.
    """
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def synchronize_batch_norm(model: nn.Module, processes: Processes, device: torch.device) -> None:
    """Makes batch normalization in the model cover the batches of all processes, in place.

    The names in the model's state stay the same.
    """
    if processes.size == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            if device.type != "cuda":
                module.__class__ = GlooBatchNorm  # the same parameters and buffers
            if any(True for _ in module.children()):
                module.register_forward_hook(_call_children)


def _call_children(norm: nn.Module, _: Any, out: Tensor) -> Tensor:
    """What timm's normalization layers do behind it: dropout and activation are inside them."""
    for child in norm.children():
        out = child(out)
    return out


class GlooBatchNorm(_BatchNorm):
    """SyncBatchNorm for CPUs, which torch lacks: sums over processes by two all-reduces.

    No subclass of torch's SyncBatchNorm, because DDP refuses that one on CPUs.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # any number of dimensions, as in torch's SyncBatchNorm

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, ...] -> [B, C, ...]`` of the same type; sums are float32 under autocast too."""
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
        centered = x - mean.view(shape)
        variance = _SumOverProcesses.apply(centered.square().sum(dims)) / size  # [C]
        if self.track_running_stats:
            self._track(mean.detach(), (variance * size / (size - 1).clamp(min=1)).detach())
        out = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics ``[C]`` towards those of a batch."""
        count, running_mean, running_var = (
            self.get_buffer(name) for name in ("num_batches_tracked", "running_mean", "running_var")
        )
        count += 1
        momentum = 1 / float(count) if self.momentum is None else self.momentum
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance, momentum)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradient)
