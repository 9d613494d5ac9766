"""Pseudo labels in training: written once, cropped with their views, learned by Eq. 10."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from method_steps import make_cac, random_labelled, random_pairs, step_of
from PIL import Image
from tiny_run import TINY_WEAK

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.augment import CropPairAugment
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.pseudo_label_files import PseudoLabelled, mask_path, write_pseudo_labels
from cac_ext.train.errors import DataError
from cac_ext.train.methods.cac import weak_weight
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_the_commands_lead_from_image_labels_to_a_network(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    classifier, masks, run = (str(tmp_path / name) for name in ("classifier", "masks", "run"))
    overrides = [*TINY_WEAK, f"seed={seed}"]
    command = ["weak", "train-classifier", "synthetic", *overrides, "--folder", classifier]
    assert main(command) == 0
    assert main(["weak", "make-labels", classifier, "--output", masks]) == 0
    assert "of the pixels labelled" in capsys.readouterr().out
    assert len(list(Path(masks).glob("*.png"))) == 6

    weak = f"weak.pseudo_labels={masks}"
    assert main(["train", "synthetic", *overrides, weak, "--folder", run]) == 0
    steps = [x for x in read_metrics(Path(run) / "metrics.jsonl") if x["split"] == "train"]
    assert ["loss_weak" in step for step in steps] == [False] * 2 + [True] * 4
    # Discarded at inference: the network holds nothing of the second classifier.
    state = read_checkpoint(Path(run) / "checkpoint.pt")["modules"]["model"]
    assert any(name.startswith("weak_classifier.") for name in state)
    assert not any("weak" in name for name in state if name.startswith("network."))


def test_the_total_is_equation_10_and_spares_the_main_classifier(seed: int) -> None:
    config = load("synthetic", [*TINY_WEAK, "weak.pseudo_labels=masks", "network.dropout=0"])
    torch.manual_seed(seed)
    method = make_cac(config, 7)
    model = method.model
    side = model.network.pooled_grid.size(33)
    overlap = torch.arange(2 * side * side)
    valid = torch.ones(2, side, side, dtype=torch.bool)
    masks = torch.randint(0, 7, (2, 2, 33, 33))
    masks[0, 0] = 255
    pairs = random_pairs(2, 33, (overlap, overlap), (valid, valid), masks=tuple(masks))
    iteration = 3
    losses = step_of(method, random_labelled(2, 33, 7), pairs, iteration)

    expected = 0.0
    for view in pairs[:2]:
        logits = model.view_outputs(view.images).weak_logits
        assert logits.shape == (2, 7, 33, 33)
        expected += F.cross_entropy(logits, view.masks, ignore_index=255) / 2
    torch.testing.assert_close(losses.losses["weak"], expected)
    torch.testing.assert_close(
        losses.total,
        losses.losses["supervised"]
        + config.method.unsupervised_weight * losses.losses["unsupervised"]
        + weak_weight(config, iteration) * expected,
    )
    losses.losses["weak"].backward()
    assert all(p.grad is None for p in model.network.classifier.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.weak_classifier.parameters())


def test_the_weight_rises_over_the_first_tenth() -> None:
    config = load("synthetic", ["schedule.epochs=10", "schedule.iterations_per_epoch=100"])
    weights = [weak_weight(config, iteration) for iteration in range(0, 1000, 10)]
    assert weights[0] == pytest.approx(0.4 * math.exp(-5))
    assert weights[5] == pytest.approx(0.4 * math.exp(-5 * 0.25))
    assert weights[10:] == [0.4] * 90
    assert weights[:11] == sorted(weights[:11])


def test_a_view_s_mask_shows_what_the_view_shows(seed: int) -> None:
    """Of an image that is its own mask, view and mask agree under every crop, scale and flip."""
    torch.manual_seed(seed)
    config = load("synthetic", ["augment.jitter=0", "augment.gray=0", "augment.blur=0"]).augment
    sampler = CropPairSampler(33, FeatureGrid(4), (0.1, 1.0), 0.5)
    augment = CropPairAugment(config, sampler, 255)
    mask = torch.zeros(48, 40, dtype=torch.uint8)
    mask[10:30, 5:25] = 200
    for _ in range(10):
        pair = augment({"image": mask.expand(3, -1, -1).clone(), "mask": mask, "name": "square"})
        for view in pair:
            shown, labels = view.image[0], view.mask
            assert labels.shape == (33, 33)
            inside = labels != 255  # no padding
            agree = ((shown > 0.5) == (labels == 200))[inside].float().mean()
            assert agree > 0.9  # all but the resized square's edge


def test_pseudo_labels_are_written_once_and_read_whole(tmp_path: Path, seed: int) -> None:
    splits = build_datasets(load("synthetic", [*TINY_WEAK, f"seed={seed}"]).data)
    asked = []

    def label(index: int, sample: dict) -> torch.Tensor:
        asked.append(index)
        mask = splits.unlabelled.known_mask(index).long()
        mask[:24] = splits.ignore_index
        return mask

    report = write_pseudo_labels(splits, label, tmp_path, "labels", progress=False)
    assert (report.images, report.labelled, report.accuracy, report.miou) == (6, 0.5, 1.0, 1.0)
    name = splits.unlabelled[2]["name"]
    mask_path(tmp_path, name).unlink()
    write_pseudo_labels(splits, label, tmp_path, "labels", progress=False)
    assert asked == [0, 1, 2, 3, 4, 5, 2]  # only what was missing is made again

    images = PseudoLabelled(splits.unlabelled, tmp_path, splits.num_classes, splits.ignore_index)
    Image.new("L", (48, 48), 9).save(mask_path(tmp_path, name))
    with pytest.raises(DataError, match=r"holds the id 9, but there are 7 classes"):
        images[2]
    Image.new("L", (48, 47), 1).save(mask_path(tmp_path, name))
    with pytest.raises(DataError, match=r"is 48 x 47 pixels, but its image .* is 48 x 48"):
        images[2]
