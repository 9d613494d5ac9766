"""Predictions for an image of any size: in one pass, at several scales, by windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors

from cac_ext.train.config import Config
from cac_ext.train.data.augment import normalize
from cac_ext.train.data.rescale import Scaled
from cac_ext.train.errors import DataError
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runtime.memory import is_out_of_memory
from cac_ext.train.runtime.precision import Precision, autocast
from cac_ext.train.runtime.progress import Progress
from cac_ext.train.windows import Block, Windows, averaged_blocks

_BYTES = 4  # of a class probability
_PATIENCE = 3  # seconds before a progress bar appears
#: What to do about an image that is too large.
SMALLER_WINDOWS = (
    "let the network see windows, or smaller ones, e.g. evaluation.window=513 (`cac-ext predict`, "
    "`cac-ext evaluate`: --window 513), lower evaluation.window_memory (--window-memory), or take "
    "a device with more memory"
)
#: Tensors of a tile's size that live at once: the sum, the view added to it, and its interpolation.
_TILES = 4


@dataclass(frozen=True)
class Inference:
    """Test-time options. Default: one pass over the whole image at its own size, in float32.

    Attributes:
        scales: factors of the image's size; the class probabilities are averaged.
        flip: average with the probabilities of the mirrored image.
        window: side in pixels of windows that slide over the (scaled) image and overlap by at least
            a third; None for one pass over the whole image.
        window_memory: most MiB that `predict` takes for sums of overlapping windows. Below what the
            whole width needs, some windows are computed twice; below what a single window needs, it
            takes that.
        precision: of the network's arithmetic, as ``run.precision``; probabilities are float32.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    window_memory: int = 1024
    precision: Precision = "fp32"

    def __str__(self) -> str:
        parts = ["scale " + " ".join(f"{scale:g}" for scale in self.scales)]
        parts += ["flip"] * self.flip
        parts += [f"window {self.window}"] if self.window else []
        parts += [self.precision] if self.precision != "fp32" else []
        return ", ".join(parts)

    @property
    def is_single(self) -> bool:
        """Whether the image is seen once, at its own size."""
        return self.scales == (1.0,) and not self.flip


SINGLE_SCALE = Inference()


def configured_inference(config: Config) -> Inference:
    """The test-time options of a run: its windows and its precision."""
    return Inference(
        window=config.evaluation.window,
        window_memory=config.evaluation.window_memory,
        precision=config.run.precision,
    )


@torch.no_grad()
def predict_logits(
    network: SegmentationNetwork, image: Tensor, precision: Precision = "fp32"
) -> Tensor:
    """Logits ``[1, K, H, W]`` float32 of a uint8 image ``[C, H, W]``, on the network's device.

    The image is padded by reflection to a size that fits the feature grid; the logits are cropped.

    Raises:
        DataError: the device has not enough memory for so large an image at once.
    """
    device = _device(network)
    height, width = image.shape[-2:]
    missing_y = network.grid.fitting_size(height) - height
    missing_x = network.grid.fitting_size(width) - width
    mode = "reflect" if missing_y < height and missing_x < width else "replicate"
    with _naming_lack_of_memory(device, height, width):
        batch = normalize(image.to(device), network.normalization)[None]  # [1, C, H, W]
        batch = F.pad(batch, (0, missing_x, 0, missing_y), mode=mode)
        if precision != "fp32":  # half precision is hardly faster in the other layout
            batch = batch.contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            logits = network(batch)
        return logits.float()[..., :height, :width]


def class_probabilities(
    network: SegmentationNetwork, image: Tensor, inference: Inference = SINGLE_SCALE
) -> Tensor:
    """Class probabilities ``[K, H, W]`` of a uint8 image ``[C, H, W]``, on the network's device."""
    height, width = image.shape[-2:]
    return _probabilities(network, image, inference, range(height), range(width))


