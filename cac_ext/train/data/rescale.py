"""Random scaling that computes only the part of the picture that a crop shows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as VF

#: torchvision scales a whole picture several times faster per pixel than Pillow scales a part. So
#: the part pays if the scaled picture is more than `_PART_PAYS` times as large, and large at all.
_WHOLE_PIXELS = 1 << 20
_PART_PAYS = 4


def part_pays(whole: int, part: int) -> bool:
    """Whether scaling a part of so many pixels costs less than scaling the whole picture."""
    return whole > max(_WHOLE_PIXELS, _PART_PAYS * part)


@dataclass(frozen=True)
class Scaled:
    """A picture at another size.

    Attributes:
        source: height and width of the original picture.
        height, width: of the scaled picture.
    """

    source: tuple[int, int]
    height: int
    width: int

    def part(self, picture: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
        """``scaled[..., top : top + height, left : left + width]``, clipped to the scaled picture.

        An image (`tv_tensors.Image`, uint8 ``[C, H, W]``) is interpolated with antialiasing; any
        other tensor ``[H, W]`` takes the nearest pixel and so equals that part exactly. Each value
        of an image is the exact one within 1.1 gray levels: torchvision, which scales the whole
        picture, and Pillow, which scales a part (`part_pays`), round twice.
        """
        bottom, right = min(top + height, self.height), min(left + width, self.width)
        if self.source == (self.height, self.width):
            return picture[..., top:bottom, left:right]
        if not isinstance(picture, tv_tensors.Image):
            rows = _nearest(self.source[0], self.height)[top:bottom]
            columns = _nearest(self.source[1], self.width)[left:right]
            return picture.index_select(-2, rows).index_select(-1, columns)
        if bottom <= top or right <= left:
            return picture[..., :0, :0]
        # torch's uint8 kernel for CPUs is wrong for pictures that become one column.
        pays = part_pays(self.height * self.width, (bottom - top) * (right - left))
        if pays or self.width == 1:
            return self._image_part(picture, top, left, bottom, right)
        return VF.resize(picture, [self.height, self.width])[..., top:bottom, left:right]

    def pixels(self, mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The scaled mask ``[H, W]`` at some rows ``[h]`` and columns ``[w]``, ``[h, w]``."""
        rows = _nearest(self.source[0], self.height)[rows]
        columns = _nearest(self.source[1], self.width)[columns]
        return mask.as_subclass(Tensor)[rows[:, None], columns[None, :]]

    def _image_part(
        self, image: Tensor, top: int, left: int, bottom: int, right: int
    ) -> tv_tensors.Image:
        ranges = []
        for size, scaled, first, last in (
            (self.source[0], self.height, top, bottom),
            (self.source[1], self.width, left, right),
        ):
            ratio = size / scaled
            # The reach of the antialiasing filter at the outermost pixels, and a pixel more.
            reach = math.ceil(max(ratio, 1.0)) + 1
            begin = max(0, math.floor(first * ratio) - reach)
            end = min(size, math.ceil(last * ratio) + reach)
            ranges.append((begin, end, first * ratio - begin, last * ratio - begin))
        (row, row_end, y0, y1), (column, column_end, x0, x1) = ranges
        region = image[:, row:row_end, column:column_end]
        box = (x0, y0, min(x1, column_end - column), min(y1, row_end - row))
        # Pillow takes a picture of one channel or of three.
        pictures = [region] if len(region) == 3 else [channel[None] for channel in region]
        parts = []
        for picture in pictures:
            resized = VF.to_pil_image(picture.as_subclass(Tensor)).resize(
                (right - left, bottom - top), Image.Resampling.BILINEAR, box=box
            )
            parts.append(VF.pil_to_tensor(resized))
        return tv_tensors.Image(torch.cat(parts) if len(parts) > 1 else parts[0])


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """A uint8 image ``[C, H, W]`` on the CPU at another size, antialiased where it shrinks."""
    scaled = Scaled((image.shape[-2], image.shape[-1]), height, width)
    return scaled.part(tv_tensors.Image(image), 0, 0, height, width)


def draw_scale(scale: tuple[float, float], base_size: int | None, image: Tensor) -> Scaled:
    """A random size: a ratio within ``scale``, of ``base_size`` (the long side in pixels).

    Without ``base_size`` the ratio is of the image's own size.
    """
    height, width = image.shape[-2:]
    ratio = float(torch.empty(()).uniform_(*scale))
    if base_size is not None:
        ratio *= base_size / max(height, width)
    return Scaled((height, width), max(1, round(height * ratio)), max(1, round(width * ratio)))


def _nearest(size: int, scaled: int) -> Tensor:
    """The source place of each scaled place along one side, ``[scaled]``, by torch's "nearest"."""
    places = torch.arange(size, dtype=torch.float32)[None, None, :, None]
    return F.interpolate(places, (scaled, 1), mode="nearest")[0, 0, :, 0].long()
