"""How a picture is turned: its EXIF orientation, 1 to 8, and what undoes it."""

from __future__ import annotations

import os
import struct
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

_ORIENTATION = ExifTags.Base.Orientation
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_CHANGE_PLACES = (5, 6, 7, 8)
_FIRST_ROW_LAST = (3, 4, 6, 7)  # the first stored row is shown at the bottom or the right
_FIRST_COLUMN_LAST = (2, 3, 7, 8)  # the first stored column is shown there


def file_of(picture: ImageFile.ImageFile) -> IO[bytes]:
    """The open file of a picture that is not decoded yet."""
    if picture.fp is None:
        raise ValueError("its file is closed")
    return picture.fp


def header_orientation(picture: ImageFile.ImageFile) -> int:
    """`_orientation` of a picture that is not decoded yet."""
    if picture.format == "PNG" and "exif" not in picture.info and _has_late_metadata(picture):
        picture.load()
    return _orientation(picture)


def pending_orientation(picture: Image.Image) -> int:
    """The orientation of a decoded picture, 1 to 8. Pillow has already turned a TIFF."""
    return 1 if picture.format == "TIFF" else _orientation(picture)


def swaps_sides(orientation: int) -> bool:
    """Whether an upright picture is as high as the stored one is wide."""
    return orientation in _SIDES_CHANGE_PLACES


def turned_upright(stored: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Stored samples ``[H, W, C]``, turned by their orientation, 1 to 8."""
    height, width, channels = stored.shape
    sides = (width, height) if swaps_sides(orientation) else (height, width)
    upright = np.empty((*sides, channels), stored.dtype)
    as_stored(upright, orientation)[...] = stored
    return upright


def as_stored(upright: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """The view of an upright picture ``[H, W, C]`` that ``orientation`` turns into it."""
    view = upright.transpose(1, 0, 2) if orientation in _SIDES_CHANGE_PLACES else upright
    rows = -1 if orientation in _FIRST_ROW_LAST else 1
    columns = -1 if orientation in _FIRST_COLUMN_LAST else 1
    return view[::rows, ::columns]


def upright(picture: Image.Image) -> Image.Image:
    """A decoded picture, turned by its orientation."""
    method = _TO_UPRIGHT.get(pending_orientation(picture))
    return picture if method is None else picture.transpose(method)


def is_turned(picture: ImageFile.ImageFile) -> bool:
    """Whether a picture that is not decoded yet is turned or mirrored."""
    return header_orientation(picture) in _TO_UPRIGHT


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or it is invalid."""
    try:
        # Pillow's own method for a PNG would decode all of it.
        value = Image.Image.getexif(picture).get(_ORIENTATION, 1)
    except Exception:  # broken metadata can raise nearly anything
        return 1
    return value if value in _TO_UPRIGHT else 1


def _has_late_metadata(picture: ImageFile.ImageFile) -> bool:
    """Whether a PNG has metadata behind its pixels, as some programs write it."""
    file, pixels = file_of(picture), False
    position = file.tell()
    file.seek(8)
    try:
        while len(header := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if pixels and name in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
                return True
            pixels = pixels or name == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(position)
