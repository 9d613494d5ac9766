"""How a picture stores its samples, and what they mean: a gray value of an image, or a class id.

Pillow returns values to display: the samples 0, 1, 2 of a 4-bit gray picture as 0, 17, 34, those of
a PPM scaled by its maximum, those of a TIFF whose white is 0 inverted. That is right for an image.
A mask needs the stored samples, and must not be in a format that has lost them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cac_ext.train.errors import DataError
from cac_ext.train.runtime.bands import bands

_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of a TIFF
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED = 1, 2

_LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")
_WITH_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")
_RGB = ("RGB", "RGBX")
_GRAY_STEP = {"L;2": 85, "L;4": 17}  # between Pillow's gray values of the samples 0, 1, 2, ...
_AS_PNG = "save it as a PNG of one channel"

Ids = npt.NDArray[np.integer[Any]]  # [H, W] class ids


@dataclass(frozen=True)
class Storage:
    """What Pillow knows about a picture's samples only before it decodes them.

    Attributes:
        raw_mode: how they are packed, in Pillow's terms: "L;4".
        white: the value that is white; None if it is unknown.
        maximum: the value of a PPM that Pillow scales to 255 or 65535; None for other formats.
        signed: whether a TIFF's samples have a sign; None for other formats.
        negative: whether 0 is white and ``white`` is black, and Pillow does not invert it.
    """

    raw_mode: str
    white: int | None
    maximum: int | None
    signed: bool | None
    negative: bool

    @staticmethod
    def of(picture: Image.Image) -> Storage:
        """Reads it from a picture that is opened but not decoded."""
        tiles = getattr(picture, "tile", None)
        decoder, _, _, arguments = tiles[0] if tiles else ("", (), 0, "")
        first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        raw_mode = first if isinstance(first, str) else ""
        scaled = decoder in ("ppm", "ppm_plain") and picture.mode != "1"
        tags = getattr(picture, "tag_v2", None)
        signed: bool | None = None
        negative = False
        if tags is not None:
            signed = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _SIGNED
            deep = picture.mode.startswith("I;16")
            negative = deep and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        white: int | None
        if picture.mode.startswith("I;16"):
            white = 4095 if raw_mode == "I;12" else 65535
        elif picture.mode == "I":
            # 16 bits in a PNG; Pillow scales a PPM's values to them.
            white = 65535 if picture.format in ("PNG", "PPM") else None
        else:
            white = None if picture.mode == "F" or (picture.mode == "L" and signed) else 255
        maximum = int(arguments[1]) if scaled else None
        return Storage(raw_mode, white, maximum, signed, negative)


def gray_of(picture: Image.Image, storage: Storage, title: str) -> Image.Image:
    """A decoded picture whose white is not 255, scaled to 8 bits and rounded to the nearest.

    Raises:
        DataError: the value of white is unknown.
    """
    values = np.asarray(picture)  # [H, W]
    if storage.white is None:
        values = values.view(np.int8) if values.dtype == np.uint8 else values
        raise DataError(
            f"{title} has the mode {picture.mode} ({values.dtype.name}) with values from "
            f"{values.min():g} to {values.max():g}, and nothing says which value is white: scale "
            "it to 8 or 16 bits without sign, or set data.value_low and data.value_high"
        )
    gray = np.empty(values.shape, np.uint8)
    for rows in bands(*values.shape):  # the uint32 values take 4 times the memory
        band = values[rows].astype(np.uint32)
        band = storage.white - band if storage.negative else band
        gray[rows] = (band * 255 + storage.white // 2) // storage.white
    return Image.fromarray(gray)


def is_narrowed(picture: Image.Image, storage: Storage) -> bool:
    """Whether a picture has samples of 16 bits of which Pillow reads the upper 8."""
    deep = storage.raw_mode.endswith((";16B", ";16L", ";16N"))
    return deep and not picture.mode.startswith("I")


def require_faithful(picture: Image.Image, storage: Storage, title: str) -> None:
    """DataError for a mask in a format that may have changed its ids."""
    if picture.format in _LOSSY:
        raise DataError(
            f"{title} is a file in the format {picture.format}, whose compression may change the "
            f"ids: {_AS_PNG} when you make it"
        )
    if picture.format == "GIF" and picture.mode != "L":
        raise DataError(
            f"{title} is a GIF with a palette, and programs that write GIFs renumber the colors: "
            f"{_AS_PNG} when you make it"
        )
    if is_narrowed(picture, storage):
        raise DataError(
            f"{title} has several channels of 16 bits, or one in a format of which only the upper "
            f"8 bits can be read: {_AS_PNG}"
        )


def ids_of(picture: Image.Image, storage: Storage, title: str) -> Ids:
    """The samples of a decoded mask, ``[H, W]``: uint8 if they have 8 bits, else int64.

    Raises:
        DataError: they are no class ids: colors, fractions, transparent pixels.
    """
    ids = _one_channel(picture, title)  # [H, W]
    if picture.mode == "L":
        form = storage.raw_mode.removesuffix("R")  # R: the bits of a byte in reverse order
        if form.startswith("L;") and form.endswith("I"):  # I: white is 0
            ids = 255 - ids
        step = _GRAY_STEP.get(form.removesuffix("I"))
        ids = ids if step is None else ids // np.uint8(step)
        ids = ids.view(np.int8) if storage.signed else ids
    elif picture.mode == "I" and storage.signed is False:
        ids = ids.view(np.uint32)
    elif picture.mode == "F":
        wrong = ids[~(np.isfinite(ids) & (ids == np.rint(ids)))]
        if len(wrong):
            raise DataError(
                f"{title} holds floats (mode F), such as {wrong[0]:g}, but must hold whole "
                f"numbers, the class ids: {_AS_PNG}"
            )
    if storage.maximum is not None:
        top = 255 if ids.dtype == np.uint8 else 65535
        ids = np.rint(ids * (storage.maximum / top)).astype(ids.dtype)
    kind = np.uint8 if ids.dtype in (np.uint8, np.bool_) else np.int64
    return ids.astype(kind, copy=not ids.flags.writeable)


def _one_channel(picture: Image.Image, title: str) -> npt.NDArray[Any]:
    """The only channel, or the first if all are equal, ``[H, W]``."""
    samples = np.asarray(picture)  # [H, W] or [H, W, channels]
    if picture.mode in _WITH_ALPHA:
        if (samples[..., -1] != 255).any():
            raise DataError(
                f"{title} has an alpha channel (mode {picture.mode}) with transparent pixels of "
                f"unknown class: {_AS_PNG}"
            )
        samples = samples[..., :-1]
    if samples.ndim == 2:
        return samples
    first = samples[..., 0]
    equal = all((samples[..., k] == first).all() for k in range(1, samples.shape[2]))
    if equal and picture.mode in (*_WITH_ALPHA, *_RGB):
        return first
    colors = np.unique(np.ascontiguousarray(samples).reshape(-1, samples.shape[-1]), axis=0)
    shown = ", ".join(str(tuple(map(int, color))) for color in colors[:3])
    raise DataError(
        f"{title} has colors (mode {picture.mode}; {len(colors)} of them, the first {shown}), "
        "but must hold a class id in each pixel: replace each color by the id of its class, and "
        f"{_AS_PNG}, or name the colors of the classes by data.mask_colors"
    )
