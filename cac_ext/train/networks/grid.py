"""Where an encoder's features lie on the image: the geometry behind crop pairs and flips."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureGrid:
    """Feature ``j`` of a row is centered on pixel ``offset + stride * j``.

    Attributes:
        stride: pixels from one feature to the next.
        offset: pixel of feature 0; 0 for padded odd convolutions, ``(stride - 1) / 2`` for
            patches and even pooling.
        pool: window of an average pooling at the end of the encoder; it drops a remainder.
    """

    stride: int
    offset: float = 0.0
    pool: int = 1

    def pooled(self, window: int) -> FeatureGrid:
        """The grid after an average pooling with this window."""
        offset = self.offset + self.stride * (window - 1) / 2
        return FeatureGrid(self.stride * window, offset, self.pool * window)

    def size(self, pixels: int) -> int:
        """Number of features along an image side of ``pixels``."""
        return math.ceil(pixels / (self.stride // self.pool)) // self.pool

    def flip_shift(self, pixels: int) -> int:
        """Pixels by which mirroring an image side of ``pixels`` moves the grid.

        Feature ``j`` of the mirrored image, mirrored back, is centered on
        ``offset + flip_shift + stride * j`` of the image. 0 if the size fits the grid.
        """
        return round(pixels - 1 - 2 * self.offset - self.stride * (self.size(pixels) - 1))

    def fitting_size(self, pixels: int) -> int:
        """The smallest size >= ``pixels`` on which the grid is symmetric (`flip_shift` is 0)."""
        while self.flip_shift(pixels) != 0:
            pixels += 1
        return pixels
