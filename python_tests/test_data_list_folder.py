"""Folders with list files: read as they are, and every fault named with its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four labelled images, three without masks, in sizes of their own."""
    rng = np.random.default_rng(0)
    for number in range(7):
        size = (40 + number, 60)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{number}.png")
        if number < 4:
            mask = rng.integers(0, 3, size).astype(np.uint8)
            mask[0, 0] = 255
            Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
    (tmp_path / "train.txt").write_text("# image mask\n0.png mask0.png\n1.png\tmask1.png\n\n")
    (tmp_path / "val.txt").write_text("2.png mask2.png\n3.png mask3.png\n")
    (tmp_path / "unlabelled.txt").write_text("4.png\n5.png nowhere.png\n6.png\n")
    return tmp_path


def build(folder: Path, *overrides: str):
    return build_datasets(
        load(
            "folder",
            [
                f"data.root={folder}",
                "data.labelled_list=train.txt",
                "data.unlabelled_list=unlabelled.txt",
                "data.validation_list=val.txt",
                "data.num_classes=3",
                *overrides,
            ],
        ).data
    )


def test_lists_are_read_and_unlabelled_images_need_no_mask(folder: Path) -> None:
    splits = build(folder, "data.class_names=[sky,road,car]")
    assert (len(splits.labelled), len(splits.unlabelled), len(splits.validation)) == (2, 3, 2)
    assert list(splits.class_names) == ["sky", "road", "car"]
    sample = splits.labelled[1]
    assert sample["image"].shape == (3, 41, 60)
    assert sample["mask"].shape == (41, 60)
    assert sample["mask"][0, 0] == 255
    assert sample["name"] == "1.png"
    assert [set(splits.unlabelled[i]) for i in range(3)] == [{"image", "name"}] * 3


def test_palette_masks_are_ids(folder: Path) -> None:
    ids = torch.randint(0, 3, (40, 60), dtype=torch.uint8)
    picture = Image.fromarray(ids.numpy(), mode="P")
    picture.putpalette([7, 7, 7, 100, 0, 0, 0, 100, 0])
    picture.save(folder / "mask0.png")
    assert torch.equal(build(folder).labelled[0]["mask"].long(), ids.long())


def test_missing_settings_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.root, .*data\.num_classes"):
        build_datasets(load("folder").data)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: (f / "1.png").unlink(), ["1.png", "train.txt", "data.root"]),
        (lambda f: (f / "train.txt").unlink(), ["train.txt"]),
        (lambda f: (f / "train.txt").write_text("# nothing\n"), ["train.txt", "empty"]),
        (lambda f: (f / "train.txt").write_text("0.png\n"), ["train.txt", "line 1", "image mask"]),
        (lambda f: (f / "1.png").write_bytes(b"no picture"), ["cannot read", "1.png"]),
        (
            lambda f: Image.new("L", (60, 39)).save(f / "mask1.png"),
            ["mask1.png", "60 x 39", "60 x 41"],
        ),
        (
            lambda f: Image.new("L", (60, 41), 7).save(f / "mask1.png"),
            ["mask1.png", "ids 7", "num_classes is 3"],
        ),
        (lambda f: Image.new("RGB", (60, 41)).save(f / "mask1.png"), ["mask1.png", "RGB"]),
    ],
)
def test_a_fault_is_named_with_its_file(break_it, words: list[str], folder: Path) -> None:
    break_it(folder)
    with pytest.raises(DataError) as error:
        build(folder).labelled[1]
    for word in words:
        assert word in str(error.value)
