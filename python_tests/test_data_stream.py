"""A stream of samples: complete passes, new augmentation, independent of workers and processes."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from cac_ext.train.config import AugmentConfig
from cac_ext.train.data.augment import CropPairAugment, LabelledAugment
from cac_ext.train.data.batches import collate_labelled, collate_pairs, collate_whole_crops
from cac_ext.train.data.contract import Sample
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.data.whole_crops import WholeCropAugment
from cac_ext.train.errors import DataError
from cac_ext.train.networks.grid import FeatureGrid


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


class Noise(Dataset):
    """Images with masks, drawn from their index."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8, generator=generator)
        mask = torch.randint(0, 5, (50, 60), generator=generator)
        return {"image": image, "mask": mask, "name": f"{index}"}


CONFIG = AugmentConfig(crop_size=33)
KINDS = {
    "labelled": (LabelledAugment(CONFIG, 255), collate_labelled),
    "pairs": (
        CropPairAugment(CONFIG, CropPairSampler(33, FeatureGrid(4), (0.1, 1.0), 0.5), 255),
        collate_pairs,
    ),
    **{
        f"whole crops, {strong} strong": (
            WholeCropAugment(CONFIG, strong=strong, cutmix=0.5, ignore_index=255),
            collate_whole_crops,
        )
        for strong in (0, 2)
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_makes_the_batches_of_the_training_process(kind: str, seed: int) -> None:
    augment, collate = KINDS[kind]
    stream, sampler = Stream(Noise(), augment, seed, "noise"), IterationSampler(0, 2, 3)
    samples = [stream[position] for position in range(3)]
    here, there = (
        list(stream_loader(stream, sampler, num_workers=workers, collate=collate))
        for workers in (0, 1)
    )
    for one, other in zip(map(tree_leaves, here), map(tree_leaves, there), strict=True):
        for first, second in zip(one, other, strict=True):
            if first is None:  # pairs without a truth
                assert second is None
                continue
            assert torch.equal(first, second)
            assert first.stride() == second.stride()
    if kind == "labelled":
        assert torch.equal(here[0].masks, torch.stack([sample.mask for sample in samples]))
    elif kind != "pairs":
        strong = torch.stack([sample.strong for sample in samples], dim=1)
        assert torch.equal(here[0].strong, strong)
        assert here[0].strong.is_contiguous()


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
