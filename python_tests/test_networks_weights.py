"""Pretrained weights are loaded whole, from either kind of file, with either stride placement."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks import build_network
from cac_ext.train.networks.backbones import move_stride_to_1x1
from cac_ext.train.networks.weights import load_backbone_weights

CLASSES = 3


def randomize(module: nn.Module, seed: int) -> None:
    """Distinct parameters and statistics, as if trained."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half() if v.ndim > 1 else v for k, v in state.items()}


def last_features(model: ResNet, image: Tensor) -> Tensor:
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    return model.layer4(model.layer3(model.layer2(model.layer1(x))))


def tiny_backbone() -> nn.Module:
    layers = {"conv1": nn.Conv2d(3, 4, 3), "bn1": nn.BatchNorm2d(4), "conv2": nn.Conv2d(4, 4, 3)}
    return nn.Sequential(OrderedDict(layers))


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_a_dilated_backbone_computes_what_the_classifier_s_did(
    stride_in: str, seed: int, tmp_path: Path
) -> None:
    """Trained strided, used dilated: every second position is equal, in both placements.

    The weights go through a file in fp16.
    """
    torch.manual_seed(seed)
    trained = torchvision.models.resnet50().eval()
    randomize(trained, seed)
    state = {k: v.float() for k, v in halved(trained.state_dict()).items()}
    trained.load_state_dict(state)
    if stride_in == "1x1":
        move_stride_to_1x1(trained)
    path = tmp_path / "weights.safetensors"
    save_file(halved(trained.state_dict()), path)

    config = NetworkConfig(
        name="deeplabv3plus", backbone="resnet50", weights=str(path), stride_in=stride_in
    )
    network = build_network(config, CLASSES).eval()
    assert "265 of 265 tensors" in network.initial_weights
    assert "not used: fc." in network.initial_weights
    assert "missing" not in network.initial_weights

    image = torch.randn(1, 3, 65, 50)
    with torch.no_grad():
        expected = last_features(trained, image)
        actual = network.encoder.backbone(image)["high"]
    assert (actual[..., ::2, ::2] - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("dilate", [[False, False, True], [False, True, True]])
def test_dilation_is_exact_at_both_output_strides_and_the_placements_differ(
    dilate: list[bool], seed: int
) -> None:
    torch.manual_seed(seed)
    blocks = [2, 2, 2, 2]
    strided, moved = ResNet(Bottleneck, blocks).eval(), ResNet(Bottleneck, blocks).eval()
    dilated = ResNet(Bottleneck, blocks, replace_stride_with_dilation=dilate).eval()
    for model in (moved, dilated):
        model.load_state_dict(strided.state_dict())
        move_stride_to_1x1(model)

    image = torch.randn(1, 3, 65, 50)
    step = 2 ** sum(dilate)
    with torch.no_grad():
        expected = last_features(moved, image)
        actual = last_features(dilated, image)[..., ::step, ::step]
        other = last_features(strided, image)
    assert (actual - expected).norm() <= 1e-4 * expected.norm()
    assert (other - expected).norm() > 0.05 * expected.norm()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("backbone", ["vgg16", "vgg16_bn"])
def test_torchvision_s_vgg_weights_fit(backbone: str, suffix: str, tmp_path: Path) -> None:
    config = NetworkConfig(name="pspnet", backbone=backbone)
    own = build_network(config, CLASSES).encoder.backbone
    randomize(own, 1)
    # torchvision's file: "features." in front, indices with gaps, a classifier behind.
    state = {f"features.{name}": tensor for name, tensor in own.state_dict().items()}
    with torch.device("meta"):
        theirs = getattr(torchvision.models, backbone)().state_dict()
    assert set(state) == {name for name in theirs if name.startswith("features.")}
    state["classifier.0.weight"] = torch.zeros(2, 2)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)

    loaded = build_network(NetworkConfig(**{**vars(config), "weights": str(path)}), CLASSES)
    for name, tensor in loaded.encoder.backbone.state_dict().items():
        assert torch.equal(tensor, own.state_dict()[name])
    assert "behind the prefix 'features.'" in loaded.initial_weights


