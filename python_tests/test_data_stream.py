"""A stream of samples: complete passes, new augmentation, independent of workers and processes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.errors import DataError


class Numbers(Dataset):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        return {"index": index}


def augment(sample: dict) -> dict:
    return {"index": torch.tensor(sample["index"]), "noise": torch.rand(())}


def batches(seed: int, start: int, stop: int, workers: int = 0, rank: int = 0, world: int = 1):
    stream = Stream(Numbers(), augment, seed, "numbers")
    sampler = IterationSampler(start, stop, 4, rank, world)
    return list(stream_loader(stream, sampler, num_workers=workers))


def test_every_pass_shows_every_sample_once_with_new_augmentation(seed: int) -> None:
    drawn = batches(seed, 0, 10)  # 40 positions: four passes
    indices = torch.cat([batch["index"] for batch in drawn]).view(4, 10)
    noise = torch.cat([batch["noise"] for batch in drawn])
    assert all(sorted(one_pass.tolist()) == list(range(10)) for one_pass in indices)
    assert len({tuple(one_pass.tolist()) for one_pass in indices}) > 1
    assert len(noise.unique()) == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_started_later_gives_the_same_batches(workers: int, seed: int) -> None:
    whole, rest = batches(seed, 0, 8), batches(seed, 5, 8, workers)
    for one, other in zip(whole[5:], rest, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["noise"], other["noise"])


def test_two_processes_share_each_batch(seed: int) -> None:
    whole = batches(seed, 0, 5)
    halves = [batches(seed, 0, 5, rank=rank, world=2) for rank in (0, 1)]
    for one, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(one["noise"], torch.cat([first["noise"], second["noise"]]))


def test_drawing_does_not_disturb_the_global_generator(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.rand(3)
    torch.manual_seed(seed)
    batches(seed, 0, 3)
    assert torch.equal(torch.rand(3), expected)


class Broken(Numbers):
    def __getitem__(self, index: int) -> dict:
        if index == 7:
            raise DataError("train.txt, line 8: cannot read the image seven.png: truncated")
        return super().__getitem__(index)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_ends_the_stream_with_its_name(workers: int, seed: int) -> None:
    """Without a worker's traceback, and at once."""
    stream = Stream(Broken(), augment, seed, "numbers")
    loader = stream_loader(stream, IterationSampler(0, 10, 4), num_workers=workers)
    with pytest.raises(DataError) as error:
        list(loader)
    assert str(error.value) == "train.txt, line 8: cannot read the image seven.png: truncated"