def predict(
    network: SegmentationNetwork,
    image: Tensor,
    inference: Inference = SINGLE_SCALE,
    *,
    dtype: torch.dtype = torch.int64,
    progress: bool = False,
) -> Tensor:
    """Class of each pixel, ``[C, H, W] uint8 -> [H, W]``.

    With windows, no tensor but the image and the result grows with its height and width: class
    probabilities take at most about ``inference.window_memory``, and a few windows more.

    Args:
        network: in evaluation mode; it decides on which device.
        image: on the CPU.
        inference: test-time options.
        dtype: of the result; see `smallest_dtype`.
        progress: whether to show a bar of the pixels that windows have finished, if they take long.

    Raises:
        DataError: the device has not enough memory.
    """
    if inference.window is None and inference.is_single:
        # Not through softmax, whose rounding makes scores equal.
        return _classes(predict_logits(network, image, inference.precision)[0]).to(dtype)
    device, (height, width) = _device(network), image.shape[-2:]
    ids = torch.empty(height, width, dtype=dtype, device=device)
    bar = Progress(
        total=ids.numel(),
        desc="windows",
        unit="pixel",
        unit_scale=True,
        leave=False,
        delay=_PATIENCE,
        disable=not progress or inference.window is None,
    )
    with bar, _naming_lack_of_memory(device, height, width):
        for top, left, probabilities in _finished_blocks(network, image, inference):
            rows, columns = probabilities.shape[1:]
            ids[top : top + rows, left : left + columns] = _classes(probabilities)
            bar.update(rows * columns)
    return ids


def _classes(scores: Tensor) -> Tensor:
    """The class of the highest score, ``[K, H, W] -> [H, W]`` int64; the first of equal ones."""
    # argmax gives the same and takes five times as long on a CPU.
    return scores.max(dim=0).indices


def smallest_dtype(num_classes: int) -> torch.dtype:
    """The smallest integer type that holds the ids of so many classes."""
    if num_classes <= 1 << 8:
        return torch.uint8
    return torch.int16 if num_classes <= 1 << 15 else torch.int32


