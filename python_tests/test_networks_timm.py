"""Backbones of timm: features on a known grid, timm's own values, weights, clear errors."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import assert_same_run
from tiny_run import TINY_RUN
from torch import Tensor, nn

from cac_ext.train.batch_streams import BatchStreams
from cac_ext.train.config import NetworkConfig, load
from cac_ext.train.data.augment import normalize
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.networks.backbones import build_backbone
from cac_ext.train.runs.folder import load_run

CLASSES = 5
LITE = "tf_efficientnet_lite0"
#: backbone -> stride of the "high" map in DeepLabv3+ and in PSPNet, offset of the first low feature
LAYOUTS = {
    "resnet18": (16, 8, 0.0),
    LITE: (16, 8, 0.0),
    "repvit_m0_9": (32, 32, 0.0),  # not dilated by timm
    "test_convnext": (32, 32, 1.5),  # patches
}

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


def make_backbone(name: str, weights: str | None = None, output_stride: int = 16) -> Any:
    config = NetworkConfig(name="deeplabv3plus", backbone=f"timm/{name}", weights=weights)
    return build_backbone(config, (), output_stride)


def make_network(name: str, backbone: str) -> SegmentationNetwork:
    return build_network(NetworkConfig(name=name, backbone=f"timm/{backbone}"), CLASSES)


@pytest.mark.parametrize("backbone", LAYOUTS)
@pytest.mark.parametrize("size", [(65, 65), (64, 96), (50, 71)])
def test_features_and_logits_have_the_promised_sizes(
    timm: Any, backbone: str, size: tuple[int, int]
) -> None:
    *strides, offset = LAYOUTS[backbone]
    for name, high in zip(("deeplabv3plus", "pspnet"), strides, strict=True):
        network = make_network(name, backbone).eval()
        stride = 4 if name == "deeplabv3plus" else high
        assert network.encoder.backbone.grids["high"].stride == high
        assert network.encoder.backbone.grids["low"].offset == offset
        assert network.grid.stride == stride
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            features = network.features(images)  # checks its size itself
            assert features.shape[-2:] == tuple(-(-pixels // stride) for pixels in size)
            assert network(images).shape == (1, CLASSES, *size)


@pytest.mark.parametrize("backbone", LAYOUTS)
@pytest.mark.parametrize("name", ["deeplabv3plus", "pspnet"])
def test_features_lie_where_the_grid_says(timm: Any, name: str, backbone: str, seed: int) -> None:
    """With mirror-symmetric kernels the features of a mirrored image are the mirrored features.

    That holds on sizes on which all grids are symmetric, and only if their offsets are right.
    """
    torch.manual_seed(seed)
    network = make_network(name, backbone).double().eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    size = 65 if network.grid.offset == 0 else 64
    assert network.grid.flip_shift(size) == 0
    image = torch.randn(1, 3, size, size, dtype=torch.double)
    with torch.no_grad():
        features = network.features(image)
        mirrored = network.features(image.flip(-1)).flip(-1)
        shifted = network.features(image.roll(2, -1))
    assert shifted.norm() > 0
    assert (mirrored - features).norm() <= 1e-6 * (shifted - features).norm()


def own_maps(timm: Any, backbone: nn.Module, name: str, images: Tensor, **more: Any) -> Any:
    """Timm's own maps, with the same weights."""
    model = timm.create_model(name, features_only=True, **more).to(images.dtype)
    model.load_state_dict(backbone.model.state_dict())
    return model.eval()(images)


