"""The batches of a method's streams for each step, on the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from cac_ext.train.config import Config
from cac_ext.train.data.batches import to_device
from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.methods.contract import StreamRequest
from cac_ext.train.runtime.distributed import Processes


class BatchStreams:
    """Loads each stream, from its first iteration, in ``schedule.accumulation`` parts a step.

    Args:
        requests: the streams that a method requested, by name.
        config: of the run.
        device: receives the batches.
        start: the first step to load.
        processes: each process takes its share of each batch.

    Raises:
        ConfigError: a batch cannot be shared equally by the processes and parts.

    Warns:
        UserWarning: the run ends before a stream begins.
    """

    def __init__(
        self,
        requests: Mapping[str, StreamRequest],
        config: Config,
        device: torch.device,
        start: int,
        processes: Processes,
    ) -> None:
        parts = config.schedule.accumulation
        self._parts = parts
        self._requests = requests
        self._device = device
        self._channels_last = config.run.channels_last
        self._loaders: dict[str, Iterator[Any]] = {}
        unused = [x for x in requests.values() if x.first_iteration >= config.iterations]
        if unused and processes.is_main:
            _warn_of_warmup(config)
        for name, request in requests.items():
            first = max(start, request.first_iteration)
            if first >= config.iterations:
                continue
            processes.share(request.batch_size, request.batch_key, parts)
            # Each part is a batch of its own: together they hold the positions of the whole one.
            sampler = IterationSampler(
                first * parts,
                config.iterations * parts,
                request.batch_size // parts,
                processes.rank,
                processes.size,
            )
            loader = stream_loader(
                Stream(request.images, request.augment, config.seed, request.name),
                sampler,
                num_workers=config.data.num_workers,
                collate=request.collate,
                pin_memory=device.type == "cuda",
            )
            self._loaders[name] = iter(loader)

    def next(self, iteration: int) -> list[dict[str, Any]]:
        """The batches of this step by stream, for each part of the step."""
        return [
            {
                name: to_device(next(loader), self._device, channels_last=self._channels_last)
                for name, loader in self._loaders.items()
                if iteration >= self._requests[name].first_iteration
            }
            for _ in range(self._parts)
        ]

    def images(self, batches: Sequence[Mapping[str, Any]]) -> int:
        """The number of images that all processes see in a step with these batches."""
        return sum(self._requests[name].batch_size for name in batches[0])


def _warn_of_warmup(config: Config) -> None:
    schedule = config.schedule
    warnings.warn(
        f"the whole run is warm-up (schedule.warmup_epochs is {schedule.warmup_epochs}, "
        f"schedule.epochs {schedule.epochs}): it trains the supervised loss alone and uses no "
        "unlabelled image. Set schedule.warmup_epochs below schedule.epochs, e.g. to 0, or "
        "method.name=sup_only if that is intended",
        stacklevel=2,
    )
