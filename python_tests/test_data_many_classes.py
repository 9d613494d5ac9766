"""Any number of classes: ids in 8 or 16 bits, in masks, pseudo labels and predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import one_image, scene
from image_trees import SIZE, draw_image
from picture_files import write_png
from PIL import Image
from torch import nn

from cac_ext.train.config import load
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.classes import Classes
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import Entry
from cac_ext.train.data.files.pictures import picture_of_ids
from cac_ext.train.data.pseudo_label_files import PseudoLabelled, mask_path, write_pseudo_labels
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.inference import SINGLE_SCALE
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runs.folder import Run
from cac_ext.train.runs.predictions import plan, predict_files


class Pixels(nn.Module):
    """An encoder whose features are the image itself."""

    out_channels, stride = 3, 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.mark.parametrize(
    ("num_classes", "ignore_index"),
    [(2, 255), (21, 255), (256, 65535), (300, 65535), (1000, 40000)],
)
def test_any_number_of_classes_is_read_labelled_and_predicted(
    num_classes: int, ignore_index: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    ids = rng.integers(0, num_classes, SIZE)
    ids[0, 0] = num_classes - 1
    ids[1] = ignore_index
    write_png(tmp_path / "mask.png", ids, 8 if ids.max() < 256 else 16)
    Image.fromarray(scene(rng)).save(tmp_path / "a.png")
    entry = Entry("a.png", tmp_path / "a.png", tmp_path / "mask.png", "list.txt, line 1")
    classes = {"num_classes": num_classes, "ignore_index": ignore_index}
    images = ImageFiles(tmp_path, [entry], with_masks=True, **classes)
    mask = images[0]["mask"].as_subclass(torch.Tensor).long()
    np.testing.assert_array_equal(mask.numpy(), ids)

    names = [f"class {k}" for k in range(num_classes)]
    splits = DatasetSplits(images, images, images, names, ignore_index)
    folder = tmp_path / "labels"
    report = write_pseudo_labels(splits, lambda index, sample: mask, folder, "", progress=False)
    assert report.accuracy == 1
    stored = Image.open(mask_path(folder, "a.png"))
    assert stored.mode == ("L" if num_classes <= 255 else "I;16")
    assert np.array(stored)[1, 0] == (255 if num_classes <= 255 else 65535)  # no label
    read = PseudoLabelled(images, folder, num_classes, ignore_index)[0]["mask"]
    np.testing.assert_array_equal(read.numpy(), ids)

    network = SegmentationNetwork(Pixels(), nn.Conv2d(3, num_classes, 1)).eval()
    run = Run(load("synthetic"), Classes(names, ignore_index, None), network, 0, tmp_path)
    jobs = plan([tmp_path / "a.png"], tmp_path / "out", overwrite=False).jobs
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    network.classifier.bias.data[num_classes - 1] = 1
    assert predict_files(run, jobs, SINGLE_SCALE, progress=False) == []
    predicted = Image.open(tmp_path / "out/ids/a.png")
    assert predicted.mode == ("L" if num_classes <= 256 else "I;16")
    assert (np.array(predicted) == num_classes - 1).all()


def test_ids_that_no_picture_holds_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="65,536 ids"):
        picture_of_ids(np.zeros((1, 1), int), 65537)
    draw_image(tmp_path / "a.png", rng)
    images = one_image(tmp_path / "a.png", num_classes=65536)
    splits = DatasetSplits(images, images, images, [str(k) for k in range(65536)])
    with pytest.raises(ConfigError, match="up to 65,535 classes"):
        write_pseudo_labels(splits, lambda i, s: None, tmp_path / "labels", "", progress=False)


def test_a_label_in_16_bits_is_not_confused_with_one_in_8(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """255 is a class if there are more than 255; 65535 is no label if there are fewer."""
    draw_image(tmp_path / "a.png", rng)
    images = one_image(tmp_path / "a.png")
    path = mask_path(tmp_path, "a.png")
    write_png(path, np.full(SIZE, 255), 8)
    assert (PseudoLabelled(images, tmp_path, 300, 65535)[0]["mask"] == 255).all()
    assert (PseudoLabelled(images, tmp_path, 3, 7)[0]["mask"] == 7).all()
    write_png(path, np.full(SIZE, 65535), 16)
    assert (PseudoLabelled(images, tmp_path, 300, 255)[0]["mask"] == 255).all()
    with pytest.raises(DataError, match="65535, but there are 3 classes, and 255 stands for no"):
        PseudoLabelled(images, tmp_path, 3, 255)[0]
