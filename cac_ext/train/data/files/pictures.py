"""Pictures in files: the one place that opens them, for images, masks and pseudo labels.

Pictures are read upright, as a viewer shows them: turned and mirrored by the EXIF orientation.

An image becomes 8-bit RGB. Its values are scaled by the range of their type: 16-bit gray values by
255 / 65535. Integers of 32 bits and floats have no such range and are refused. Alpha is dropped,
the color beneath counts. Color profiles (ICC) are not applied. A file of several pages or frames
is refused, but a camera's extra pictures (MPO) and reduced copies in a TIFF do not count as pages.

A mask becomes the class ids that the file stores, not their gray values: 0 to 15 in a 4-bit PNG,
the indices in a palette, 0 and 1 (white) in a 1-bit picture.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from cac_ext.train.data.files.mask_colors import MaskColors
from cac_ext.train.data.files.orientation import (
    as_stored,
    file_of,
    header_orientation,
    is_turned,
    pending_orientation,
    swaps_sides,
    turned_upright,
    upright,
)
from cac_ext.train.data.files.stored_samples import (
    Ids,
    Storage,
    gray_of,
    ids_of,
    is_narrowed,
    require_faithful,
)
from cac_ext.train.errors import DataError
from cac_ext.train.runtime.bands import bands

_PAGED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")  # formats whose further frames count as pages
_NO_PAGE = 1 | 4  # bits of a TIFF's NewSubfileType: a reduced copy, a transparency mask
_NEW_SUBFILE_TYPE = 254  # tag of a TIFF
#: Formats that Pillow knows, but that hold no pixels. It gives an EPS, which is a program, to
#: Ghostscript, whatever the name of the file ends in.
_NOT_RASTER = ("EPS", "MPEG")
_SAMPLED = ("L", "LA", "RGB", "RGBA", "I", "F")  # modes whose samples are channels

#: Pillow's own limits are globals; `read_image` has its own. They are lifted while a picture is
#: read, by one thread at a time.
_LIMITS_LOCK = threading.RLock()


def read_image(path: Path, max_pixels: int | None = None) -> Tensor:
    """An image in 8-bit RGB, ``[3, H, W]`` uint8, see the module's docstring.

    Args:
        path: of the file.
        max_pixels: most pixels of an image, so that no small file can fill the memory; None: any
            number.

    Raises:
        DataError: the file is missing, broken, too large or refused.
    """
    title = f"the image {path}"
    with _opened(path, "image") as picture:
        storage = _load(picture, title, max_pixels)
        return torch.from_numpy(_upright_rgb(picture, storage, title)).permute(2, 0, 1)


def read_samples(path: Path, max_pixels: int | None = None, *, scaled: bool) -> npt.NDArray[Any]:
    """The samples of a picture, upright, ``[H, W, C]``: 1 for gray, 2 with alpha, 3 RGB, 4 RGBA.

    Args:
        path: of the file.
        max_pixels: see `read_image`.
        scaled: to 8 bits by the range of their type; otherwise as they are stored.

    Raises:
        DataError: as `read_image`, or the colors are of another kind (a palette, CMYK, ...).
    """
    title = f"the image {path}"
    with _opened(path, "image") as picture:
        storage = _load(picture, title, max_pixels)
        narrowed = is_narrowed(picture, storage) or storage.maximum not in (None, 255, 65535)
        if narrowed and not scaled:
            raise DataError(
                f"{title} holds values that Pillow can only read scaled to 8 bits, so they cannot "
                "be compared with data.value_low and data.value_high: save it as a TIFF or as an "
                ".npy file"
            )
        shown: Image.Image = picture
        if storage.white != 255 and scaled:
            shown = gray_of(picture, storage, title)
        elif picture.mode == "1":
            shown = picture.convert("L")
        if shown.mode not in _SAMPLED and not shown.mode.startswith("I;16"):
            raise DataError(
                f"{title} has colors of the kind {shown.mode}, whose channels are not what it "
                "shows: save it as gray, RGB or RGBA"
            )
        samples: npt.NDArray[Any] = np.asarray(shown)  # [H, W] or [H, W, C]
        if shown.mode == "L" and storage.signed:
            samples = samples.view(np.int8)
        elif shown.mode == "I" and storage.signed is False:
            samples = samples.view(np.uint32)
        samples = samples[..., None] if samples.ndim == 2 else samples
        return turned_upright(samples, pending_orientation(picture))


def too_large(title: str, height: int, width: int, max_pixels: int) -> str:
    """The error of an image with more pixels than ``max_pixels``."""
    return (
        f"{title} has {width} x {height} = {width * height:,} pixels, more than the "
        f"{max_pixels:,} allowed: if it should be so large, set "
        f"data.max_image_pixels={width * height} (`cac-ext predict`: "
        f"--max-image-pixels {width * height})"
    )


def _load(picture: ImageFile.ImageFile, title: str, max_pixels: int | None) -> Storage:
    """Decodes an image that may be; says how its samples are stored."""
    width, height = picture.size
    if max_pixels is not None and width * height > max_pixels:
        raise DataError(too_large(title, height, width, max_pixels))
    _require_one_page(picture, title)
    storage = Storage.of(picture)
    picture.load()
    return storage


def read_ids(
    path: Path,
    size: tuple[int, int],
    image: Path | str,
    kind: str = "mask",
    colors: MaskColors | None = None,
) -> Ids:
    """The class ids that a mask stores, ``[H, W]``, uint8 if they have 8 bits, else int64.

    Args:
        path: of the file.
        size: H and W of its image, which the mask must have.
        image: the mask's image, for errors.
        kind: of file, for errors.
        colors: of the classes, if the mask holds colors in place of ids.

    Raises:
        DataError: the file is missing, broken, of another size than its image, or holds no class
            ids: colors, fractions, values that the format may have changed.
    """
    title = f"the {kind} {path}"
    with _opened(path, kind) as picture:
        storage = Storage.of(picture)
        found = _upright_size(picture)
        if found != size:
            raise DataError(
                f"{title} is {found[1]} x {found[0]} pixels, but its image {image} is {size[1]} x "
                f"{size[0]}{_turned_hint(image, found, size)}"
            )
        require_faithful(picture, storage, title)
        _require_one_page(picture, title)
        picture.load()
        turned = upright(picture)
        return ids_of(turned, storage, title) if colors is None else colors.ids_of(turned, title)


def read_size(path: Path, kind: str = "image") -> tuple[int, int]:
    """H and W of a picture, upright, from its header; nothing is decoded."""
    with _opened(path, kind) as picture:
        return _upright_size(picture)


@dataclass(frozen=True)
class Peculiarities:
    """Properties of an image that are worth a remark before training.

    Attributes:
        turned: whether its EXIF orientation turns or mirrors it.
        deep: whether its gray values have more than 8 bits.
    """

    turned: bool
    deep: bool


def peculiarities(path: Path) -> Peculiarities:
    """Reads them from an image's header; DataError if that is broken."""
    with _opened(path, "image") as picture:
        deep = Storage.of(picture).white != 255
        return Peculiarities(is_turned(picture), deep)


