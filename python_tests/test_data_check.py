"""Faults in the data are named: those cheap to find before training, all of them on demand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import draw_mask, folder_overrides, folder_tree
from torch.utils.data import Dataset

from cac_ext.train.cli.main import main
from cac_ext.train.config import AugmentConfig, DataConfig, load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.augment import LabelledAugment
from cac_ext.train.data.batches import collate_labelled
from cac_ext.train.data.checks.check import check
from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path, seed: int) -> Path:
    """Eight labelled images, too many for the cheap checks to read all, and two to validate."""
    folder_tree(tmp_path, np.random.default_rng(seed), train=8, validation=2)
    return tmp_path


def append(folder: Path, name: str, line: str) -> None:
    with (folder / name).open("a") as file:
        file.write(line + "\n")


#: How to break the data, and the words of the message.
FAULTS: list[tuple[Callable[[Path], object], list[str]]] = [
    (lambda f: (f / "images/train6.png").unlink(), ["train.txt, line 7", "images/train6.png"]),
    (lambda f: (f / "masks/val1.png").unlink(), ["val.txt, line 2", "no mask", "masks/val1.png"]),
    (
        lambda f: (f / "images/train6.png").write_bytes(b"no picture"),
        ["train.txt, line 7", "cannot read the image", "images/train6.png"],
    ),
    (
        lambda f: (f / "masks/train6.png").write_bytes((f / "masks/train6.png").read_bytes()[:99]),
        ["train.txt, line 7", "cannot read the mask", "masks/train6.png"],
    ),
    (
        lambda f: draw_mask(f / "masks/train6.png", RNG, 3, (24, 31)),
        ["train.txt, line 7", "masks/train6.png is 31 x 24", "images/train6.png is 32 x 24"],
    ),
    (
        lambda f: draw_mask(f / "masks/train6.png", RNG, [3, 9]),
        ["train.txt, line 7", "masks/train6.png holds the ids 3, 9", "data.num_classes is 3"],
    ),
    (
        lambda f: append(f, "train.txt", "images/train2.png masks/train2.png"),
        ["train.txt, line 9", "images/train2.png is listed twice", "train.txt, line 3"],
    ),
    (
        lambda f: append(f, "val.txt", "/images/train2.png masks/train2.png"),
        ["val.txt, line 3", "images/train2.png is trained on", "train.txt, line 3"],
    ),
    (lambda f: (f / "val.txt").write_text("# none\n"), ["val.txt", "is empty"]),
    (lambda f: append(f, "train.txt", "a b c"), ["train.txt, line 9", "'image mask'", "3 columns"]),
]


@pytest.mark.parametrize(("break_it", "words"), FAULTS)
def test_every_fault_is_named_with_its_file_and_line(
    break_it: Callable, words: list[str], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["data", "check", "folder", *folder_overrides(folder)]
    assert main(command) == 0
    assert "no problems found" in capsys.readouterr().out
    break_it(folder)
    assert main(command) == 1
    printed = capsys.readouterr().out
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 1
    for word in words:
        assert word in problems[0]


def test_all_faults_are_found_in_one_go(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for number in (1, 4, 7):
        (folder / f"images/train{number}.png").write_bytes(b"")
    (folder / "masks/val0.png").unlink()
    assert main(["data", "check", "folder", *folder_overrides(folder), "data.num_workers=2"]) == 1
    printed = capsys.readouterr().out
    for name in ("train1.png", "train4.png", "train7.png", "val0.png", "4 problems found"):
        assert name in printed


def test_classes_are_counted(folder: Path) -> None:
    splits = build_datasets(load("folder", folder_overrides(folder)).data)
    report = check(splits, progress=False)
    masks = torch.stack([splits.labelled[i]["mask"] for i in range(8)])
    part = report.parts["labelled"]
    assert part.images == 8
    assert part.pixels.tolist() == [int((masks == k).sum()) for k in range(3)]
    assert part.images_with.tolist() == [int((masks == k).any((1, 2)).sum()) for k in range(3)]
    assert part.ignored == int((masks == 255).sum())


def test_a_class_that_is_never_labelled_is_remarked(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = [*folder_overrides(folder), "data.num_classes=4", "data.class_names=[a,b,c,boat]"]
    assert main(["data", "check", "folder", *overrides]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"remark: no pixel of the labelled images is of: boat", printed)


def test_training_does_not_start_on_data_that_is_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in range(1, 8):
        (folder / f"masks/train{number}.png").unlink()
    run = tmp_path / "run"
    command = ["train", "folder", *folder_overrides(folder), "--folder", str(run)]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "train.txt, line 2: there is no mask" in message
    assert "and 2 more; `cac-ext data check CONFIG` names them all" in message
    assert not run.exists()


def test_the_first_masks_are_read_before_training(folder: Path) -> None:
    draw_mask(folder / "masks/val0.png", RNG, [200])
    with pytest.raises(DataError, match=r"val\.txt, line 1: .*val0\.png holds the ids 200"):
        build_datasets(load("folder", folder_overrides(folder)).data)


def test_validation_on_training_images_is_warned_of(folder: Path) -> None:
    overrides = [*folder_overrides(folder), "data.validation_list=train.txt"]
    with pytest.warns(UserWarning, match=r"train0\.png is trained on.*8 of the validation"):
        build_datasets(load("folder", overrides).data)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_later_ends_the_run_with_its_name(
    workers: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (folder / "images/train6.png").write_bytes(b"no picture")
    command = ["train", "folder", *folder_overrides(folder), "--folder", str(tmp_path / "run")]
    command += ["network.width=16", "augment.crop_size=33", f"data.num_workers={workers}"]
    assert main([*command, "schedule.epochs=1", "schedule.iterations_per_epoch=2"]) == 2
    message = capsys.readouterr().err
    assert "train.txt, line 7: cannot read the image" in message
    assert "Traceback" not in message


class OwnDataset(Dataset):
    """A custom data set class, with plain tensors and a fault."""

    class_names = ("left", "right")
    fault = ""

    def __init__(self, config: DataConfig, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return 0 if self.split == "unlabelled" else 4

    def __getitem__(self, index: int) -> dict:
        image = torch.full((3, 20, 30), index, dtype=torch.uint8)
        mask = torch.zeros(20, 30, dtype=torch.int64)
        mask[:, 15:] = 1
        sample = {"image": image, "mask": mask, "name": f"{self.split} {index}"}
        if self.fault == "float image":
            sample["image"] = image / 255
        if self.fault == "float mask":
            sample["mask"] = mask.float()
        if self.fault == "ids":
            mask[0, 0] = 2
        if self.fault == "no name":
            del sample["name"]
        return sample


def test_a_data_set_class_is_named_by_its_import_path() -> None:
    splits = build_datasets(DataConfig(name="test_data_check:OwnDataset"))
    assert (len(splits.labelled), splits.unlabelled, len(splits.validation)) == (4, None, 4)
    assert splits.num_classes == 2
    assert splits.validation[1]["name"] == "validation 1"

    # Its mask, a plain tensor, is scaled as a mask: no id between the two arises.
    config = AugmentConfig(crop_size=65, labelled_scale=(1.7, 1.7))
    mask = LabelledAugment(config, 255)(splits.labelled[0]).mask
    assert set(mask.unique().tolist()) == {0, 1, 255}


class PlainDataset:
    """A data set class that knows nothing of torch's `Dataset`."""

    class_names, fault = OwnDataset.class_names, ""
    __init__, __len__ = OwnDataset.__init__, OwnDataset.__len__
    __getitem__ = OwnDataset.__getitem__


