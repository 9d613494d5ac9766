"""Cityscapes is read from its own layout, with masks of train ids or label ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import SIZE, cityscapes_tree
from picture_files import write_png
from PIL import Image

from cac_ext.train.config import load
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.errors import DataError

#: Label ids and the train ids they stand for, as the data set's documentation gives them.
TRAIN_ID_OF = dict(
    zip(
        [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33],
        range(19),
        strict=True,
    )
)


def build(root: Path, *overrides: str) -> DatasetSplits:
    return build_datasets(load("cityscapes", [f"data.root={root}", *overrides]).data)


def test_cities_are_read_in_order_and_masks_are_train_ids(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    cityscapes_tree(tmp_path, rng, "labelTrainIds", [*range(19), 255])
    splits = build(tmp_path)
    assert [entry.name for entry in splits.labelled.entries] == [
        f"leftImg8bit/train/{city}/{city}_00000{number}_000019_leftImg8bit.png"
        for city in ("aachen", "ulm")
        for number in (0, 1)
    ]
    assert len(splits.validation) == 1
    sample = splits.labelled[3]
    path = tmp_path / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelTrainIds.png"
    np.testing.assert_array_equal(sample["mask"].numpy(), np.array(Image.open(path)))
    assert sample["image"].shape == (3, 24, 32)


def test_the_classes_have_their_names_and_colors(tmp_path: Path, rng: np.random.Generator) -> None:
    cityscapes_tree(tmp_path, rng, "labelTrainIds", [0])
    splits = build(tmp_path)
    assert splits.num_classes == 19
    assert (splits.class_names[0], splits.palette[0]) == ("road", (128, 64, 128))
    assert (splits.class_names[18], splits.palette[18]) == ("bicycle", (119, 11, 32))
    assert splits.ignore_index == 255


def test_masks_of_label_ids_become_train_ids(tmp_path: Path, rng: np.random.Generator) -> None:
    """The download has no labelTrainIds.png, but a list may name them."""
    cityscapes_tree(tmp_path, rng, "labelIds", [*range(34)])
    stem = "train/aachen/aachen_000001_000019"
    (tmp_path / "few.txt").write_text(
        f"leftImg8bit/{stem}_leftImg8bit.png gtFine/{stem}_gtFine_labelTrainIds.png\n"
    )
    expected = np.array(Image.open(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png"))
    expected = np.vectorize(lambda label_id: TRAIN_ID_OF.get(label_id, 255))(expected)
    for mask in (
        build(tmp_path).labelled[1]["mask"],
        build(tmp_path, "data.labelled_list=few.txt").labelled[0]["mask"],
    ):
        np.testing.assert_array_equal(mask.numpy(), expected)


def test_unlabelled_images_need_no_masks(tmp_path: Path, rng: np.random.Generator) -> None:
    cityscapes_tree(tmp_path, rng, "labelTrainIds", [*range(19), 255])
    stem = "train/aachen/aachen_000000_000019"
    (tmp_path / "few.txt").write_text(
        f"/leftImg8bit/{stem}_leftImg8bit.png /gtFine/{stem}_gtFine_labelTrainIds.png\n"
    )
    for mask in (tmp_path / "gtFine/train/ulm").iterdir():
        mask.unlink()
    splits = build(tmp_path, "data.labelled_list=few.txt")
    assert len(splits.labelled) == 1
    assert len(splits.unlabelled) == 3
    assert all("mask" not in splits.unlabelled[i] for i in range(3))
    assert splits.unlabelled[2]["image"].dtype == torch.uint8


def test_a_missing_mask_or_image_folder_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    cityscapes_tree(tmp_path, rng, "labelTrainIds", [0])
    (tmp_path / "gtFine/val/lindau/lindau_000000_000019_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(DataError, match=r"no mask .*lindau_000000_000019_gtFine_labelTrainIds"):
        build(tmp_path)
    (tmp_path / "leftImg8bit/train").rename(tmp_path / "leftImg8bit/training")
    with pytest.raises(DataError, match=r"leftImg8bit/train"):
        build(tmp_path)


def test_cityscapes_ids_out_of_range_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    cityscapes_tree(tmp_path, rng, "labelIds", [7, 8, 11])
    mask = next((tmp_path / "gtFine/train").glob("*/*_labelIds.png"))
    write_png(mask, np.full(SIZE, 26001), 16)  # an instance's id
    splits = build_datasets(load("cityscapes", [f"data.root={tmp_path}"]).data, check=False)
    with pytest.raises(DataError, match=r"label id 26001, but Cityscapes has -1 to 33"):
        [splits.labelled[index] for index in range(len(splits.labelled))]
