"""Masks in files: the ids that the file stores, by every reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import one_image
from image_trees import SIZE, draw_image, draw_mask, folder_overrides, folder_tree
from mask_forms import FORMS, REFUSED

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.checks.check import check
from cac_ext.train.data.pseudo_label_files import PseudoLabelled, mask_path
from cac_ext.train.errors import DataError
from cac_ext.train.pseudo_labels.image_labels import read_image_labels


@pytest.mark.parametrize("name", FORMS)
def test_a_mask_is_the_ids_that_the_file_stores(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Read for training, for image-level labels, as a pseudo label, by a check."""
    write, count = FORMS[name]
    ids = rng.integers(0, count, SIZE).astype(np.uint8)
    draw_image(tmp_path / "a.png", rng)
    write(tmp_path / name, ids)
    images = one_image(tmp_path / "a.png", tmp_path / name)
    np.testing.assert_array_equal(images[0]["mask"].numpy(), ids)
    np.testing.assert_array_equal(images.known_mask(0).numpy(), ids)

    splits = DatasetSplits(images, images, images, ["background", "car", "tree"])
    splits = DatasetSplits(**{**vars(splits), "background_class": 0})
    report = check(splits, progress=False)
    counts = np.bincount(ids.flatten(), minlength=3).tolist()
    assert report.parts["validation"].pixels.tolist() == counts
    config = load("folder")
    labels = read_image_labels(config.weak, config.data, splits, progress=False)
    assert labels.tolist() == [[float(k in ids) for k in (1, 2)]]

    pseudo_label = mask_path(tmp_path / "labels", "a.png")  # its suffix is png in any format
    pseudo_label.parent.mkdir()
    pseudo_label.write_bytes((tmp_path / name).read_bytes())
    labelled = PseudoLabelled(images, tmp_path / "labels", 3, 255)
    np.testing.assert_array_equal(labelled[0]["mask"].numpy(), ids)


@pytest.mark.parametrize("name", ["4bit.png", "16bit.tif", "rgb.png", "20.pgm"])
def test_evaluation_counts_the_stored_ids(
    name: str, run_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    ids = rng.integers(0, 3, SIZE).astype(np.uint8)
    FORMS[name][0](tmp_path / name, ids)
    (tmp_path / "val.txt").write_text(f"images/val0.png {name}\n")
    options = ["--output", str(tmp_path / "out")]
    assert main(["evaluate", str(run_folder), *folder_overrides(tmp_path), *options]) == 0
    confusion = np.array(json.loads((tmp_path / "out/evaluation.json").read_text())["confusion"])
    np.testing.assert_array_equal(confusion.sum(1), np.bincount(ids.flatten(), minlength=3))


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_without_class_ids_is_refused_with_the_reason(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    write, words = REFUSED[name]
    ids = rng.integers(0, 3, SIZE).astype(np.uint8)
    ids[0, :3] = 0, 1, 2
    ids = np.minimum(ids, 1) if name == "large.tif" else ids
    draw_image(tmp_path / "a.png", rng)
    write(tmp_path / name, ids)
    images = one_image(tmp_path / "a.png", tmp_path / name)
    for read in (images.__getitem__, images.known_mask):
        with pytest.raises(DataError) as error:
            read(0)
        assert str(tmp_path / name) in str(error.value)
        assert "list.txt, line 1" in str(error.value)
        for word in words:
            assert word in str(error.value)


def test_masks_of_8_bits_stay_in_8_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    """The most common form, 8 bits, is read in 8 bits."""
    draw_image(tmp_path / "a.png", rng)
    ids = draw_mask(tmp_path / "mask.png", rng, [0, 1, 2, 255])
    mask = one_image(tmp_path / "a.png", tmp_path / "mask.png")[0]["mask"]
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask.numpy(), ids)
