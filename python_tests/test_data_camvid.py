"""CamVid is read in both of its layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_trees import draw_image, draw_mask

from cac_ext.train.config import load
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.errors import ConfigError, DataError


def build(root: Path, *overrides: str) -> DatasetSplits:
    return build_datasets(load("camvid", [f"data.root={root}", *overrides]).data)


def test_images_masks_and_lists(tmp_path: Path, rng: np.random.Generator) -> None:
    masks = {}
    for part, count in (("train", 4), ("val", 2)):
        names = [f"{part}_{number}" for number in range(count)]
        for name in names:
            draw_image(tmp_path / f"images/{name}.jpg", rng)
            masks[name] = draw_mask(tmp_path / f"masks/{name}.png", rng, [*range(11), 255])
        (tmp_path / "lists").mkdir(exist_ok=True)
        lines = [f"images/{name}.jpg masks/{name}.png\n" for name in names]
        (tmp_path / f"lists/{part}.txt").write_text("".join(lines))
    splits = build(tmp_path)
    assert (len(splits.labelled), splits.unlabelled, len(splits.validation)) == (4, None, 2)
    assert splits.num_classes == len(splits.palette) == 11
    assert splits.class_names[0] == "sky"
    assert splits.class_names[10] == "bicyclist"
    np.testing.assert_array_equal(splits.validation[1]["mask"].numpy(), masks["val_1"])

    # Half of the images labelled: the masks of the others are not needed.
    half = build(tmp_path, "data.labelled_ratio=1/2")
    for entry in half.unlabelled.entries:
        entry.mask.unlink()
    half = build(tmp_path, "data.labelled_ratio=1/2")
    assert (len(half.labelled), len(half.unlabelled)) == (2, 2)
    assert "mask" not in half.unlabelled[0]


def test_segnets_folders_and_its_void_id(tmp_path: Path, rng: np.random.Generator) -> None:
    masks = {}
    for part, count in (("train", 3), ("val", 1)):
        for number in range(count):
            draw_image(tmp_path / f"{part}/{number}.png", rng)
            masks[part, number] = draw_mask(tmp_path / f"{part}annot/{number}.png", rng, 12)
    splits = build(tmp_path)
    assert [entry.name for entry in splits.labelled.entries] == [f"train/{n}.png" for n in range(3)]
    expected = np.where(masks["train", 2] == 11, 255, masks["train", 2])
    np.testing.assert_array_equal(splits.labelled[2]["mask"].numpy(), expected)


def test_a_folder_without_camvid_is_an_error(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ConfigError, match=r"lists/ or trainannot/"):
        build(tmp_path)
    (tmp_path / "lists").mkdir()
    with pytest.raises(DataError, match=r"train\.txt"):
        build(tmp_path)
