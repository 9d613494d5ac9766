"""Masks that hold colors: each stands for a class."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cac_ext.train.data.files.stored_samples import Ids
from cac_ext.train.errors import ConfigError, DataError, listed

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")
_SHOWN = 5  # unknown colors that an error names


class MaskColors:
    """Turns colors into class ids.

    Args:
        colors: ``RRGGBB`` or ``#RRGGBB`` of each class, in the order of the ids.
        ignored: further colors, of pixels without a class.
        ignore_index: the id of those.

    Raises:
        ConfigError: a text is no color, or a color occurs twice.
    """

    def __init__(
        self, colors: Sequence[str], ignored: Sequence[str] = (), ignore_index: int = 255
    ) -> None:
        numbers = [_number(text, "data.mask_colors") for text in colors]
        numbers += [_number(text, "data.ignored_colors") for text in ignored]
        twice = sorted({number for number in numbers if numbers.count(number) > 1})
        if twice:
            raise ConfigError(
                f"data.mask_colors and data.ignored_colors have {listed(map(_text, twice))} more "
                "than once: each color stands for one class"
            )
        self.palette = [(n >> 16, n >> 8 & 255, n & 255) for n in numbers[: len(colors)]]
        ids = [*range(len(colors)), *[ignore_index] * len(ignored)]
        order = np.argsort(numbers)
        self._numbers = np.array(numbers, np.int64)[order]  # sorted, for the search
        self._ids = np.array(ids)[order]
        if self._ids.min() >= 0 and self._ids.max() < 256:
            self._ids = self._ids.astype(np.uint8)

    def ids_of(self, picture: Image.Image, title: str) -> Ids:
        """The class ids of a decoded mask, ``[H, W]``, uint8 if they have 8 bits, else int64.

        Raises:
            DataError: it has transparent pixels, other colors, or no colors of 8 bits.
        """
        if picture.mode not in _MODES:
            raise DataError(
                f"{title} (mode {picture.mode}) has no colors of 8 bits, which data.mask_colors "
                "names: save it as RGB"
            )
        if "A" in picture.getbands() and picture.getchannel("A").getextrema() != (255, 255):
            raise DataError(
                f"{title} has an alpha channel (mode {picture.mode}) with transparent pixels of "
                "unknown class: save it as RGB"
            )
        picture.info.pop("transparency", None)  # a transparent palette entry keeps its color
        samples = np.asarray(picture.convert("RGB")).astype(np.int64)  # [H, W, 3]
        numbers = samples[..., 0] << 16 | samples[..., 1] << 8 | samples[..., 2]  # [H, W]
        places = np.searchsorted(self._numbers, numbers).clip(max=len(self._numbers) - 1)
        unknown = self._numbers[places] != numbers
        if unknown.any():
            found, counts = np.unique(numbers[unknown], return_counts=True)
            most = np.argsort(-counts, kind="stable")[:_SHOWN]
            shown = ", ".join(f"{_text(found[k])} in {counts[k]} pixels" for k in most)
            raise DataError(
                f"{title} has {len(found)} colors that are in neither data.mask_colors nor "
                f"data.ignored_colors: {shown}{', ...' * (len(found) > _SHOWN)}"
            )
        ids: Ids = self._ids[places]
        return ids


def _number(text: str, key: str) -> int:
    if not re.fullmatch("#?[0-9a-fA-F]{6}", text):
        raise ConfigError(
            f"{key}: {text!r} is no color; give red, green and blue in six hexadecimal digits: "
            "804080"
        )
    return int(text.removeprefix("#"), 16)


def _text(number: int) -> str:
    return f"#{number:06x}"
