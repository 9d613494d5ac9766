"""The shipped networks keep the contract: sizes, strides, pooling, parameter groups, options."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks import SegmentationNetwork, build_network

CLASSES = 5
#: network and backbone -> features, stride, window of the pooling in the unlabelled branch
CONTRACTS = {
    ("deeplabv3plus", "resnet50"): (256, 4, 2),
    ("deeplabv3plus", "resnet101"): (256, 4, 2),
    ("pspnet", "resnet50"): (512, 8, 1),
    ("pspnet", "vgg16"): (512, 8, 1),
    ("pspnet", "vgg16_bn"): (512, 8, 1),
}


def build(name: str, backbone: str) -> SegmentationNetwork:
    return build_network(NetworkConfig(name=name, backbone=backbone), CLASSES)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=CONTRACTS, ids="-".join)
def outline(request: pytest.FixtureRequest):
    """A network on the meta device, its contract, and its backbone's name."""
    with torch.device("meta"):
        return build(*request.param), *CONTRACTS[request.param], request.param[1]


@pytest.fixture(scope="module", params=[("deeplabv3plus", "resnet50"), ("pspnet", "vgg16")])
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    """One network of either kind, with the smaller backbone."""
    return build(*request.param)


@pytest.mark.parametrize("size", [(65, 65), (64, 96), (50, 71), (320, 320)])
def test_features_and_logits_have_the_promised_sizes(outline, size: tuple[int, int]) -> None:
    network, channels, stride, pooling, _ = outline
    images = torch.randn(2, 3, *size, device="meta")
    features = network.features(images)
    pooled = network.pool(features)
    height, width = (-(-pixels // stride) for pixels in size)
    assert features.shape == (2, channels, height, width)
    assert pooled.shape == (2, channels, height // pooling, width // pooling)
    assert network(images).shape == (2, CLASSES, *size)
    assert pooled.shape[-2:] == tuple(network.pooled_grid.size(pixels) for pixels in size)
    assert network.pooled_grid.stride == 8  # of all the paper's networks


def test_each_parameter_is_in_one_group_and_the_backbone_is_slow(outline) -> None:
    network = outline[0]
    groups = {g["name"]: g for g in network.parameter_groups(0.01, 0.1)}
    backbone = {id(p) for p in groups["backbone"]["params"]}
    head = {id(p) for p in groups["head"]["params"]}
    assert not backbone & head
    assert backbone | head == {id(p) for p in network.parameters()}
    assert backbone == {id(p) for p in network.encoder.backbone.parameters()}
    assert groups["backbone"]["learning_rate"] == pytest.approx(0.001)
    assert groups["head"]["learning_rate"] == 0.01


def test_the_backbones_have_the_known_sizes(outline) -> None:
    """Classification networks of torchvision, less what lies behind the last convolution."""
    known = {
        "resnet50": 25_557_032 - 2_049_000,
        "resnet101": 44_549_160 - 2_049_000,
        "vgg16": 138_357_544 - 123_642_856,
        "vgg16_bn": 138_365_992 - 123_642_856,
    }
    backbone = outline[0].encoder.backbone
    assert sum(p.numel() for p in backbone.parameters()) == known[outline[-1]]


def test_no_noise_reaches_the_pseudo_labels(outline) -> None:
    encoder = outline[0].encoder
    assert not [m for m in encoder.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]


def test_features_lie_where_the_grid_says(network, seed: int) -> None:
    """With mirror-symmetric kernels the features of a mirrored image are the mirrored features.

    That holds on sizes on which the grid is symmetric, and only if its offset is right.
    """
    symmetric = copy.deepcopy(network).eval()
    for module in symmetric.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    size = symmetric.grid.fitting_size(64 + seed % 2)
    size = 65 if symmetric.grid.offset == 0 else size  # DeepLabv3+'s inner grid fits 16 k + 1
    assert symmetric.grid.flip_shift(size) == 0
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        features = symmetric.features(image)
        mirrored = symmetric.features(image.flip(-1)).flip(-1)
        shifted = symmetric.features(image.roll(3, -1))
    assert (mirrored - features).norm() <= 1e-4 * features.norm()
    assert (shifted - features).norm() > 1e-2 * features.norm()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_parameter_is_trained_in_either_precision(network, bfloat16: bool) -> None:
    network.train().zero_grad()
    if bfloat16:
        network.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 33, 33)
    if bfloat16:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits = network(images)
        loss = F.cross_entropy(logits, torch.randint(0, CLASSES, (2, 33, 33)))
    loss.backward()
    assert logits.dtype == (torch.bfloat16 if bfloat16 else torch.float32)
    for name, parameter in network.named_parameters():
        assert 0 < parameter.grad.norm() < float("inf"), name


def test_the_network_compiles_as_one_graph(network) -> None:
    network.eval()
    images = torch.randn(1, 3, 33, 50)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), network(images))
    torch.compiler.reset()