@torch.no_grad()
def test_values_are_those_of_timm_with_timm_s_normalization(timm: Any, seed: int) -> None:
    torch.manual_seed(seed)
    image = torch.randint(0, 256, (3, 65, 97), dtype=torch.uint8)  # 32 k + 1
    for name, own in (("resnet18", False), (LITE, True)):
        backbone, origin = make_backbone(name)
        assert ("deviation" in origin) == own == backbone.has_own_normalization
        mean, std = ((0.5,) * 3,) * 2 if own else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        own_input = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
            :, None, None
        ]
        expected = own_maps(timm, backbone, name, own_input[None], output_stride=16)
        found = backbone.eval()(normalize(image)[None])
        torch.testing.assert_close(found["high"], expected[-1], rtol=1e-3, atol=1e-4)
        (low,) = [x for x in expected if x.shape[1:] == found["low"].shape[1:]][-1:]
        torch.testing.assert_close(found["low"], low, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_tensorflow_s_padding_is_the_same_network_on_a_shifted_image(timm: Any, seed: int) -> None:
    """TensorFlow centers features on pixel ``stride - 1`` of an even image, here on pixel 0."""
    torch.manual_seed(seed)
    backbone = make_backbone(LITE)[0].double().eval()
    image = torch.randn(1, 3, 256, 256, dtype=torch.double)
    input_of_timm = backbone.shift + backbone.scale * image
    theirs = own_maps(timm, backbone, LITE, input_of_timm)[1]  # stride 4
    ours = backbone(image.roll((-3, -3), (-2, -1)))["low"]
    middle = (..., slice(28, 36), slice(28, 36))
    torch.testing.assert_close(ours[middle], theirs[middle])
    assert not torch.allclose(backbone(image)["low"][middle], theirs[middle], rtol=0.01)


def randomized(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_with_timm_s_names_fits(timm: Any, name: str, tmp_path: Path) -> None:
    state = randomized(timm.create_model(name))
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "w.pth")
    backbone, origin = make_backbone(name, str(tmp_path / "w.pth"))
    floating = [x for x in backbone.model.state_dict().values() if x.is_floating_point()]
    assert f"{len(floating)} of {len(floating)} tensors" in origin
    given = {float(tensor.double().sum()) for tensor in state.values()}
    assert all(float(tensor.double().sum()) in given for tensor in floating)


def test_the_report_names_what_is_missing_and_what_is_not_used(timm: Any, tmp_path: Path) -> None:
    state = randomized(timm.create_model("test_convnext"))
    del state["stages.1.blocks.0.conv_dw.weight"]
    torch.save({**state, "extra.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="only a part") as caught:
        make_backbone("test_convnext", str(tmp_path / "w.pth"))
    text = str(caught[0].message)
    assert "missing: stages.1.blocks.0.conv_dw.weight" in text
    assert "extra.weight" in text.partition("not used")[2]


def efficientnet_pytorch_names(model: nn.Module) -> dict[str, str]:
    """Timm's names -> EfficientNet-PyTorch's, by the order of the layers in both."""
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    names["classifier"] = "_fc"
    blocks = [f"{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    for index, place in enumerate(blocks):
        layers = [
            name
            for name, module in model.get_submodule(f"blocks.{place}").named_children()
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
        ]
        theirs = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        theirs = ["_expand_conv", "_bn0", *theirs] if len(layers) == 6 else theirs
        for ours, their in zip(layers, theirs, strict=True):
            names[f"blocks.{place}.{ours}"] = f"_blocks.{index}.{their}"
    return names


def test_a_file_of_efficientnet_pytorch_fits_the_network_from_tensorflow(
    timm: Any, tmp_path: Path
) -> None:
    model = timm.create_model(LITE)
    state, names = randomized(model), efficientnet_pytorch_names(model)
    theirs = {
        f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": x
        for name, x in state.items()
    }
    path = str(tmp_path / "lite.pth")
    torch.save(theirs, path)
    backbone, origin = make_backbone(LITE, path)
    assert "names of EfficientNet-PyTorch" in origin
    assert "missing" not in origin
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    with pytest.raises(ConfigError, match=r"timm/tf_efficientnet_"):
        make_backbone("efficientnet_lite0", path)  # other eps, other input


@pytest.mark.parametrize(
    ("backbone", "weights", "words"),
    [
        ("resnet5", None, ["has no network 'resnet5'", "did you mean 'resnet50'"]),
        ("hf-hub:timm/resnet18", None, ["has no network"]),
        ("vit_tiny_patch16_224", None, ["strides 16, 16, 16", "needs stride 4"]),
        ("swin_tiny_patch4_window7_224", None, ["takes no image of 65 x 65 pixels"]),
        ("densenet121", None, ["17 and 2 features", "is not known"]),
        ("resnet50", "a1_in1", ["has no weights 'a1_in1'", "'a1_in1k'", "pretrained"]),
        ("resnet50", "gone.pth", ["there is no file gone.pth"]),
    ],
)
def test_what_cannot_be_used_is_named(
    timm: Any, backbone: str, weights: str | None, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        make_backbone(backbone, weights)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "weights", "tag"),
    [
        ("resnet50", "pretrained", "a1_in1k"),
        ("resnet50", "tv_in1k", "tv_in1k"),
        ("resnet50.tv2_in1k", "pretrained", "tv2_in1k"),
    ],
)
def test_a_tag_is_asked_of_timm_and_offline_a_file_is_offered(
    timm: Any, backbone: str, weights: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        if pretrained:
            raise OSError(f"no network for {name}")
        return create(name, **more)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError) as error:
        make_backbone(backbone, weights)
    assert f"no network for resnet50.{tag}" in str(error.value)
    assert "give the file as network.weights" in str(error.value)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'cac_ext\[timm\]'"):
        make_backbone("resnet18")


def test_a_training_resumes_bit_for_bit_and_keeps_the_normalization(
    timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    network = ["network.name=deeplabv3plus", f"network.backbone=timm/{LITE}", f"seed={seed}"]
    config = load("synthetic", [*TINY_RUN, *network, "method.confidence_threshold=0.1"])
    train(config, tmp_path / "whole", progress=False)
    next_batches = BatchStreams.next

    def failing(streams: BatchStreams, iteration: int) -> Any:
        if iteration == 3:
            raise OSError("a disk is gone")
        return next_batches(streams, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStreams, "next", failing)
        with pytest.raises(OSError, match="a disk"):
            train(config, tmp_path / "broken", progress=False)
    train(config, tmp_path / "broken", progress=False, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    backbone = load_run(tmp_path / "whole").network.encoder.backbone
    assert torch.equal(backbone.scale, torch.tensor([0.229, 0.224, 0.225])[:, None, None] / 0.5)


def test_another_tag_s_normalization_is_read_from_the_checkpoint(timm: Any) -> None:
    backbone = make_backbone("test_resnet")[0]
    trained = copy.deepcopy(backbone)
    trained.scale.mul_(2)
    backbone.load_state_dict(trained.state_dict())
    assert torch.equal(backbone.scale, trained.scale)
