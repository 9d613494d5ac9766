"""TensorBoard shows, at every evaluation, what the network predicts and what a crop pair became."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from method_steps import random_pairs
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TINY_RUN

from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.experiments.methods import method_overrides
from cac_ext.train.figures.panels import class_colours, crop_pair_figure
from cac_ext.train.loop import train
from cac_ext.train.networks.grid import FeatureGrid

TINY = [
    *TINY_RUN,
    "data.synthetic.labelled=3",
    "data.synthetic.unlabelled=4",
    "data.synthetic.validation=3",
    "schedule.epochs=4",
    "schedule.iterations_per_epoch=1",
    "schedule.evaluate_every=1",
]


def logged_pictures(folder: Path) -> dict[str, dict[int, np.ndarray]]:
    """Tag -> iteration -> RGB of the pictures in a run's event files."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["images"]:
        found[tag] = {
            event.step: np.array(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
            for event in events.Images(tag)
        }
    return found


@pytest.mark.parametrize("method", ["cac", "l2"])
def test_every_evaluation_shows_predictions_and_the_current_crop_pair(
    method: str, tmp_path: Path, seed: int
) -> None:
    train(
        load("synthetic", [*TINY, *method_overrides(method), f"seed={seed}"]),
        tmp_path,
        progress=False,
    )
    found = logged_pictures(tmp_path)
    assert {tag: list(pictures) for tag, pictures in found.items()} == {
        "validation/predictions": [1, 2, 3, 4],
        "train/crop_pair": [2, 3, 4],  # after the warm-up
    }
    shown = list(found["train/crop_pair"].values())
    assert all(picture.std() > 10 for picture in shown)
    assert any(picture.shape != shown[0].shape or (picture != shown[0]).any() for picture in shown)


def test_without_an_unlabelled_branch_there_is_no_crop_pair(tmp_path: Path) -> None:
    train(load("synthetic", [*TINY, *method_overrides("sup_only")]), tmp_path, progress=False)
    assert list(logged_pictures(tmp_path)) == ["validation/predictions"]


def test_the_picture_of_a_crop_pair_is_of_its_first_image(seed: int) -> None:
    """Two images; the second one's overlap, labels and anchors must not show."""
    torch.manual_seed(seed)
    splits = build_datasets(load("synthetic").data)
    side, grid = 9, FeatureGrid(4)
    number = torch.arange(2 * side * side).view(2, side, side)
    overlaps = (number[:, 2:, 3:].flatten(), number[:, :-2, :-3].flatten())  # [A]
    valid = torch.ones(2, side, side, dtype=torch.bool)
    pairs = random_pairs(2, 33, overlaps, (valid, valid))
    towards2 = torch.rand(len(overlaps[0])) < 0.4
    labels = torch.randint(0, 7, (4, side, side))
    confidences = torch.rand(4, side, side)
    active = (towards2, ~towards2)
    figure = crop_pair_figure(splits, grid, pairs, confidences, labels, active)
    axes = np.array(figure.axes[:8]).reshape(2, 4)  # the truth is not known
    corners = [(10, 6, 24, 28), (-2, -2, 24, 28)]  # left, top, width, height in pixels
    for view, (row, corner) in enumerate(zip(axes, corners, strict=True)):
        (outline,) = [patch for patch in row[0].patches if isinstance(patch, Rectangle)]
        assert outline.get_bbox().bounds == corner
        colours = class_colours(splits)[labels[2 * view]]  # [h, w, 3]
        assert np.array_equal(row[1].images[0].get_array(), colours)
        assert np.allclose(row[2].images[0].get_array(), confidences[2 * view])
        anchors = np.zeros(side**2, bool)
        first = pairs.image_index == 0
        anchors[pairs[view].overlap[first & active[view]]] = True
        cells = row[3].images[1].get_array()  # [h, w, RGBA]
        assert np.array_equal(cells[..., 3] > 0, anchors.reshape(side, side))
        assert np.array_equal(cells[..., :3], colours)
        assert row[3].images[1].get_extent() == [-2, 34, 34, -2]  # a cell is a stride wide
