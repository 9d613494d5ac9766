"""The built-in data: small scenes, drawn on the fly, in which context misleads.

A scene has two or three surroundings (grass, sand, water, ...), all of the class "background", and
a few objects. An object's class is its pattern (stripes, checks, dots, ...); its color and outline
carry no information. In labelled images each kind of object lies in its matching surroundings, as
cows lie on grass; in unlabelled and validation images it lies anywhere, often across a border. A
network that learns from the few labelled images can recognize the class by the surroundings, which
is easier than by the pattern, and will be wrong about the other images: the bias that context-aware
consistency should undo.

Image ``i`` of a split is a function of (seed, split, i) alone. Nothing is read or written.
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision import tv_tensors

from cac_ext.train.config import DataConfig
from cac_ext.train.data.contract import DatasetSplits, Sample, SegmentationDataset
from cac_ext.train.data.datasets.split import parse_ratio
from cac_ext.train.errors import ConfigError

#: Class 0 and the patterns, in the order of their matching surroundings.
CLASS_NAMES = ("background", "rows", "columns", "checks", "dots", "rings", "plain")
SURROUNDINGS = ("grass", "sand", "water", "snow", "brick", "asphalt")
PALETTE = (
    (38, 38, 44),
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
)

_COLORS = np.array(  # RGB of the surroundings
    [
        (0.33, 0.52, 0.22),
        (0.80, 0.70, 0.48),
        (0.20, 0.42, 0.62),
        (0.88, 0.91, 0.95),
        (0.58, 0.30, 0.24),
        (0.36, 0.36, 0.38),
    ]
)
Array = npt.NDArray[Any]

_OBJECTS = (2, 4)  # least and most per image
_RADIUS = (0.11, 0.19)  # of an object, relative to the image side
_PERIOD = (5.0, 7.0)  # of a pattern, pixels
_CONTRAST = (0.10, 0.25)  # of a pattern, in lightness


class SyntheticDataset(SegmentationDataset):
    """``count`` scenes of one split.

    Args:
        split: "labelled", "unlabelled" or "validation".
        count: number of images.
        image_size: pixels a side.
        seed: of the images.
        matching: whether objects lie in their matching surroundings.
        with_masks: whether samples have a mask.
    """

    def __init__(
        self,
        split: str,
        count: int,
        image_size: int,
        seed: int,
        *,
        matching: bool,
        with_masks: bool,
    ) -> None:
        self.split = split
        self.count = count
        self.image_size = image_size
        self.seed = seed
        self.matching = matching
        self.with_masks = with_masks
        self._drawn: dict[int, tuple[Array, Array]] = {}  # index -> image, mask; drawn once

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        image, mask = self._scene(index)
        sample: Sample = {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous()),
            "name": f"{self.split}_{index:04d}",
        }
        if self.with_masks:
            sample["mask"] = tv_tensors.Mask(torch.from_numpy(mask))
        return sample

    def known_mask(self, index: int) -> torch.Tensor:
        """The mask of an image, even if samples have none, ``[S, S]`` uint8."""
        return torch.from_numpy(self._scene(index)[1])

    def _scene(self, index: int) -> tuple[Array, Array]:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.split} image {index} of {self.count}")
        if index not in self._drawn:
            rng = np.random.default_rng([self.seed, zlib.crc32(self.split.encode()), index])
            image, mask, _ = draw_scene(rng, self.image_size, self.matching)
            self._drawn[index] = image, mask
        return self._drawn[index]


def build(config: DataConfig) -> DatasetSplits:
    """The three splits of the built-in data."""
    options = config.synthetic
    if options.image_size < 32:
        raise ConfigError(
            f"data.synthetic.image_size must be at least 32, but is {options.image_size}"
        )

    labelled, unlabelled = options.labelled, options.unlabelled
    if config.labelled_ratio is not None:
        images = labelled + unlabelled
        labelled = math.ceil(parse_ratio(config.labelled_ratio) * images)
        unlabelled = images - labelled

    def split(name: str, count: int, *, matching: bool, with_masks: bool) -> SyntheticDataset:
        return SyntheticDataset(
            name,
            count,
            options.image_size,
            options.seed,
            matching=matching,
            with_masks=with_masks,
        )

    return DatasetSplits(
        labelled=split("labelled", labelled, matching=True, with_masks=True),
        unlabelled=split("unlabelled", unlabelled, matching=False, with_masks=False)
        if unlabelled
        else None,
        validation=split("validation", options.validation, matching=False, with_masks=True),
        class_names=CLASS_NAMES,
        ignore_index=config.ignore_index,
        palette=PALETTE,
        background_class=0,
    )


def draw_scene(rng: np.random.Generator, size: int, matching: bool) -> tuple[Array, Array, Array]:
    """One scene: image ``[S, S, 3]`` uint8, mask ``[S, S]`` uint8, surroundings ``[S, S]``.

    The surroundings are the index of their kind at each pixel, also beneath objects.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float64)
    kinds = rng.permutation(len(SURROUNDINGS))[: rng.integers(2, 4)]
    fields = np.stack([_smooth_noise(rng, size, 4) for _ in kinds])  # [R, S, S]
    region = fields.argmax(axis=0)  # [S, S]
    surroundings = kinds[region]

    image = np.zeros((size, size, 3))
    for kind in kinds:
        where = surroundings == kind
        image[where] = _draw_surroundings(rng, kind, y, x)[where]

    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(_OBJECTS[0], _OBJECTS[1] + 1)):
        radius = rng.uniform(*_RADIUS) * size
        if matching:
            kind = rng.choice(kinds)
            while not (surroundings == kind).any():  # others may cover all of the image
                kind = rng.choice(kinds)
            center = _inside(rng, surroundings == kind, radius)
            class_id = int(kind) + 1
        else:
            center = rng.uniform(radius * 0.6, size - 1 - radius * 0.6, 2)
            class_id = int(rng.integers(1, len(CLASS_NAMES)))
        _draw_object(rng, image, mask, class_id, center, radius, y, x)

    image += rng.normal(0, 0.02, image.shape)
    image *= rng.uniform(0.85, 1.1)
    return (image.clip(0, 1) * 255).astype(np.uint8), mask, surroundings


