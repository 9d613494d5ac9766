"""How a picture stores its samples, and what they mean: a grey value of an image, or a class id.

Pillow hands out what is to be shown: the samples 0, 1, 2 of a 4-bit grey picture as 0, 17, 34,
those of a PPM scaled by the maximum that it names, those of a TIFF whose white is 0 inverted. For
an image this is right. Of a mask the samples themselves are wanted, and no form that has lost them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cac_ext.train.errors import DataError

_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of a TIFF
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED = 1, 2

_LOSSY = ("AVIF", "JPEG", "JPEG2000", "MPO", "WEBP")
_WITH_ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")
_RGB = ("RGB", "RGBX")
_GREY_STEP = {"L;2": 85, "L;4": 17}  # Pillow's grey values of the samples 0, 1, 2, ...
_BAND = 256  # rows
_AS_PNG = "save it as a PNG of one channel"


@dataclass(frozen=True)
class Storage:
    """What only a picture that is not decoded yet tells about its samples.

    Attributes:
        raw_mode: how they are packed, in Pillow's terms: "L;4".
        white: the value that is white; None where nothing says it.
        maximum: of a PPM, the value that Pillow scales to 255 or 65535; else None.
        signed: whether a TIFF says that they have a sign; None for another format.
        negative: whether white is 0, and ``white`` black; only where Pillow does not see to it.
    """

    raw_mode: str
    white: int | None
    maximum: int | None
    signed: bool | None
    negative: bool

    @staticmethod
    def of(picture: Image.Image) -> Storage:
        """Of a picture whose header is read."""
        tile = picture.tile[0] if getattr(picture, "tile", None) else ("", (), 0, "")
        decoder, arguments = tile[0], tile[3]
        first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        raw_mode = first if isinstance(first, str) else ""
        scaled = decoder in ("ppm", "ppm_plain") and picture.mode != "1"
        tags = getattr(picture, "tag_v2", None)
        signed, negative = None, False
        if tags is not None:
            signed = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _SIGNED
            deep = picture.mode.startswith("I;16")
            negative = deep and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        if picture.mode.startswith("I;16"):
            white = 4095 if raw_mode == "I;12" else 65535
        elif picture.mode == "I":
            # 16 bits in a PNG; Pillow scales a PPM's values to them.
            white = 65535 if picture.format in ("PNG", "PPM") else None
        else:
            white = None if picture.mode == "F" or (picture.mode == "L" and signed) else 255
        maximum = arguments[1] if scaled else None
        return Storage(raw_mode, white, maximum, signed, negative)


def grey_of(picture: Image.Image, storage: Storage, title: str) -> Image.Image:
    """A decoded picture whose white is not 255, in 8 bits: scaled and rounded to the nearest.

    Raises:
        DataError: nothing says which value is white.
    """
    values = np.asarray(picture)  # [H, W]
    if storage.white is None:
        values = values.view(np.int8) if values.dtype == np.uint8 else values
        raise DataError(
            f"{title} has the mode {picture.mode} ({values.dtype.name}) with values from "
            f"{values.min():g} to {values.max():g}, and nothing says which value is white: scale "
            "it to 8 or 16 bits without sign"
        )
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _BAND):  # by bands: the numbers between are four times as wide
        band = values[top : top + _BAND].astype(np.uint32)
        band = storage.white - band if storage.negative else band
        grey[top : top + _BAND] = (band * 255 + storage.white // 2) // storage.white
    return Image.fromarray(grey)


def require_faithful(picture: Image.Image, storage: Storage, title: str) -> None:
    """DataError for a mask in a form from which the ids that it was given cannot be had."""
    if picture.format in _LOSSY:
        raise DataError(
            f"{title} is a file in the format {picture.format}, which may change the ids where it "
            f"compresses them: {_AS_PNG} when you make it"
        )
    if picture.format == "GIF" and picture.mode != "L":
        raise DataError(
            f"{title} is a GIF with a palette, and programs that write GIFs number the colours "
            f"anew: {_AS_PNG} when you make it"
        )
    if storage.raw_mode.endswith((";16B", ";16L", ";16N")) and not picture.mode.startswith("I"):
        raise DataError(
            f"{title} has several channels of 16 bits, or one in a format of which only the upper "
            f"8 bits can be read: {_AS_PNG}"
        )


def ids_of(picture: Image.Image, storage: Storage, title: str) -> np.ndarray:
    """The samples of a decoded mask, ``[H, W]``: uint8 where they have 8 bits, else int64.

    Raises:
        DataError: they are no class ids: colours, fractions, transparent pixels.
    """
    ids = _one_channel(picture, title)  # [H, W]
    if picture.mode == "L":
        form = storage.raw_mode.removesuffix("R")  # R: the bits of a byte in reverse order
        if form.startswith("L;") and form.endswith("I"):  # I: white is 0
            ids = 255 - ids
        ids = ids // np.uint8(_GREY_STEP.get(form.removesuffix("I"), 1))
        ids = ids.view(np.int8) if storage.signed else ids
    elif picture.mode == "I" and storage.signed is False:
        ids = ids.view(np.uint32)
    elif picture.mode == "F":
        wrong = ids[~(np.isfinite(ids) & (ids == np.rint(ids)))]
        if len(wrong):
            raise DataError(
                f"{title} holds floats (mode F), {wrong[0]:g} among them, but must hold whole "
                f"numbers, the class ids: {_AS_PNG}"
            )
    if storage.maximum is not None:
        top = 255 if ids.dtype == np.uint8 else 65535
        ids = np.rint(ids * (storage.maximum / top)).astype(ids.dtype)
    return ids.astype(np.uint8 if ids.dtype in (np.uint8, np.bool_) else np.int64)


def _one_channel(picture: Image.Image, title: str) -> np.ndarray:
    """``[H, W]``; of several channels that are equal one."""
    samples = np.asarray(picture)  # [H, W] or [H, W, channels]
    if picture.mode in _WITH_ALPHA:
        if (samples[..., -1] != 255).any():
            raise DataError(
                f"{title} has an alpha channel (mode {picture.mode}) with transparent pixels, and "
                f"nothing says which class they are of: {_AS_PNG}"
            )
        samples = samples[..., :-1]
    if samples.ndim == 2:
        return samples
    first = samples[..., 0]
    equal = all((samples[..., k] == first).all() for k in range(1, samples.shape[2]))
    if equal and picture.mode in (*_WITH_ALPHA, *_RGB):
        return first
    colours = np.unique(np.ascontiguousarray(samples).reshape(-1, samples.shape[-1]), axis=0)
    shown = ", ".join(str(tuple(map(int, colour))) for colour in colours[:3])
    raise DataError(
        f"{title} has colours (mode {picture.mode}; {len(colours)} of them, the first {shown}), "
        "but must hold a class id in each pixel: replace each colour by the id of its class, and "
        f"{_AS_PNG}"
    )
