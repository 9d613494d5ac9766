"""The image classifier and its class activation maps, which become pseudo labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from tiny_run import TINY_WEAK

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.errors import CheckpointError
from cac_ext.train.networks.backbones import move_stride_to_1x1
from cac_ext.train.pseudo_labels.activation_maps import class_activation_maps, labels_of_maps
from cac_ext.train.pseudo_labels.image_classifier import build_classifier, train_classifier
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_activation_maps_become_labels_by_two_thresholds() -> None:
    maps = torch.tensor([[[0.9, 0.31, 0.30, 0.05, 0.04]], [[1.0, 0.0, 0.9, 1.0, 0.0]]])  # [2, 1, 5]
    labels = labels_of_maps(maps, torch.tensor([1.0, 0.0]), [1, 2], 0.30, 0.05, 0, 255)
    assert labels.tolist() == [[1, 1, 255, 255, 0]]  # the second class is not in the image
    labels = labels_of_maps(maps, torch.tensor([1.0, 1.0]), [1, 2], 0.30, 0.05, 0, 255)
    assert labels.tolist() == [[2, 1, 2, 2, 0]]
    # The background may be any class.
    labels = labels_of_maps(maps, torch.tensor([1.0, 1.0]), [0, 2], 0.30, 0.05, 1, 255)
    assert labels.tolist() == [[2, 0, 2, 2, 1]]


def test_activation_maps_lie_where_the_activation_is(seed: int) -> None:
    """A classifier that answers to red sees a red square at its place, at every scale."""
    config = load("synthetic", TINY_WEAK)
    classifier = build_classifier(config, 3, pretrained=False).eval()
    classifier.features = torch.nn.Sequential(torch.nn.AvgPool2d(5, 4, 2), Redness())
    classifier.scores = torch.nn.Conv2d(2, 2, 1)
    torch.nn.init.dirac_(classifier.scores.weight)
    torch.nn.init.zeros_(classifier.scores.bias)
    image = torch.full((3, 61, 81), 100, dtype=torch.uint8)
    image[0, 20:40, 40:60] = 250
    image[1:, 20:40, 40:60] = 0
    maps = class_activation_maps(classifier, image, [1.0, 0.5, 1.5, 2.0])
    assert maps.shape == (2, 61, 81)
    assert maps.amin() >= 0
    torch.testing.assert_close(maps.amax(dim=(1, 2)), torch.tensor([1.0, 0.0]))
    rows, columns = (maps[0] > 0.5).nonzero().T
    edges = [rows.min(), rows.max(), columns.min(), columns.max()]
    assert all(abs(int(e) - t) <= 2 for e, t in zip(edges, (20, 39, 40, 59), strict=True)), edges


class Redness(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = (x[:, :1] - x[:, 1:2] - 1).clamp(min=0)
        return torch.cat([red, torch.zeros_like(red)], dim=1)


def test_the_training_of_the_classifier_resumes_after_its_last_epoch(
    tmp_path: Path, seed: int
) -> None:
    overrides = [*TINY_WEAK, f"seed={seed}", "image_classifier.epochs=3"]
    config = load("synthetic", overrides)
    unbroken = train_classifier(config, tmp_path / "a", torch.device("cpu"), progress=False)

    steps = []
    cross_entropy = F.binary_cross_entropy_with_logits

    def stop_in_the_second_epoch(*arguments):
        steps.append(0)
        if len(steps) == 4:
            raise InterruptedError
        return cross_entropy(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "binary_cross_entropy_with_logits", stop_in_the_second_epoch)
        with pytest.raises(InterruptedError):
            train_classifier(config, tmp_path / "b", torch.device("cpu"), progress=False)
    resumed = train_classifier(config, tmp_path / "b", torch.device("cpu"), progress=False)
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    logged = [
        [(line["iteration"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert [iteration for iteration, _ in logged[0]] == [1, 2, 3, 4, 5, 6]
    assert logged[0] == logged[1]

    other = load("synthetic", [*overrides, "image_classifier.learning_rate=0.05"])
    with pytest.raises(CheckpointError, match="other settings"):
        train_classifier(other, tmp_path / "b", torch.device("cpu"), progress=False)


def test_a_resnet50_is_the_classifier_of_the_large_networks(seed: int) -> None:
    config = load("voc")
    torch.manual_seed(seed)
    classifier = build_classifier(config, 21, pretrained=False)
    images = torch.randn(4, 3, 64, 48)
    assert classifier.activations(images).shape == (4, 20, 4, 3)
    recipe = config.image_classifier
    assert (recipe.epochs, recipe.learning_rate) == (5, 0.1)
    assert (recipe.scales, recipe.foreground, recipe.background) == ([1, 0.5, 1.5, 2], 0.3, 0.05)

    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.01)
    truth = torch.randint(0, 2, (4, 20)).float()
    losses = []
    for _ in range(2):
        losses.append(F.binary_cross_entropy_with_logits(classifier(images), truth))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]
    assert all(weights.grad.abs().sum() > 0 for weights in classifier.parameters())


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_a_resnet50_takes_pretrained_weights_of_either_stride_placement(
    stride_in: str, seed: int, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    trained = torchvision.models.resnet50().eval()  # torchvision's names, values made up
    for name, tensor in trained.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    if stride_in == "1x1":
        move_stride_to_1x1(trained)
    overrides = [f"image_classifier.weights={tmp_path / 'weights.safetensors'}"]
    config = load("voc", [*overrides, f"network.stride_in={stride_in}", "network.weights=null"])
    classifier = build_classifier(config, 21, pretrained=True).eval()
    assert "265 of 265 tensors" in classifier.initial_weights

    image = torch.randn(1, 3, 65, 50)
    with torch.no_grad():
        x = trained.maxpool(trained.relu(trained.bn1(trained.conv1(image))))
        expected = trained.layer4(trained.layer3(trained.layer2(trained.layer1(x))))
        # Trained at stride 32, used at 16: the same at every second position.
        actual = classifier.features(image)[..., ::2, ::2]
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_a_small_classifier_starts_from_a_supervised_run(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    """Random weights learn too little in so few epochs, and no others are published."""
    overrides = [*TINY_WEAK, f"seed={seed % 10**6}", "image_classifier.weights=sup_only"]
    folder = tmp_path / "classifier"
    command = ["weak", "train-classifier", "synthetic", *overrides, "--folder", str(folder)]
    assert main(command) == 0
    teacher = load("synthetic", overrides)
    state = read_checkpoint(folder / "teacher" / "checkpoint.pt")
    assert state["iteration"] == teacher.iterations
    weights = f"image_classifier.weights={folder / 'teacher' / 'checkpoint.pt'}"
    classifier = build_classifier(load("synthetic", [*overrides, weights]), 7, pretrained=True)
    for name, tensor in classifier.features.state_dict().items():
        assert torch.equal(tensor, state["modules"]["model"][f"network.encoder.{name}"])
    assert "tensors" in classifier.initial_weights

    # The same from the file itself, and from the run of a comparison.
    given = tmp_path / "given"
    command = ["weak", "train-classifier", "synthetic", *overrides, weights]
    assert main([*command, "--folder", str(given)]) == 0
    models = [torch.load(path / "classifier.pt")["model"] for path in (folder, given)]
    torch.testing.assert_close(*models, rtol=0, atol=0)
    assert not (given / "teacher").exists()

    command[-1] = "image_classifier.weights=IMAGENET1K_V1"
    assert main([*command, "--folder", str(tmp_path / "other")]) == 2
    assert "image_classifier.weights: there is no file IMAGENET1K_V1" in capsys.readouterr().err
