"""An endless, seeded stream of augmented samples over a data set.

Position ``p`` of a stream is one sample of one pass over the data: the pass is ``p // length``,
each pass has its own order, and the augmentation at ``p`` is drawn from a seed made of ``p``. So a
stream has no state: resuming after iteration ``i`` means starting at position ``i * batch``. Every
pass draws new augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cac_ext.train.errors import DataError
from cac_ext.train.runtime.seeding import derive_seed, seeded
from cac_ext.train.runtime.signals import leave_signals_to_the_main_process

S = TypeVar("S")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Indexed(Protocol[T_co]):
    """Anything that is read by index, as a data set or a stream."""

    def __getitem__(self, index: int) -> T_co: ...


class Samples(Indexed[T_co], Protocol[T_co]):
    """A data set with samples of any type."""

    def __len__(self) -> int: ...


class Stream(Generic[T]):
    """``stream[position]``: an augmented sample, the same at each call.

    Args:
        dataset: a `SegmentationDataset`, or one with more in its samples.
        augment: a sample to a named tuple of tensors, drawing from torch's CPU generator.
        seed: of the run.
        name: tells the streams of a run apart.
    """

    def __init__(
        self,
        dataset: Samples[S],
        augment: Callable[[S], T],
        seed: int,
        name: str,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError(f"the {name} data set is empty")
        self.dataset: Samples[Any] = dataset
        self.augment: Callable[[Any], T] = augment
        self.seed = seed
        self.name = name
        self._pass_number = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> T:
        sample = self.dataset[self.index(position)]
        with seeded(self.seed, f"{self.name} augmentation", position):
            return self.augment(sample)

    def index(self, position: int) -> int:
        """The index in the data set of the sample at ``position``."""
        pass_number, place = divmod(position, len(self.dataset))
        if pass_number != self._pass_number:
            generator = torch.Generator()
            generator.manual_seed(derive_seed(self.seed, f"{self.name} order", pass_number))
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self._pass_number = pass_number
        return self._order[place]


class IterationSampler(Sampler[list[int]]):
    """A batch of positions for each iteration from ``start`` to ``stop``.

    Of several processes, ``rank`` of ``world_size`` takes its share of each batch, so that together
    they see the batch of a single process.
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


class SampleLoader:
    """A DataLoader whose DataError is the same with workers as without them.

    Args:
        samples: read by index.
        options: of `torch.utils.data.DataLoader`.
    """

    def __init__(self, samples: Indexed[Any], **options: Any) -> None:
        self._loader: DataLoader[Any] = DataLoader(_AsDataset(samples), **options)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._loader
        except DataError as error:
            # One raised in a worker carries the worker's traceback in front of its message.
            message = str(error).rpartition(f"{DataError.__name__}: ")[2].strip()
            raise DataError(message) from error


class _AsDataset(Dataset[Any]):
    """The samples as `DataLoader` takes them; a sampler says how many there are."""

    def __init__(self, samples: Indexed[Any]) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def stream_loader(
    stream: Stream[Any],
    sampler: IterationSampler,
    *,
    num_workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
) -> SampleLoader:
    """Batches of the stream in the sampler's order, with any number of workers.

    A file that cannot be read ends the iteration with the DataError that names it.
    """
    return SampleLoader(
        stream,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_the_main_process,
        # A separate generator: starting a loader must not advance the global one.
        generator=torch.Generator().manual_seed(0),
    )
