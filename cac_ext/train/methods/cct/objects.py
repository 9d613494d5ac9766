"""Predicted objects: connected regions of the foreground, and random rectangles in their boxes.

Everything has a fixed shape: no value is asked of the device. A region is named by its last
position, so each of the P = h w positions has room for the box of one region.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Boxes(NamedTuple):
    """Bounding boxes of regions in features, each at the last position of its region.

    Positions that are not the last one of a counted region have a box of height and width 0.
    """

    top: Tensor  # [B, P] int64, the first row
    left: Tensor  # [B, P] int64, the first column
    height: Tensor  # [B, P] int64, rows
    width: Tensor  # [B, P] int64, columns


def label_regions(foreground: Tensor) -> Tensor:
    """The last position of each position's region, ``[B, h, w]`` bool to ``[B, P]`` int64.

    Positions that touch at a side or a corner are of one region. A position outside the foreground
    gets itself.

    Each region starts as single positions. In each of ``log2(P)`` rounds a part joins the part of
    the highest name that it touches. A region for which these rounds were too few would count as
    several; no shape that was tried needs more.
    """
    batch, h, w = foreground.shape
    inside = foreground.flatten(1)  # [B, P]
    own = torch.arange(h * w, device=foreground.device).expand(batch, -1)  # [B, P]
    names = own
    rounds = max(h * w - 1, 1).bit_length()
    for _ in range(rounds):
        shown = torch.where(inside, names, -1).view(batch, 1, h, w)
        # In float32, which holds positions up to 2^24 exactly.
        highest = F.max_pool2d(shown.float(), 3, stride=1, padding=1).long().flatten(1)
        names = names.scatter_reduce(1, names, torch.where(inside, highest, own), "amax")
        for _ in range(rounds):  # names of names, until a part has one
            names = names.gather(1, names)
    return names


def bounding_boxes(foreground: Tensor, perimeter: float) -> Boxes:
    """The boxes of all regions of ``[B, h, w]`` whose perimeter, in features, is larger."""
    batch, h, w = foreground.shape
    names, inside = label_regions(foreground), foreground.flatten(1)
    own = torch.arange(h * w, device=foreground.device).expand(batch, -1)
    rows, columns = own // w, own % w
    top, left = (own.new_full(own.shape, h * w) for _ in range(2))
    bottom, right = (own.new_full(own.shape, -1) for _ in range(2))
    top = top.scatter_reduce(1, names, rows, "amin")
    left = left.scatter_reduce(1, names, columns, "amin")
    height = bottom.scatter_reduce(1, names, rows, "amax") - top + 1
    width = right.scatter_reduce(1, names, columns, "amax") - left + 1
    counted = inside & (names == own) & (2 * (height + width) > perimeter)
    return Boxes(top, left, torch.where(counted, height, 0), torch.where(counted, width, 0))


def random_rectangles(boxes: Boxes, h: int, w: int, share: float) -> Tensor:
    """A rectangle at a random place in each box, ``[B, h, w]`` bool, True inside.

    Its sides are ``share`` of the box's. They are fractions of a feature: a feature is inside if
    its center is.
    """
    batch = len(boxes.top)
    top, bottom = _random_interval(boxes.top, boxes.height, share)
    left, right = _random_interval(boxes.left, boxes.width, share)
    # Its four corners, summed over rows and columns, are 1 inside and 0 outside.
    corners = top.new_zeros(batch, (h + 1) * (w + 1))
    one = (boxes.height > 0).long()
    for row, column, value in (
        (top, left, one),
        (top, right, -one),
        (bottom, left, -one),
        (bottom, right, one),
    ):
        corners.scatter_add_(1, row * (w + 1) + column, value)
    counts = corners.view(batch, h + 1, w + 1).cumsum(1).cumsum(2)
    return counts[:, :h, :w] > 0


def _random_interval(first: Tensor, length: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The first feature inside a random part of each interval, and the first one behind it."""
    free = (1 - share) * length
    start = first - 0.5 + free * torch.rand(first.shape, device=first.device)
    end = start + share * length
    # Empty intervals end where they start; `first` of these may lie behind the map.
    start, end = (torch.where(length > 0, x.ceil(), 0.0) for x in (start, end))
    return start.long(), end.long()