def picture_of_ids(ids: Ids, count: int) -> Image.Image:
    """A single-channel picture of ids ``[H, W]`` below ``count``, of 8 bits or, if needed, 16.

    Raises:
        ValueError: ``count`` is too large for 16 bits.
    """
    if count > 1 << 16:
        raise ValueError(f"a mask of 16 bits holds 65,536 ids, but there are {count:,}")
    kind = np.uint8 if count <= 1 << 8 else np.uint16
    return Image.fromarray(ids.astype(kind, copy=False))


def file_fault(path: Path, kind: str) -> str | None:
    """A sentence that says why a file cannot be opened; None if it exists."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        nowhere = f", but a link to {os.readlink(path)}" if os.path.islink(path) else ""
        return f"there is no {kind} {path}{nowhere}"
    except (OSError, ValueError) as error:
        return f"cannot read the {kind} {path}: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISREG(mode):
        return None
    return (
        f"the {kind} {path} is a folder"
        if stat.S_ISDIR(mode)
        else f"the {kind} {path} is no regular file"
    )


@cache
def image_suffixes() -> frozenset[str]:
    """Endings of files that can be read as images, in lower case with the dot: ``.png``, ..."""
    formats = Image.registered_extensions()

    def is_read(name: str) -> bool:
        return name in Image.OPEN and _holds_pixels(name, Image.OPEN[name][0])

    return frozenset(suffix for suffix, name in formats.items() if is_read(name))


def _holds_pixels(name: str | None, reader: object) -> bool:
    """Whether Pillow decodes a format by itself; it leaves some to other programs."""
    is_stub = isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile)
    return name not in _NOT_RASTER and not is_stub


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[ImageFile.ImageFile]:
    """The picture, its header read. Any error while it is open becomes a DataError."""
    fault = file_fault(path, kind)
    if fault is not None:
        raise DataError(fault)
    with _without_limits():
        try:
            # Not by its name: Pillow would map some files into memory, and read a TIFF that is
            # turned by 90 degrees as if it were upright.
            with open(path, "rb") as file, Image.open(file) as picture:
                if not _holds_pixels(picture.format, type(picture)):
                    raise DataError(
                        f"the {kind} {path} is in the format {picture.format}, which holds no "
                        "pixels: save it as a PNG"
                    )
                _require_right_bmp(picture)
                yield picture
        except DataError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(f"cannot read the {kind} {path}: {_unknown(path)}") from error
        except Exception as error:  # each of Pillow's formats raises its own for a broken file
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DataError(f"cannot read the {kind} {path}: {why}") from error


@contextmanager
def _without_limits() -> Iterator[None]:
    with _LIMITS_LOCK:
        pixels, text = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        # A PNG's text or color profile may be as large as all its texts together.
        Image.MAX_IMAGE_PIXELS = None
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = pixels, text


def _unknown(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(24)
    if not start:
        return "the file is empty"
    return f"it is no picture, or in a format that Pillow cannot read; it begins with {start!r}"


def _require_right_bmp(picture: ImageFile.ImageFile) -> None:
    """Raises for a BMP with a gray palette if Pillow assumes another size of its samples."""
    if picture.format != "BMP" or picture.mode not in ("1", "L"):
        return
    file = file_of(picture)
    position = file.tell()
    file.seek(14)
    header = file.read(16)
    file.seek(position)
    (header_size,) = struct.unpack_from("<I", header)
    (bits,) = struct.unpack_from("<H", header, 10 if header_size == 12 else 14)
    if picture.tile[0][0] == "raw" and bits != {"1": 1, "L": 8}[picture.mode]:
        raise ValueError(f"a BMP of {bits} bits with this palette cannot be read: save it as a PNG")


def _require_one_page(picture: ImageFile.ImageFile, title: str) -> None:
    if picture.format not in _PAGED or not getattr(picture, "is_animated", False):
        return
    pages = getattr(picture, "n_frames", 1)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        pages = 1
        for index in range(1, picture.n_frames):
            picture.seek(index)
            pages += not picture.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _NO_PAGE
        picture.seek(0)
    if pages > 1:
        raise DataError(
            f"{title} has {pages} pages or frames, and nothing says which one is meant: save it, "
            "or each, as a separate file"
        )


def _upright_rgb(
    picture: ImageFile.ImageFile, storage: Storage, title: str
) -> npt.NDArray[np.uint8]:
    """A decoded image in 8-bit RGB, upright, ``[H, W, 3]``.

    Converted by bands, each into its place in the result, so that one copy is made of the image.
    """
    orientation = pending_orientation(picture)
    decoded = picture if storage.white == 255 else gray_of(picture, storage, title)
    width, height = decoded.size
    sides = (width, height) if swaps_sides(orientation) else (height, width)
    turned = np.empty((*sides, 3), np.uint8)
    stored = as_stored(turned, orientation)
    for rows in bands(height, width):
        band = decoded.crop((0, rows.start, width, rows.stop))
        stored[rows] = np.asarray(_rgb(band, title))
    return turned


def _upright_size(picture: ImageFile.ImageFile) -> tuple[int, int]:
    width, height = picture.size
    if picture.format != "TIFF" and swaps_sides(header_orientation(picture)):
        return width, height
    return height, width


def _turned_hint(image: Path | str, found: tuple[int, int], size: tuple[int, int]) -> str:
    if found != size[::-1] or not isinstance(image, Path):
        return ""
    try:
        turned = peculiarities(image).turned
    except DataError:  # of an array
        turned = False
    if not turned:
        return ""
    return (
        ": the image is turned by its EXIF orientation, but the mask fits the picture as stored. "
        "Turn the mask, too, or remove the orientation from the image"
    )


def _rgb(picture: Image.Image, title: str) -> Image.Image:
    picture.info.pop("transparency", None)  # a transparent palette entry keeps its color
    if picture.mode == "RGB":
        return picture
    straight = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)  # undoes the darkening by alpha
    try:
        picture = picture if straight is None else picture.convert(straight)
        return picture.convert("RGB")
    except ValueError as error:
        raise DataError(
            f"{title} has colors of the kind {picture.mode}, which cannot be turned into RGB: save "
            "it as RGB"
        ) from error
