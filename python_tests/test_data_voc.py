"""PASCAL VOC 2012 with SBD is read from its own layout, with the authors' lists and VOC's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import draw_mask, voc_tree

from cac_ext.train.config import load
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.errors import ConfigError, DataError


def build(root: Path, *overrides: str) -> DatasetSplits:
    return build_datasets(load("voc", [f"data.root={root}", *overrides]).data)


def names(dataset) -> list[str]:
    return [entry.name for entry in dataset.entries]


def images(ids: list[str]) -> list[str]:
    return [f"JPEGImages/{name}.jpg" for name in ids]


def test_without_a_list_all_masks_but_those_of_validation_are_training_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    ids = voc_tree(tmp_path, rng, train=5, validation=3)
    splits = build(tmp_path)
    assert names(splits.labelled) == images(ids[:5])
    assert names(splits.validation) == images(ids[5:])
    assert splits.unlabelled is None  # "full": the loop takes the labelled images
    sample = splits.labelled[2]
    assert sample["image"].shape == (3, 24, 32)
    assert sample["image"].dtype == torch.uint8
    assert sample["mask"].shape == (24, 32)
    assert int(sample["mask"].max()) == 255


def test_a_palette_picture_gives_ids_not_colors(tmp_path: Path, rng: np.random.Generator) -> None:
    ids = voc_tree(tmp_path, rng, train=1, validation=1)
    palette = rng.integers(0, 256, 768).tolist()
    path = tmp_path / f"SegmentationClassAug/{ids[0]}.png"
    mask = draw_mask(path, rng, [*range(21), 255], palette=palette)
    read = build(tmp_path).labelled[0]["mask"]
    np.testing.assert_array_equal(read.numpy(), mask)


def test_the_classes_have_vocs_names_and_colors(tmp_path: Path, rng: np.random.Generator) -> None:
    voc_tree(tmp_path, rng, train=1, validation=1)
    splits = build(tmp_path)
    assert splits.num_classes == 21
    assert splits.class_names[15] == "person"
    assert splits.palette[0] == (0, 0, 0)
    assert splits.palette[1] == (128, 0, 0)
    assert splits.palette[15] == (192, 128, 128)
    assert splits.palette[20] == (0, 64, 128)
    assert len(set(splits.palette)) == 21


@pytest.mark.parametrize("list_name", ["trainaug.txt", "train_aug.txt"])
def test_a_list_of_ids_is_followed(
    list_name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    ids = voc_tree(tmp_path, rng, train=5, validation=1)
    (tmp_path / "ImageSets/Segmentation" / list_name).write_text(f"{ids[3]}\n{ids[1]}\n")
    assert names(build(tmp_path).labelled) == images([ids[3], ids[1]])


def test_the_authors_lists_are_read_unchanged(tmp_path: Path, rng: np.random.Generator) -> None:
    """Root-relative paths with a leading slash; unlabelled masks may be missing."""
    ids = voc_tree(tmp_path, rng, train=6, validation=1)
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in ids[:6]]
    labelled, unlabelled = tmp_path / "labelled.txt", tmp_path / "unlabelled.txt"
    labelled.write_text("".join(lines[4:]))
    unlabelled.write_text("".join(lines[:4]))
    for name in ids[:4]:
        (tmp_path / f"SegmentationClassAug/{name}.png").unlink()
    overrides = (f"data.labelled_list={labelled}", f"data.unlabelled_list={unlabelled}")
    splits = build(tmp_path, *overrides)
    assert names(splits.labelled) == images(ids[4:6])
    assert names(splits.unlabelled) == images(ids[:4])
    assert all("mask" in splits.labelled[i] for i in range(2))
    assert all("mask" not in splits.unlabelled[i] for i in range(4))


def test_absolute_paths_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    root, elsewhere = tmp_path / "voc", tmp_path / "elsewhere"
    voc_tree(root, rng, train=2, validation=1)
    ids = voc_tree(elsewhere, rng, train=3, validation=0)
    path = tmp_path / "list.txt"
    image = elsewhere / f"JPEGImages/{ids[2]}.jpg"
    path.write_text(f"{image} {elsewhere / f'SegmentationClassAug/{ids[2]}.png'}\n")
    splits = build(root, f"data.labelled_list={path}")
    assert splits.labelled[0]["name"] == image.as_posix()


def test_with_a_labelled_list_alone_the_other_training_images_are_unlabelled(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    ids = voc_tree(tmp_path, rng, train=6, validation=2)
    (tmp_path / "few.txt").write_text(f"{ids[2]}\n")
    splits = build(tmp_path, "data.labelled_list=few.txt")
    assert names(splits.labelled) == images([ids[2]])
    assert names(splits.unlabelled) == images([*ids[:2], *ids[3:6]])


@pytest.mark.parametrize("below", ["VOC2012", "VOCdevkit/VOC2012"])
def test_the_root_may_be_a_folder_above(
    below: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    ids = voc_tree(tmp_path / below, rng, train=2, validation=1)
    assert names(build(tmp_path).labelled) == images(ids[:2])


def test_what_is_missing_is_named(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match=r"data\.root.*JPEGImages"):
        build_datasets(load("voc").data)
    with pytest.raises(ConfigError, match=r"JPEGImages"):
        build(tmp_path)
    ids = voc_tree(tmp_path, rng, train=3, validation=1)
    with pytest.raises(ConfigError, match=r"data\.num_classes is 20.*21 fixed classes"):
        build(tmp_path, "data.num_classes=20")
    (tmp_path / f"JPEGImages/{ids[1]}.jpg").unlink()
    with pytest.raises(DataError, match=rf"no image .*{ids[1]}\.jpg"):
        build(tmp_path)
    (tmp_path / "SegmentationClassAug").rename(tmp_path / "SegmentationClass")
    with pytest.raises(DataError, match=r"trainaug\.txt.*SegmentationClassAug.*cac-ext data sbd"):
        build(tmp_path)


def test_vocs_own_masks_are_read_without_sbd(tmp_path: Path, rng: np.random.Generator) -> None:
    """VOC 2012 without SBD: all of it can be trained on and evaluated."""
    ids = voc_tree(tmp_path, rng, train=4, validation=2)
    (tmp_path / "SegmentationClassAug").rename(tmp_path / "SegmentationClass")
    lists = tmp_path / "ImageSets/Segmentation"
    (lists / "train.txt").write_text(f"{ids[0]}\n{ids[2]}\n")
    with pytest.warns(UserWarning, match=r"VOC's own 2, without SBD's.*cac-ext data sbd"):
        splits = build(tmp_path)
    assert names(splits.labelled) == images([ids[0], ids[2]])
    assert names(splits.validation) == images(ids[4:])
    # The authors' lists name SegmentationClassAug.
    listed = tmp_path / "labelled.txt"
    listed.write_text(f"/JPEGImages/{ids[1]}.jpg /SegmentationClassAug/{ids[1]}.png\n")
    splits = build(tmp_path, f"data.labelled_list={listed}", f"data.unlabelled_list={listed}")
    for part in (splits.labelled, splits.validation):
        assert "mask" in part[0]
    assert splits.unlabelled.known_mask(0) is not None
    # If both folders have a mask, SegmentationClassAug's is read.
    other = draw_mask(tmp_path / f"SegmentationClassAug/{ids[1]}.png", rng, 21)
    found = build(tmp_path, f"data.labelled_list={listed}", f"data.unlabelled_list={listed}")
    np.testing.assert_array_equal(found.labelled[0]["mask"].numpy(), other)
