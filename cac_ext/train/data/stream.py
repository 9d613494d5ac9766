"""An endless, seeded stream of augmented samples over a data set.

Position ``p`` of a stream is one sample of one pass over the data: the pass is ``p // length``,
each pass has an order of its own, and the augmentation at ``p`` is drawn from a seed made of ``p``.
A stream therefore has no state: to go on after iteration ``i`` is to start at position
``i * batch``, and every pass draws fresh augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cac_ext.train.errors import DataError
from cac_ext.train.runtime.seeding import derive_seed, seeded
from cac_ext.train.runtime.signals import leave_signals_to_the_main_process


class Stream(Dataset):
    """``stream[position]``: an augmented sample, the same at each call.

    Args:
        dataset: see `cac_ext.train.data`.
        augment: a sample to a dict of tensors, drawing from torch's CPU generator.
        seed: of the run.
        name: tells the streams of a run apart.
    """

    def __init__(
        self, dataset: Dataset, augment: Callable[[dict], dict], seed: int, name: str
    ) -> None:
        if len(dataset) == 0:
            raise ValueError(f"the {name} data set is empty")
        self.dataset = dataset
        self.augment = augment
        self.seed = seed
        self.name = name
        self._pass_number = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.dataset[self.index(position)]
        with seeded(self.seed, f"{self.name} augmentation", position):
            return self.augment(sample)

    def index(self, position: int) -> int:
        """Which sample of the data set lies at ``position``."""
        pass_number, place = divmod(position, len(self.dataset))
        if pass_number != self._pass_number:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, f"{self.name} order", pass_number))
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self._pass_number = pass_number
        return self._order[place]


class IterationSampler(Sampler[list[int]]):
    """Positions of iterations ``start`` to ``stop``: a batch each.

    With several processes, process ``rank`` of ``world_size`` takes its share of each batch, so
    that together they see what one process would.
    """

    def __init__(
        self, start: int, stop: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes")
        self.iterations = range(start, stop)
        self.batch_size = batch_size
        self.share = batch_size // world_size
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.iterations:
            first = iteration * self.batch_size + self.rank * self.share
            yield list(range(first, first + self.share))

    def __len__(self) -> int:
        return len(self.iterations)


def stream_loader(
    stream: Stream,
    sampler: IterationSampler,
    *,
    num_workers: int,
    collate: Callable[[list[dict]], dict] | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """Batches of the stream, in the sampler's order, whatever the number of workers.

    A file that cannot be read ends the iteration with the DataError that names it.
    """
    return SampleLoader(
        stream,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_the_main_process,
        # A generator of its own: starting a loader must not advance the global one.
        generator=torch.Generator().manual_seed(0),
    )


class SampleLoader(DataLoader):
    """A DataLoader whose DataError says the same with workers as without them."""

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except DataError as error:
            # One raised in a worker carries the worker's traceback in front of its message.
            message = str(error).rpartition(f"{DataError.__name__}: ")[2].strip()
            raise DataError(message) from error
