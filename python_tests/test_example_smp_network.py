"""The example that trains a model of segmentation_models.pytorch, and a stand-in without it."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_run import TINY_RUN
from torch import Tensor, nn

from cac_ext.train.cli.main import main
from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks import SegmentationNetwork, build_network

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CLASSES = 5

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


@pytest.fixture(autouse=True)
def in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.delitem(sys.modules, "smp_network", raising=False)


class _Encoder(nn.Module):
    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 4, 6, 8)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]).relu())
        return maps


class _Decoder(nn.Module):
    """Joins the maps at stride 4 and 8; the size must be a multiple of 8, as in smp."""

    def __init__(self) -> None:
        super().__init__()
        self.join = nn.Sequential(nn.Conv2d(14, 10, 3, padding=1), nn.Dropout2d(0.2))

    def forward(self, maps: list[Tensor]) -> Tensor:
        high = nn.functional.interpolate(maps[3], scale_factor=2.0)
        return self.join(torch.cat([maps[2], high], dim=1))


class _Model(nn.Module):
    """The interface of smp's models."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder, self.decoder = _Encoder(), _Decoder()
        upsampling = nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
        self.segmentation_head = nn.Sequential(nn.Conv2d(10, classes, 1), upsampling)

    def forward(self, images: Tensor) -> Tensor:
        return self.segmentation_head(self.decoder(self.encoder(images)))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Takes the place of smp; holds the arguments of each call."""
    calls: list[dict[str, Any]] = []

    def create_model(architecture: str, **arguments: Any) -> nn.Module:
        calls.append({"architecture": architecture, **arguments})
        return _Model(arguments["classes"])

    module = ModuleType("segmentation_models_pytorch")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", module)
    return calls


def make(**options: Any) -> SegmentationNetwork:
    return build_network(NetworkConfig(name="smp_network:build", options=options), CLASSES)


@pytest.mark.parametrize("size", [(64, 64), (50, 71), (33, 33)])
def test_the_features_keep_the_contract(
    stand_in: list[dict[str, Any]], size: tuple[int, int]
) -> None:
    network = make(architecture="unet", encoder="resnet34").eval()
    assert stand_in[0]["architecture"] == "unet"
    assert stand_in[0]["encoder_name"] == "resnet34"
    assert stand_in[0]["encoder_weights"] is None
    assert (network.grid.stride, network.feature_pooling, network.out_channels) == (4, 2, 10)
    assert {g["name"] for g in network.parameter_groups(1.0, 0.1)} == {"head", "backbone"}
    assert network.features(torch.randn(2, 3, *size)).shape[-2:] == tuple(-(-x // 4) for x in size)
    assert network(torch.randn(2, 3, *size)).shape == (2, CLASSES, *size)


def test_features_and_classes_are_those_of_the_model(
    stand_in: list[dict[str, Any]], seed: int
) -> None:
    torch.manual_seed(seed)
    network, model = make().eval(), _Model(CLASSES).eval()
    model.encoder.load_state_dict(network.encoder.backbone.state_dict())
    model.decoder.load_state_dict(network.encoder.decoder.state_dict())
    model.segmentation_head[0].load_state_dict(network.classifier.state_dict())
    images = torch.randn(1, 3, 48, 64)
    features = network.features(images)
    torch.testing.assert_close(features, model.decoder(model.encoder(images)))
    classify = model.segmentation_head[0]
    torch.testing.assert_close(network.classifier(features), classify(features))


def test_it_trains_and_the_run_is_evaluated(
    stand_in: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = ["train", "synthetic", *TINY_RUN, "network.name=smp_network:build"]
    run += ["network.weights=imagenet", "method.confidence_threshold=0.1"]
    assert main([*run, "--folder", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert [call["encoder_weights"] for call in stand_in] == ["imagenet", None]


@pytest.mark.parametrize("architecture", ["fpn", "unet", "deeplabv3plus"])
def test_smp_s_own_models_keep_the_contract(architecture: str, seed: int) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(seed)
    network = make(architecture=architecture, encoder="resnet18").eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 50, 71)).shape == (1, CLASSES, 50, 71)
    assert network.pooled_grid.stride == 8


def test_without_smp_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError, match="pip install segmentation-models-pytorch"):
        make()
