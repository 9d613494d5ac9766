"""A custom network is trained by its import path alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from cac_ext.train.cli.main import main
from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods.projecting_network import ProjectingNetwork
from cac_ext.train.networks import SegmentationNetwork, build_network

HERE = Path(__file__).parent
TINY_RUN = [
    "schedule.epochs=1",
    "schedule.iterations_per_epoch=1",
    "schedule.warmup_epochs=0",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
    "schedule.log_every=1",
    "augment.crop_size=33",
    "data.synthetic.image_size=48",
    "data.synthetic.labelled=4",
    "data.synthetic.unlabelled=4",
    "data.synthetic.validation=2",
    "method.confidence_threshold=0.05",
]


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


@pytest.fixture
def in_folder(monkeypatch: pytest.MonkeyPatch):
    """Makes a folder the current one and the only place of custom modules."""

    def enter(folder: Path) -> None:
        monkeypatch.chdir(folder)
        elsewhere = [entry for entry in sys.path if entry not in ("", str(HERE))]
        monkeypatch.setattr(sys, "path", elsewhere)
        for module in ("own_network", "broken"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return enter


def test_the_example_trains_evaluates_and_is_resumed_by_the_command(
    in_folder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    in_folder(HERE)
    run = ["train", "synthetic", "network.name=own_network:build", *TINY_RUN]
    assert main([*run, "--folder", str(tmp_path / "run")]) == 0
    assert "own_network:build network, 3." in (printed := capsys.readouterr().out)  # M parameters
    assert "mIoU" in printed
    assert main(["resume", str(tmp_path / "run")]) == 0
    assert "weights of the checkpoint" in capsys.readouterr().out


def test_both_losses_train_the_example_s_encoder(in_folder, seed: int) -> None:
    in_folder(HERE)
    torch.manual_seed(seed)
    network = build_network(NetworkConfig(name="own_network:build"), 4)
    assert {g["name"] for g in network.parameter_groups(1.0, 0.1)} == {"head", "backbone"}
    projector = nn.Conv2d(network.encoder.out_channels, 8, 1)
    model = ProjectingNetwork(network, projector).train()
    logits, (projections, confidences, labels, _) = model(
        torch.randn(2, 3, 33, 33), torch.randn(2, 3, 33, 33)
    )
    assert logits.shape == (2, 4, 33, 33)
    assert projections.shape == (2, 8, 5, 5)
    assert confidences.shape == labels.shape == (2, 5, 5)
    for loss in (logits, projections):
        network.zero_grad()
        loss.square().mean().backward(retain_graph=True)
        gradients = {name: p.grad for name, p in network.encoder.named_parameters()}
        # Units that no pixel of a random image turns on may have none; all layers do.
        layers = {name.rpartition(".")[0] for name in gradients}
        reached = {name.rpartition(".")[0] for name, x in gradients.items() if x.abs().sum() > 0}
        assert reached == layers


def test_the_encoder_is_the_model_it_was_taken_from(in_folder, seed: int) -> None:
    """The example's encoder and classifier give LRASPP's logits from the same weights."""
    in_folder(HERE)
    torch.manual_seed(seed)
    encoder = build_network(NetworkConfig(name="own_network:build"), 4).encoder.eval()
    original = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    original.backbone.load_state_dict(encoder.backbone.state_dict())
    original.classifier.cbr.load_state_dict(encoder.reduce.state_dict())
    original.classifier.scale.load_state_dict(encoder.gate.state_dict())
    low, high = original.classifier.low_classifier, original.classifier.high_classifier
    weight = torch.cat([low.weight, high.weight], dim=1)
    image = torch.randn(1, 3, 9, 9)  # one high feature: the kind of interpolation does not matter
    with torch.no_grad():
        logits = nn.functional.conv2d(encoder(image), weight, low.bias + high.bias)
        expected = original.classifier(original.backbone(image))
    torch.testing.assert_close(logits, expected)


BROKEN = """
from torch import nn
from cac_ext.train.networks import SegmentationNetwork

def encoder(stride, channels=8):
    module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1))
    module.stride, module.out_channels = stride, channels
    return module

def wrong_classes(config, num_classes):
    return SegmentationNetwork(encoder(2), nn.Conv2d(8, num_classes + 1, 1))

def wrong_stride(config, num_classes):
    return SegmentationNetwork(encoder(4), nn.Conv2d(8, num_classes, 1))

def wrong_channels(config, num_classes):
    return SegmentationNetwork(encoder(2, 9), nn.Conv2d(9, num_classes, 1))

def no_network(config, num_classes):
    return encoder(2)

def with_options(config, num_classes):
    classifier = nn.Conv2d(8, num_classes, 1)
    return SegmentationNetwork(encoder(2), classifier, dropout=config.options["p"])
"""


def test_a_network_that_breaks_the_contract_is_refused_at_once(in_folder, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    in_folder(tmp_path)
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"logits \[1, 4, 4, 4\], but returned \[1, 5, 4, 4\]"):
        build_network(NetworkConfig(name="broken:wrong_classes"), 4)
    with pytest.raises(TypeError, match=r"must return a .*SegmentationNetwork"):
        build_network(NetworkConfig(name="broken:no_network"), 4)
    for name in ("wrong_stride", "wrong_channels"):
        network = build_network(NetworkConfig(name=f"broken:{name}"), 4)
        with pytest.raises(ValueError, match=r"features of shape \[1, 8, 4, 4\].* must be \[1, "):
            network(images)
    with pytest.raises(ConfigError, match="cannot import 'broken:absent'"):
        build_network(NetworkConfig(name="broken:absent"), 4)
    network = build_network(NetworkConfig(name="broken:with_options", options={"p": 0.25}), 4)
    assert network.dropout.p == 0.25


def test_dropout_inside_an_encoder_is_warned_of() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout2d(0.2))
    encoder.stride, encoder.out_channels = 1, 8
    with pytest.warns(UserWarning, match="noise to the pseudo labels"):
        SegmentationNetwork(encoder, nn.Conv2d(8, 2, 1))