def _draw_surroundings(rng: np.random.Generator, kind: int, y: Array, x: Array) -> Array:
    """A whole image of one kind of surroundings, ``[S, S, 3]``."""
    size = len(y)
    name = SURROUNDINGS[kind]
    grain = rng.normal(0, 1, (size, size))
    if name == "grass":
        lightness = 0.06 * (grain + np.roll(grain, 1, 0) + np.roll(grain, 2, 0))
    elif name == "sand":
        lightness = 0.04 * grain + 0.05 * _smooth_noise(rng, size, 12)
    elif name == "water":
        phase = 3 * _smooth_noise(rng, size, 5)
        lightness = 0.05 * np.sin(2 * np.pi * y / rng.uniform(8, 12) + phase)
    elif name == "snow":
        lightness = 0.05 * _smooth_noise(rng, size, 6)
    elif name == "brick":
        row = np.floor(y / 6)
        mortar = (y % 6 < 1) | ((x + 5 * (row % 2)) % 10 < 1)
        lightness = np.where(mortar, 0.12, 0.03 * grain)
    else:  # asphalt
        lightness = 0.05 * grain + 0.15 * (rng.random((size, size)) < 0.02)
    lightness = lightness + 0.05 * _smooth_noise(rng, size, 3)
    color = _COLORS[kind] + rng.normal(0, 0.03, 3)
    return color + lightness[..., None]


def _draw_object(
    rng: np.random.Generator,
    image: Array,
    mask: Array,
    class_id: int,
    center: Array,
    radius: float,
    y: Array,
    x: Array,
) -> None:
    """Draws an object of class ``class_id`` over image and mask, in place."""
    dy, dx = y - center[0], x - center[1]
    distance, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    wobble = sum(
        rng.uniform(0, 0.10) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
    )
    outline = radius * (1 + wobble)  # [S, S] the object's edge in the direction of each pixel
    inside = distance < outline

    name = CLASS_NAMES[class_id]
    wave_y, wave_x, wave_r = (
        np.sin(2 * np.pi * (axis / rng.uniform(*_PERIOD) + rng.random()))
        for axis in (y, x, distance)
    )
    pattern = {
        "rows": np.sign(wave_y),
        "columns": np.sign(wave_x),
        "checks": np.sign(wave_y * wave_x),
        "dots": np.where((wave_y > 0) & (wave_x > 0), 1.7, -0.6),
        "rings": np.sign(wave_r),
        "plain": np.zeros_like(y),
    }[name]
    color = rng.uniform(0.15, 0.85, 3)
    shade = 0.08 * (dx + dy) / radius * rng.choice([-1, 1])
    body = color + (rng.uniform(*_CONTRAST) * pattern - shade)[..., None]
    body[distance > outline - 1.2] *= 0.55  # a dark rim
    image[inside] = body[inside]
    mask[inside] = class_id


def _inside(rng: np.random.Generator, region: Array, radius: float) -> Array:
    """Of ten places (y, x) drawn from the region, the one with most of the region around it."""
    candidates = np.argwhere(region)
    drawn = candidates[rng.integers(len(candidates), size=10)]
    reach = int(np.ceil(1.4 * radius))
    padded = np.pad(region, reach, constant_values=False)
    shares = [padded[r : r + 2 * reach + 1, c : c + 2 * reach + 1].mean() for r, c in drawn]
    return drawn[int(np.argmax(shares))].astype(np.float64)


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Noise of about unit variance that varies over a ``cells``-th of the image, ``[S, S]``."""
    interpolation = _interpolation(size, cells)
    return interpolation @ rng.normal(0, 1, (cells + 1, cells + 1)) @ interpolation.T


@lru_cache
def _interpolation(size: int, cells: int) -> Array:
    """Matrix ``[size, cells + 1]`` that interpolates ``cells + 1`` knots smoothly."""
    place = np.linspace(0, cells, size)
    distance = np.abs(place[:, None] - np.arange(cells + 1))
    return np.where(distance < 1, (1 + np.cos(np.pi * distance.clip(0, 1))) / 2, 0)