@pytest.mark.parametrize("workers", [0, 2])
def test_any_class_with_a_length_and_an_index_is_a_data_set(workers: int) -> None:
    images = build_datasets(DataConfig(name="test_data_check:PlainDataset")).labelled
    stream = Stream(images, LabelledAugment(AugmentConfig(crop_size=33), 255), 0, "labelled")
    sampler = IterationSampler(0, 2, 3)
    loader = stream_loader(stream, sampler, num_workers=workers, collate=collate_labelled)
    assert [batch.images.shape for batch in loader] == [(3, 3, 33, 33)] * 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("float image", ["labelled 0", "uint8 [3, H, W]", "float32 [3, 20, 30]"]),
        ("float mask", ["labelled 0", "mask must be integers", "float32"]),
        ("ids", ["labelled 0", "ids [2]", "2 classes"]),
        ("no name", ["sample 0 of the labelled images", "name", "dict of image, mask"]),
    ],
)
def test_a_sample_that_breaks_the_contract_is_an_error(
    fault: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnDataset, "fault", fault)
    with pytest.raises(DataError) as error:
        build_datasets(DataConfig(name="test_data_check:OwnDataset"))
    for word in words:
        assert word in str(error.value)


def test_a_data_set_class_without_class_names_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(OwnDataset, "class_names")
    with pytest.raises(ConfigError, match="class_names"):
        build_datasets(DataConfig(name="test_data_check:OwnDataset"))
    named = DataConfig(name="test_data_check:OwnDataset", class_names=["a", "b", "c"])
    assert build_datasets(named).num_classes == 3


def test_padding_of_labelled_images_is_ignored(seed: int) -> None:
    torch.manual_seed(seed)
    config = AugmentConfig(crop_size=40, labelled_scale=(1.0, 1.0))
    image = torch.full((3, 24, 32), 255, dtype=torch.uint8)
    for _ in range(8):
        sample = {"image": image, "mask": torch.ones(24, 32, dtype=torch.uint8), "name": "white"}
        item = LabelledAugment(config, 255)(sample)
        on_image = item.image[0] > 0  # white is above the mean color, which is 0
        assert on_image.sum() == 24 * 32
        assert torch.equal(item.mask, torch.where(on_image, 1, 255))
