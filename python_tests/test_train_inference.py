"""Windows give the plain result, in memory that does not grow with the height of the picture."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.inference import Inference, class_probabilities, predict, predict_logits
from cac_ext.train.networks import SegmentationNetwork

CLASSES = 5


class Stub(nn.Module):
    stride, out_channels = 4, CLASSES

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, CLASSES, 7, stride=4, padding=3)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(tuple(images.shape[-2:]))
        return self.convolution(images)


@pytest.fixture
def network(seed: int) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return SegmentationNetwork(Stub(), nn.Conv2d(CLASSES, CLASSES, 1)).eval()


def plain_windows(network: SegmentationNetwork, image: Tensor, window: int) -> Tensor:
    """Every window padded to the picture and added, ``[K, H, W]``."""
    height, width = image.shape[-2:]
    if window >= max(height, width):
        return predict_logits(network, image).softmax(dim=1)[0]

    def starts(size: int) -> list[int]:
        steps = -(-max(size - window, 0) // max(1, window * 2 // 3))
        return [round(i * (size - window) / steps) if steps else 0 for i in range(steps + 1)]

    total, counts = 0.0, torch.zeros(height, width)
    for top, left in itertools.product(starts(height), starts(width)):
        crop = image[:, top : top + window, left : left + window]
        probabilities = predict_logits(network, crop).softmax(dim=1)[0]
        margins = [left, width - left - crop.shape[2], top, height - top - crop.shape[1]]
        total = total + F.pad(probabilities, margins)
        counts[top : top + window, left : left + window] += 1
    return total / counts


@pytest.mark.parametrize(
    "size", [(70, 90), (33, 200), (200, 33), (64, 64), (31, 31), (1, 1), (1, 90)]
)
@pytest.mark.parametrize("window", [32, 33, 64])
@torch.no_grad()
def test_windows_give_the_same_bits_as_the_plain_algorithm(
    network: SegmentationNetwork, size: tuple[int, int], window: int
) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    expected = plain_windows(network, image, window)
    inference = Inference(window=window)
    assert torch.equal(class_probabilities(network, image, inference), expected)
    assert torch.equal(predict(network, image, inference), expected.argmax(dim=0))
    assert max(max(shape) for shape in network.encoder.sizes) <= max(window + 3, 4)


@torch.no_grad()
def test_scales_mirrors_and_windows_are_averaged(network: SegmentationNetwork) -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8)
    mirrored = plain_windows(network, image.flip(-1), 32).flip(-1)
    expected = (plain_windows(network, image, 32) + mirrored) / 2
    found = class_probabilities(network, image, Inference(flip=True, window=32))
    torch.testing.assert_close(found, expected)
    both = class_probabilities(network, image, Inference(scales=(1.0, 0.5)))
    torch.testing.assert_close(both.sum(dim=0), torch.ones(60, 80))
    once = class_probabilities(network, image)
    assert not torch.allclose(both, once)


@torch.no_grad()
def test_prediction_by_windows_holds_bands_and_not_the_picture(
    network: SegmentationNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the height takes twice the calls, and no larger tensors."""
    largest: list[int] = []
    original = Tensor.new_zeros

    def watched(self: Tensor, *arguments, **keywords) -> Tensor:
        made = original(self, *arguments, **keywords)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(Tensor, "new_zeros", watched)
    counts = []
    for height in (200, 400):
        network.encoder.sizes.clear()
        image = torch.zeros(3, height, 96, dtype=torch.uint8)
        assert predict(network, image, Inference(window=40)).shape == (height, 96)
        counts.append(len(network.encoder.sizes))
    assert counts[1] <= 2.1 * counts[0]
    assert max(largest) <= CLASSES * 40 * 96
