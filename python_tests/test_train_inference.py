"""Windows give the plain result, in memory that does not grow with the height of the picture."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train import inference
from cac_ext.train.data import rescale
from cac_ext.train.errors import DataError
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
    options = Inference(window=window)
    assert torch.equal(class_probabilities(network, image, options), expected)
    assert torch.equal(predict(network, image, options), expected.argmax(dim=0))
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
def test_prediction_by_windows_keeps_shared_rows_and_not_the_picture(
    network: SegmentationNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the height takes twice the calls, and no larger tensors."""
    largest: list[int] = []
    original = Tensor.new_empty

    def watched(self: Tensor, *arguments, **keywords) -> Tensor:
        made = original(self, *arguments, **keywords)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(Tensor, "new_empty", watched)
    counts = []
    for height in (200, 400):
        network.encoder.sizes.clear()
        image = torch.zeros(3, height, 96, dtype=torch.uint8)
        assert predict(network, image, Inference(window=40)).shape == (height, 96)
        counts.append(len(network.encoder.sizes))
    assert counts[1] <= 2.1 * counts[0]
    assert max(largest) <= CLASSES * 20 * 96  # of 40 rows, two rows of windows share less than half


def made_smaller(monkeypatch: pytest.MonkeyPatch, probabilities: int) -> None:
    """One MiB of window memory holds so many probabilities of each class."""
    monkeypatch.setattr(inference, "_BYTES", 2**20 // (CLASSES * probabilities))


@pytest.mark.parametrize(("probabilities", "most_calls"), [(10_000, 1.0), (1500, 1.35), (1, 2.01)])
@torch.no_grad()
def test_less_memory_gives_the_same_bits_and_computes_some_windows_twice(
    network: SegmentationNetwork,
    probabilities: int,
    most_calls: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = torch.randint(0, 256, (3, 90, 400), dtype=torch.uint8)
    expected = plain_windows(network, image, 32).argmax(dim=0)
    plain_calls = len(network.encoder.sizes)
    network.encoder.sizes.clear()
    made_smaller(monkeypatch, probabilities)
    found = predict(network, image, Inference(window=32, window_memory=1), dtype=torch.uint8)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), expected)
    assert len(network.encoder.sizes) <= most_calls * plain_calls


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (Inference(flip=True, window=32, window_memory=1), 0.0),
        # Pillow scales a part of an image otherwise than torchvision the whole, by a gray level.
        (Inference(scales=(0.6, 1.0, 1.7), flip=True, window=33, window_memory=1), 0.02),
    ],
)
@torch.no_grad()
def test_tiles_of_several_views_are_those_of_the_whole_picture(
    network: SegmentationNetwork,
    options: Inference,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    expected = class_probabilities(network, image, options)
    made_smaller(monkeypatch, 4 * 50 * 50)  # tiles of 50 x 50
    monkeypatch.setattr(rescale, "part_pays", lambda whole, part: True)  # only parts are scaled
    blocks = list(inference._finished_blocks(network, image, options))
    assert len(blocks) == 2 * 3
    found = torch.full_like(expected, torch.nan)
    for top, left, part in blocks:
        place = found[:, top : top + part.shape[1], left : left + part.shape[2]]
        assert place.isnan().all()  # each pixel once
        place.copy_(part)
    assert (found - expected).abs().max() <= tolerance
    ids = predict(network, image, options)
    assert (ids != expected.argmax(dim=0)).float().mean() <= tolerance


@torch.no_grad()
def test_interpolated_parts_are_those_of_torch(seed: int) -> None:
    torch.manual_seed(seed)
    for scaled, size in ((30, 90), (90, 30), (47, 100), (100, 47), (1, 9), (9, 1)):
        probabilities = torch.rand(2, scaled, 3)
        expected = F.interpolate(probabilities[None], (size, 3), mode="bilinear")[0]
        for start in range(0, size, 7):
            span = range(start, min(start + 7, size))
            sources = inference._sources(span, size, scaled)
            part = probabilities[:, sources.start : sources.stop]
            found = inference._interpolated(part, 1, span, size, scaled)
            torch.testing.assert_close(found, expected[:, start : span.stop], rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 32])
@torch.no_grad()
def test_half_precision_computes_the_network_and_sums_in_float32(
    network: SegmentationNetwork, window: int | None
) -> None:
    types: list[torch.dtype] = []
    layouts: list[bool] = []

    def watch(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        types.append(output.dtype)
        layouts.append(arguments[0].is_contiguous(memory_format=torch.channels_last))

    network.encoder.register_forward_hook(watch)
    image = torch.randint(0, 256, (3, 50, 60), dtype=torch.uint8)
    exact = class_probabilities(network, image, Inference(window=window))
    assert set(types) == {torch.float32}
    types.clear()
    layouts.clear()
    half = class_probabilities(network, image, Inference(window=window, precision="bf16"))
    assert set(types) == {torch.bfloat16}
    assert all(layouts)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.02
    assert str(Inference(window=window, precision="bf16")).endswith(", bf16")


def test_equal_scores_are_of_the_first_class(network: SegmentationNetwork) -> None:
    for parameter in network.parameters():
        parameter.data.zero_()
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    for window in (None, 16):
        assert not predict(network, image, Inference(window=window)).any()


@pytest.mark.parametrize("window", [None, 32])
def test_lack_of_memory_is_an_error_that_says_what_to_do(
    network: SegmentationNetwork, window: int | None
) -> None:
    texts = ["DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."]
    for error in (RuntimeError(*texts), torch.OutOfMemoryError("CUDA out of memory")):

        def fail(*arguments: object, error: Exception = error) -> None:
            raise error

        with network.encoder.register_forward_pre_hook(fail):
            image = torch.zeros(3, 40, 60, dtype=torch.uint8)
            size = "60 x 40" if window is None else "32 x 32"
            with pytest.raises(DataError, match=rf"cpu .* {size} pixels .*--window 513"):
                predict(network, image, Inference(window=window))

    def other(*arguments: object) -> None:
        raise RuntimeError("something else")

    with (
        network.encoder.register_forward_pre_hook(other),
        pytest.raises(RuntimeError, match="something else"),
    ):
        predict(network, image, Inference(window=window))
