"""At every evaluation, TensorBoard shows predictions and the results of a crop pair."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from method_steps import random_pairs
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TINY_RUN

from cac_ext.train import loop
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.experiments.methods import method_overrides
from cac_ext.train.figures.panels import (
    class_colors,
    crop_pair_figure,
    predictions_figure,
    save_confusion,
    save_panel,
)
from cac_ext.train.inference import predict
from cac_ext.train.loop import train
from cac_ext.train.methods import directional_contrast
from cac_ext.train.networks import build_network
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.runs import log as run_log

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


def rendered(figure: Figure, dpi: int = 80) -> np.ndarray:
    """RGB of a figure."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="png")
    return np.array(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("method", ["cac", "l2"])
def test_every_evaluation_shows_predictions_and_the_current_crop_pair(
    method: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {"validation/predictions": [], "train/crop_pair": []}
    steps = []

    def kept(tag: str, draw):
        def draw_and_keep(*arguments, **options):
            drawn[tag].append((arguments, rendered(draw(*arguments, **options))))
            return draw(*arguments, **options)

        return draw_and_keep

    def step_and_keep(method, state, batches, *rest):
        phases = take_step(method, state, batches, *rest)
        if "crop_pairs" in batches[0]:
            steps.append((batches[0]["crop_pairs"], method.contrast._latest))
        return phases

    take_step = loop.take_step
    monkeypatch.setattr(loop, "take_step", step_and_keep)
    for module, name, tag in (
        (run_log, "predictions_figure", "validation/predictions"),
        (directional_contrast, "crop_pair_figure", "train/crop_pair"),
    ):
        monkeypatch.setattr(module, name, kept(tag, getattr(module, name)))
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
    for tag, pictures in found.items():
        assert len(drawn[tag]) == len(pictures)
        for (_, expected), picture in zip(drawn[tag], pictures.values(), strict=True):
            assert np.array_equal(picture, expected)
    # The pairs and outputs of the latest step.
    for (arguments, _), (pairs, outputs) in zip(drawn["train/crop_pair"], steps, strict=True):
        assert arguments[2] is pairs is outputs.pairs
        for given, found in zip(arguments[3:], outputs[1:], strict=True):
            assert given is found


def test_the_picture_of_predictions_shows_images_truth_and_what_each_network_predicts(
    tmp_path: Path, seed: int
) -> None:
    torch.manual_seed(seed)
    config = load("synthetic", [*TINY, f"data.synthetic.seed={seed}"])
    splits = build_datasets(config.data)
    networks = {title: build_network(config.network, splits.num_classes).train() for title in "ab"}
    figure = predictions_figure(splits, networks, count=2)
    assert all(network.training for network in networks.values())  # as they were
    rows = np.array(figure.axes).reshape(2, 4)
    assert [axis.get_title() for axis in rows[0]] == ["image", "truth", "a", "b"]
    table = np.concatenate([class_colors(splits), np.full((256, 3), 255, np.uint8)])
    for row, index in zip(rows, (0, 2), strict=True):  # the first and the last of three
        sample = splits.validation[index]
        masks = [sample["mask"], *(predict(x.eval(), sample["image"]) for x in networks.values())]
        shown = [axis.images[0].get_array() for axis in row]
        assert np.array_equal(shown[0], sample["image"].permute(1, 2, 0))
        for picture, mask in zip(shown[1:], masks, strict=True):
            assert np.array_equal(picture, table[mask.long()])
    save_panel(tmp_path / "panel.png", splits, networks, count=2)
    panel = np.array(Image.open(tmp_path / "panel.png").convert("RGB"))
    assert np.array_equal(panel, rendered(figure, dpi=110))


def test_without_an_unlabelled_branch_there_is_no_crop_pair(tmp_path: Path) -> None:
    train(load("synthetic", [*TINY, *method_overrides("sup_only")]), tmp_path, progress=False)
    assert list(logged_pictures(tmp_path)) == ["validation/predictions"]


def test_the_picture_of_a_crop_pair_is_of_its_first_image(seed: int) -> None:
    """Of two images; overlap, labels and anchors of the second one must not show."""
    torch.manual_seed(seed)
    splits = build_datasets(load("synthetic").data)
    side, grid = 9, FeatureGrid(4)
    number = torch.arange(2 * side * side).view(2, side, side)
    overlaps = (number[:, 2:, 3:].flatten(), number[:, :-2, :-3].flatten())  # [A]
    valid = torch.ones(2, side, side, dtype=torch.bool)
    pairs = random_pairs(2, 33, overlaps, (valid, valid))
    first_to_second = torch.rand(len(overlaps[0])) < 0.4
    labels = torch.randint(0, 7, (4, side, side))
    confidences = torch.rand(4, side, side)
    active = (first_to_second, ~first_to_second)
    figure = crop_pair_figure(splits, grid, pairs, confidences, labels, active)
    axes = np.array(figure.axes[:8]).reshape(2, 4)  # the truth is not known
    corners = [(10, 6, 24, 28), (-2, -2, 24, 28)]  # left, top, width, height in pixels
    for view, (row, corner) in enumerate(zip(axes, corners, strict=True)):
        (outline,) = [patch for patch in row[0].patches if isinstance(patch, Rectangle)]
        assert outline.get_bbox().bounds == corner
        colors = class_colors(splits)[labels[2 * view]]  # [h, w, 3]
        assert np.array_equal(row[1].images[0].get_array(), colors)
        assert np.allclose(row[2].images[0].get_array(), confidences[2 * view])
        anchors = np.zeros(side**2, bool)
        first = pairs.image_index == 0
        anchors[pairs[view].overlap[first & active[view]]] = True
        cells = row[3].images[1].get_array()  # [h, w, RGBA]
        assert np.array_equal(cells[..., 3] > 0, anchors.reshape(side, side))
        assert np.array_equal(cells[..., :3], colors)
        assert row[3].images[1].get_extent() == [-2, 34, 34, -2]  # a cell is a stride wide


def test_the_picture_of_a_confusion_matrix_shows_shares_of_the_true_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.append((self, path)))
    confusion = torch.tensor([[6, 2, 0], [0, 0, 5], [0, 0, 0]])
    save_confusion(tmp_path / "confusion.png", confusion, ["a", "b", "c"])
    ((figure, path),) = figures
    assert path == tmp_path / "confusion.png"
    axis = figure.axes[0]
    shares = np.array([[75.0, 25, 0], [0, 0, 100], [np.nan] * 3])
    np.testing.assert_array_equal(np.ma.filled(axis.images[0].get_array(), np.nan), shares)
    assert {(t.get_position(), t.get_text()) for t in axis.texts} == {
        ((0, 0), "75"),
        ((1, 0), "25"),
        ((2, 1), "100"),
    }
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