def _finished_blocks(
    network: SegmentationNetwork, image: Tensor, inference: Inference
) -> Iterator[Block]:
    """Blocks that cover the image, each pixel once, within ``inference.window_memory``."""
    height, width = image.shape[-2:]
    window = inference.window
    if window is None:
        yield Block(0, 0, class_probabilities(network, image, inference))
        return
    most = inference.window_memory * 2**20 // (_BYTES * _class_count(network))  # probabilities
    if inference.is_single:
        down, across = Windows(height, window), Windows(width, window)
        look = _look(network, image, inference.precision, down, across)
        for columns in across.strips(most // max(1, down.shared)):
            yield from averaged_blocks(look, down, across, range(height), columns)
        return
    tile = max(window, math.isqrt(most // _TILES))
    if height * width <= tile * tile:
        yield Block(0, 0, class_probabilities(network, image, inference))
        return
    for top in range(0, height, tile):
        rows = range(top, min(top + tile, height))
        for left in range(0, width, tile):
            columns = range(left, min(left + tile, width))
            yield Block(top, left, _probabilities(network, image, inference, rows, columns))


def _look(
    network: SegmentationNetwork,
    image: Tensor,
    precision: Precision,
    down: Windows,
    across: Windows,
    above: int = 0,
    before: int = 0,
) -> Callable[[int, int], Tensor]:
    """A function from a window's top and left to its class probabilities, ``[K, h, w]``.

    ``image`` is the whole picture without its first ``above`` rows and ``before`` columns.
    """

    def look(top: int, left: int) -> Tensor:
        y, x = top - above, left - before
        crop = image[:, y : y + down.side, x : x + across.side]
        return predict_logits(network, crop, precision).softmax(dim=1)[0]

    return look


def _class_count(network: SegmentationNetwork) -> int:
    """K, from the classifier's output for features of zeros."""
    features = torch.zeros(1, network.out_channels, 4, 4, device=_device(network))
    with torch.no_grad():
        return network.classifier(features).shape[1]


def _device(network: SegmentationNetwork) -> torch.device:
    return next(network.parameters()).device


@contextmanager
def _naming_lack_of_memory(device: torch.device, height: int, width: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DataError(
            f"{device} has not enough memory to predict {width} x {height} pixels at once: "
            f"{SMALLER_WINDOWS}"
        ) from error


def _probabilities(
    network: SegmentationNetwork, image: Tensor, inference: Inference, rows: range, columns: range
) -> Tensor:
    """Class probabilities of a part of the image, averaged over scales and mirrors.

    ``[K, len(rows), len(columns)]``. At other scales than 1 a part is interpolated by Pillow and
    `_interpolated`, which round otherwise than torch, by which the whole image is.
    """
    height, width = image.shape[-2:]
    whole = len(rows) == height and len(columns) == width
    total: Tensor | None = None
    for scale in inference.scales:
        size = [max(1, round(scale * height)), max(1, round(scale * width))]
        scaled = Scaled((height, width), *size)
        sources = _sources(rows, height, scaled.height), _sources(columns, width, scaled.width)
        for flip in (False, True)[: 1 + inference.flip]:
            found = _view(network, image, inference, scaled, *sources, flip=flip)
            if size != [height, width] and whole:
                found = F.interpolate(found[None], (height, width), mode="bilinear")[0]
            elif size != [height, width]:
                found = _interpolated(found, 1, rows, height, scaled.height)
                found = _interpolated(found, 2, columns, width, scaled.width)
            total = found if total is None else total.add_(found)
    if total is None:
        raise ValueError("Inference.scales is empty: give one scale or more")
    views = len(inference.scales) * (1 + inference.flip)
    return total if views == 1 else total.div_(views)


def _view(
    network: SegmentationNetwork,
    image: Tensor,
    inference: Inference,
    scaled: Scaled,
    rows: range,
    columns: range,
    *,
    flip: bool,
) -> Tensor:
    """Class probabilities of a part of the scaled image, ``[K, len(rows), len(columns)]``.

    With ``flip`` the network sees the mirrored image; the result is mirrored back.
    """
    if flip:  # positions in the mirrored image
        columns = range(scaled.width - columns.stop, scaled.width - columns.start)
    down = Windows(scaled.height, inference.window)
    across = Windows(scaled.width, inference.window)
    seen_rows, seen_columns = down.seen(rows), across.seen(columns)  # only these are scaled
    top, height, width = seen_rows.start, len(seen_rows), len(seen_columns)
    left = scaled.width - seen_columns.stop if flip else seen_columns.start
    part = scaled.part(tv_tensors.Image(image), top, left, height, width).as_subclass(Tensor)
    part = part.flip(-1) if flip else part
    look = _look(network, part, inference.precision, down, across, top, seen_columns.start)
    result: Tensor | None = None
    for block in averaged_blocks(look, down, across, rows, columns):
        found = block.probabilities
        if found.shape[1:] == (len(rows), len(columns)):
            result = found
            break
        if result is None:
            result = found.new_empty(len(found), len(rows), len(columns))
        y, x = block.top - rows.start, block.left - columns.start
        result[:, y : y + found.shape[1], x : x + found.shape[2]] = found
    assert result is not None  # some window sees the part
    return result.flip(-1) if flip else result


def _position(pixel: int, size: int, scaled: int) -> float:
    """Where a pixel's center lies in an image of another size, as in bilinear interpolation."""
    return max(0.0, (pixel + 0.5) * scaled / size - 0.5)


def _sources(span: range, size: int, scaled: int) -> range:
    """The pixels of the scaled image from which a span is interpolated."""
    if size == scaled or len(span) == size:
        return span if size == scaled else range(scaled)
    first = min(int(_position(span.start, size, scaled)), scaled - 1)
    last = int(_position(span.stop - 1, size, scaled))
    return range(first, min(last + 2, scaled))


def _interpolated(x: Tensor, dim: int, span: range, size: int, scaled: int) -> Tensor:
    """Interpolates `_sources` of a span to the span itself, along one dimension."""
    sources = _sources(span, size, scaled)
    places = torch.tensor([_position(pixel, size, scaled) for pixel in span], dtype=torch.float64)
    before = places.long()
    weights = (places - before).to(x)
    shape = [1] * x.ndim
    shape[dim] = len(span)
    last = len(sources) - 1
    first = (before - sources.start).clamp_(max=last).to(x.device)
    low, high = x.index_select(dim, first), x.index_select(dim, (first + 1).clamp_(max=last))
    return low.lerp_(high, weights.view(shape))
