"""Two crops of one image, placed so that their features lie on a common grid.

The shift between the crops is a multiple of the feature stride. It is drawn from all shifts that
fit into the image and have an IoU in the given range; nothing is tried and rejected. A shift is as
likely as it is among all placements of two crops that satisfy the same conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cac_ext.train.errors import ConfigError
from cac_ext.train.networks.grid import FeatureGrid


@dataclass(frozen=True)
class Crop:
    """The rectangle ``image[top : top + S, left : left + S]``, mirrored if ``flip``."""

    top: int
    left: int
    flip: bool


@dataclass(frozen=True)
class CropPair:
    """Two crops and the positions that both show.

    ``overlap1[i]`` and ``overlap2[i]`` are the positions of the same pixel in the ``[h, w]``
    features of crop 1 and crop 2, row by row, mirrored if the crop is.
    """

    crop1: Crop
    crop2: Crop
    overlap1: Tensor  # [L] int64
    overlap2: Tensor  # [L] int64


class CropPairSampler:
    """Draws crop pairs for one crop size, feature grid and IoU range.

    Args:
        crop_size: S, pixels a side.
        grid: of the features that will be compared.
        iou_range: smallest and largest intersection over union of the two crops, in pixels.
            If mirroring moves the feature grid (`FeatureGrid.flip_shift`), a mirrored crop is
            then moved by as many pixels (less than a stride) so that the grids agree.
        flip: probability of mirroring, independent in the two crops.

    Raises:
        ConfigError: no shift by whole strides has an IoU in the range, or a crop has no feature.
    """

    def __init__(
        self, crop_size: int, grid: FeatureGrid, iou_range: tuple[float, float], flip: float
    ) -> None:
        if grid.size(crop_size) < 1:
            raise ConfigError(
                f"augment.crop_size is {crop_size}, but the compared features are {grid.stride} "
                "pixels apart: a crop must be at least that large"
            )
        self.crop_size = crop_size
        self.grid = grid
        self.iou_range = iou_range
        self.flip = flip
        self._flip_shift = grid.flip_shift(crop_size)

        steps = torch.arange(-(grid.size(crop_size) - 1), grid.size(crop_size))  # in strides
        overlap = crop_size - grid.stride * steps.abs()  # [s] pixels along one side
        intersection = overlap[:, None] * overlap[None, :]  # [s, s]
        iou = intersection / (2 * crop_size**2 - intersection).double()
        low, high = iou_range
        feasible = (iou >= low - 1e-9) & (iou <= high + 1e-9)
        if not feasible.any():
            reachable = sorted({round(value, 3) for value in iou.flatten().tolist()})
            near = min(reachable, key=lambda value: min(abs(value - low), abs(value - high)))
            raise ConfigError(
                f"method.iou_range is [{low}, {high}], but two crops of {crop_size} pixels, "
                f"shifted by multiples of {grid.stride} pixels, cannot have such an IoU; the "
                f"nearest possible one is {near}"
            )
        rows, columns = feasible.nonzero().T
        self._shifts = torch.stack([steps[rows], steps[columns]], dim=1)  # [s, 2] (dy, dx)

    @cached_property
    def min_size(self) -> int:
        """The image side that at least one shift fits into; smaller images are padded."""
        least = int(self._shifts.abs().amax(dim=1).min())  # strides
        return self.crop_size + self.grid.stride * least + abs(self._flip_shift)

    def __call__(self, height: int, width: int) -> CropPair:
        """A crop pair of an image of at least `min_size` x `min_size` pixels."""
        flip1, flip2 = (torch.rand(2) < self.flip).tolist()
        moved1, moved2 = self._flip_shift * flip1, self._flip_shift * flip2
        # Range of nominal left edges with which the crops, moved by -moved, stay inside the image.
        left_min, left_max = max(0, moved1, moved2), min(0, moved1, moved2)
        room_y = height - self.crop_size
        room_x = width - self.crop_size + left_max - left_min

        pixels = self._shifts * self.grid.stride  # [s, 2]
        free_y = room_y - pixels[:, 0].abs() + 1  # [s] placements of the pair
        free_x = room_x - pixels[:, 1].abs() + 1
        placements = free_y.clamp(min=0) * free_x.clamp(min=0)
        if not placements.any():
            raise ValueError(
                f"two crops of {self.crop_size} pixels with an IoU in {list(self.iou_range)} do "
                f"not fit into an image of {height} x {width} pixels: pad it to {self.min_size} "
                "pixels a side"
            )
        drawn = int(torch.multinomial(placements.double(), 1))
        steps_y, steps_x = self._shifts[drawn].tolist()
        shift_y, shift_x = pixels[drawn].tolist()
        top = int(torch.randint(int(free_y[drawn]), ())) + max(0, -shift_y)
        left = int(torch.randint(int(free_x[drawn]), ())) + max(0, -shift_x) + left_min

        crop1 = Crop(top, left - moved1, flip1)
        crop2 = Crop(top + shift_y, left + shift_x - moved2, flip2)
        return CropPair(crop1, crop2, *self._overlap(steps_y, steps_x, flip1, flip2))

    def _overlap(
        self, steps_y: int, steps_x: int, flip1: bool, flip2: bool
    ) -> tuple[Tensor, Tensor]:
        """Positions of the overlap in both crops, crop 2 being shifted by so many strides."""
        side = self.grid.size(self.crop_size)
        rows1 = torch.arange(max(0, steps_y), side + min(0, steps_y))
        columns1 = torch.arange(max(0, steps_x), side + min(0, steps_x))
        return (
            _positions(rows1, columns1, side, flip1),
            _positions(rows1 - steps_y, columns1 - steps_x, side, flip2),
        )


def _positions(rows: Tensor, columns: Tensor, side: int, flip: bool) -> Tensor:
    """Flat positions ``[L]`` in a ``[side, side]`` map, whose columns run backwards if ``flip``."""
    columns = side - 1 - columns if flip else columns
    return (rows[:, None] * side + columns[None, :]).flatten()