def test_a_single_training_image_is_refused_with_the_least_batch(network) -> None:
    image = torch.randn(1, 3, 33, 33)
    with pytest.raises(ValueError, match="at least 2 images a process"):
        network.train()(image)
    assert network.eval()(image).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "deeplabv3plus", "backbone": "vgg16"}, ["backbone", "vgg16", "resnet101"]),
        ({"name": "pspnet", "backbone": "resnet51"}, ["did you mean 'resnet50'"]),
        ({"name": "pspnet", "backbone": "vgg16", "stride_in": "1x1"}, ["stride_in", "vgg16"]),
        ({"name": "small", "weights": "IMAGENET1K_V1"}, ["network.weights", "small"]),
        ({"name": "pspnet", "options": {"bins": 4}}, ["network.options", "bins"]),
        ({"name": "pspnets"}, ["did you mean 'pspnet'", "deeplabv3plus"]),
    ],
)
def test_settings_that_do_not_suit_the_network_are_named(changes: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build_network(replace(NetworkConfig(), **changes), CLASSES)
    for word in words:
        assert word in str(error.value)


class _Coordinates(nn.Module):
    """An encoder whose features are the coordinates of their center pixels."""

    out_channels = 2

    def __init__(self, stride: int, grid_offset: float) -> None:
        super().__init__()
        self.stride, self.grid_offset = stride, grid_offset

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        axes = [
            self.grid_offset + self.stride * torch.arange(float(-(-pixels // self.stride)))
            for pixels in images.shape[-2:]
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].repeat(len(images), 1, 1, 1)


@pytest.mark.parametrize(("stride", "offset"), [(4, 0.0), (8, 0.0), (8, 3.5), (4, 1.5), (8, 7.5)])
@pytest.mark.parametrize("size", [(64, 65), (50, 71), (7, 9)])
def test_logits_stay_where_their_features_lie(
    stride: int, offset: float, size: tuple[int, int]
) -> None:
    network = SegmentationNetwork(_Coordinates(stride, offset), nn.Identity(), dropout=0)
    logits = network(torch.zeros(1, 3, *size))
    for axis, pixels in enumerate(size):
        count = -(-pixels // stride)
        last = offset + stride * (count - 1)
        expected = torch.arange(float(pixels)).clamp(offset, last)  # the edge holds beyond
        actual = logits[0, axis].movedim(axis, 0)
        torch.testing.assert_close(actual, expected[:, None].expand_as(actual), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["small", "deeplabv3plus", "pspnet"])
def test_features_are_the_decoded_maps(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = build_network(NetworkConfig(name=name), CLASSES).eval()
    images = torch.randn(2, 3, 65, 49)
    features = network.features(images)
    assert torch.equal(network.decode(network.maps(images)), features)
    assert torch.equal(network.classify(features, images.shape[-2:]), network(images))
    assert "features" not in network.maps(images)


def test_an_encoder_in_one_part_has_its_features_as_its_only_map(seed: int) -> None:
    torch.manual_seed(seed)
    encoder = nn.Conv2d(3, 4, 3, padding=1)
    encoder.stride = 1
    network = SegmentationNetwork(encoder, nn.Conv2d(4, CLASSES, 1)).eval()
    images = torch.randn(2, 3, 9, 8)
    maps = network.maps(images)
    assert list(maps) == ["features"]
    assert torch.equal(network.decode(maps), network.features(images))