WRAPPERS: dict[str, Callable[[dict], dict]] = {
    "state dict": lambda state: state,
    "checkpoint": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "from DDP": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "inside a network": lambda state: {f"network.encoder.{k}": v for k, v in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_inside_a_checkpoint(wrapper: str, tmp_path: Path) -> None:
    source, target = tiny_backbone(), tiny_backbone()
    randomize(source, 2)
    path = tmp_path / "checkpoint.pth"
    torch.save(WRAPPERS[wrapper](source.state_dict()), path)
    report = load_backbone_weights(target, "resnet50", str(path))
    assert (report.loaded, report.wanted) == (8, 8)
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_the_report_names_what_does_not_fit_and_the_rest_is_loaded(tmp_path: Path) -> None:
    source, target = tiny_backbone(), tiny_backbone()
    before = target.conv2.weight.clone()
    state = halved(source.state_dict())
    state["conv2.weight"] = torch.zeros(9, 4, 3, 3)
    state["fc.weight"] = torch.zeros(2, 2)
    del state["bn1.running_mean"]
    path = tmp_path / "part.pth"
    torch.save(state, path)
    with pytest.warns(UserWarning, match="only a part"):
        report = load_backbone_weights(target, "resnet50", str(path))
    assert (report.loaded, report.wanted, report.converted) == (6, 8, 1)
    assert list(report.missing) == ["bn1.running_mean"]
    assert list(report.unused) == ["fc.weight"]
    assert report.mismatched == [
        "conv2.weight ([9, 4, 3, 3] in the file, [4, 4, 3, 3] in the network)"
    ]
    for name in ("6 of 8", "bn1.running_mean", "fc.weight", "conv2.weight ([9, 4, 3, 3]"):
        assert name in str(report)
    assert torch.equal(target.conv2.weight, before)
    torch.testing.assert_close(target.conv1.weight, source.conv1.weight, atol=1e-3, rtol=1e-3)


def _other_model(path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(3)}, path)


def _whole_model(path: Path) -> None:
    torch.save(tiny_backbone(), path)


def _not_finite(path: Path) -> None:
    torch.save({"conv1.weight": torch.full((4, 3, 3, 3), float("nan"))}, path)


def _cut_short(path: Path) -> None:
    torch.save(tiny_backbone().state_dict(), path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_other_model, ["nothing in", "conv1.weight", "encoder.weight"]),
        (_whole_model, ["save the state_dict"]),
        (_not_finite, ["conv1.weight", "not finite"]),
        (_cut_short, ["cannot read"]),
        (lambda path: torch.save([1, 2], path), ["no tensors"]),
        (lambda path: None, ["there is no file"]),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    write: Callable[[Path], None], words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(ConfigError) as error:
        load_backbone_weights(tiny_backbone(), "resnet50", str(path))
    for word in [*words, str(path), "network.weights"]:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1"])
def test_offline_a_torchvision_name_says_where_to_put_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError) as error:
        load_backbone_weights(tiny_backbone(), "resnet50", name)
    for word in ("https://", "no network", str(tmp_path / "checkpoints"), "network.weights"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "name", "words"),
    [
        ("resnet50", "IMAGENET1K_V9", ["IMAGENET1K_V2", "DEFAULT", ".safetensors"]),
        ("resnet50", "VGG16_Weights.IMAGENET1K_V1", ["for resnet50"]),
        ("vgg16", "IMAGENET1K_FEATURES", ["allowed are IMAGENET1K_V1, DEFAULT"]),  # other inputs
    ],
)
def test_an_unknown_torchvision_name_lists_the_known_ones(
    architecture: str, name: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        load_backbone_weights(tiny_backbone(), architecture, name)
    for word in words:
        assert word in str(error.value)


def test_weights_are_not_read_if_a_checkpoint_follows() -> None:
    config = NetworkConfig(name="pspnet", backbone="vgg16", weights="gone.pth")
    build_network(config, CLASSES, pretrained=False)
    with pytest.raises(ConfigError, match=r"gone\.pth"):
        build_network(config, CLASSES)
