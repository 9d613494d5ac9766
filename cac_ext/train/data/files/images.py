"""Images in files: RGB pictures, and images of other channels or with a range of values.

`ImageForm` says what the files hold. RGB without a range is read by `pictures`. Otherwise the
channels of a file are those it stores, in this order, and their number must be right:

* pictures (PNG, JPEG, ...): gray is 1 channel, gray with alpha 2, RGB 3, RGBA 4; a gray one counts
  as RGB, too;
* TIFF of other than one channel: any number of 8 or more bits, by the package tifffile;
* NumPy's ``.npy``: ``[H, W, C]`` or ``[H, W]``, of integers or floats. They are read for RGB, too.

An image has 8 bits a channel in the trainer. The values between ``low`` and ``high`` are spread
over them evenly, those beyond are black or white. Without a range 16 bits are scaled by 255 /
65535, and other types are refused, because nothing says what is white in them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cac_ext.train.config import DataConfig
from cac_ext.train.data.files import pictures
from cac_ext.train.data.files.orientation import swaps_sides, turned_upright
from cac_ext.train.errors import DataError
from cac_ext.train.runtime.bands import bands

_RGB = 3
_ARRAYS = ".npy"
_TIFFS = (".tif", ".tiff")
_ORIENTATION = 274  # tag of a TIFF
_NO_PAGE = 1 | 4  # bits of NewSubfileType: a reduced copy, a transparency mask
_SHOWN_AS_STORED = (0, 1, 2, 6)  # kinds of colors: gray, RGB, YCbCr, which becomes RGB
_LAYOUTS = {"YX": (1, 2, 0), "YXS": (0, 1, 2), "SYX": (1, 2, 0)}  # of a TIFF's page -> [H, W, C]


@dataclass(frozen=True)
class ImageForm:
    """What image files hold.

    Attributes:
        channels: C.
        low, high: values that become 0 and 255, one for all channels or one for each; None: 0 and
            the largest value of 8 or 16 bits.
    """

    channels: int = _RGB
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @staticmethod
    def of(data: DataConfig) -> ImageForm:
        """That of the section ``data``."""
        low, high = (
            None if values is None else tuple(values)
            for values in (data.value_low, data.value_high)
        )
        return ImageForm(data.channels, low, high)

    @property
    def suffixes(self) -> frozenset[str]:
        """Endings of files that may hold such images, in lower case with the dot."""
        plain = pictures.image_suffixes()
        return plain if self == RGB_FILES else plain | {_ARRAYS}

    def to_bytes(self, values: npt.NDArray[Any], title: str) -> npt.NDArray[np.uint8]:
        """Values ``[H, W, C]`` of any type as 8 bits, rounded to the nearest.

        Raises:
            DataError: another number of channels, a type without a range, or nan.
        """
        height, width, found = values.shape
        if found != self.channels:
            raise DataError(_wrong_channels(title, found, self.channels, values.shape))
        low, high = self.low, self.high
        if low is None or high is None:
            kind = (values.dtype.kind, values.dtype.itemsize)
            if kind == ("u", 1):
                return values
            if kind != ("u", 2):
                raise DataError(
                    f"{title} holds {values.dtype.name} from {values.min():g} to "
                    f"{values.max():g}, and nothing says which value is black and which white: set "
                    "data.value_low and data.value_high"
                )
            low, high = (0.0,), (65535.0,)
        black, white = (np.asarray(part, np.float64) for part in (low, high))  # [1] or [C]
        image = np.empty(values.shape, np.uint8)
        for rows in bands(height, width * found):  # float64 takes eight times the memory
            shares = (values[rows].astype(np.float64) - black) / (white - black)
            if np.isnan(shares).any():
                raise DataError(
                    f"{title} holds nan (no number): replace it, for instance by the value that "
                    "shall be black"
                )
            image[rows] = np.rint(255 * shares.clip(0, 1))
        return image


#: The form of files of which nothing is said.
RGB_FILES = ImageForm()


def read_image(path: Path, max_pixels: int | None = None, form: ImageForm = RGB_FILES) -> Tensor:
    """An image with 8 bits a channel, upright, ``[C, H, W]`` uint8; see the module's docstring.

    Args:
        path: of the file.
        max_pixels: most pixels of an image, so that no small file can fill the memory; None: any
            number.
        form: what the file holds.

    Raises:
        DataError: the file is missing, broken, too large, or of another form.
    """
    suffix = path.suffix.lower()
    if form == RGB_FILES and suffix != _ARRAYS:
        return pictures.read_image(path, max_pixels)
    title = f"the image {path}"
    fault = pictures.file_fault(path, "image")
    if fault is not None:
        raise DataError(fault)
    if suffix == _ARRAYS:
        values = _read_array(path, title, max_pixels, form.channels)
    elif suffix in _TIFFS and form.channels > 1:
        values = _read_tiff(path, title, max_pixels)
    else:
        values = pictures.read_samples(path, max_pixels, scaled=form.low is None)
    if values.shape[2] == 1 and form.channels == _RGB:
        values = values.repeat(_RGB, axis=2)
    image = np.ascontiguousarray(form.to_bytes(values, title).transpose(2, 0, 1))
    return torch.from_numpy(image if image.flags.writeable else image.copy())


def read_size(path: Path, form: ImageForm = RGB_FILES) -> tuple[int, int]:
    """H and W of an image, upright, from its header."""
    suffix, title = path.suffix.lower(), f"the image {path}"
    fault = pictures.file_fault(path, "image")
    if fault is not None:
        raise DataError(fault)
    if suffix == _ARRAYS:
        height, width, _ = _open_array(path, title, form.channels).shape
        return height, width
    if suffix in _TIFFS and form.channels > 1 and form != RGB_FILES:
        with _opened_tiff(path, title) as file:
            page = _only_page(file, title)
            size = (int(page.imagelength), int(page.imagewidth))
            return size[::-1] if swaps_sides(_orientation(page)) else size
    return pictures.read_size(path)


def _wrong_channels(title: str, found: int, wanted: int, shape: Sequence[int]) -> str:
    if shape[0] == wanted and found != wanted:  # as rasterio and torch have them
        return (
            f"{title} has the shape {list(shape)}, but data.channels is {wanted} and an array must "
            "be [H, W, C]: save np.moveaxis(array, 0, -1)"
        )
    return (
        f"{title} has {found} channel{'s' if found > 1 else ''}, but data.channels is {wanted}: "
        f"set data.channels={found}, or give files of {wanted}"
    )


def _require_pixels(title: str, height: int, width: int, max_pixels: int | None) -> None:
    if max_pixels is not None and height * width > max_pixels:
        raise DataError(pictures.too_large(title, height, width, max_pixels))


def _open_array(path: Path, title: str, channels: int) -> npt.NDArray[Any]:
    """The array in an ``.npy`` file, ``[H, W, C]``, mapped into memory."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {title}: {error}") from error
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "uif":
        raise DataError(
            f"{title} is an array {list(array.shape)} of {array.dtype}, but must be [H, W, "
            f"{channels}] of integers or floats"
        )
    return array


def _read_array(path: Path, title: str, max_pixels: int | None, channels: int) -> npt.NDArray[Any]:
    array = _open_array(path, title, channels)
    _require_pixels(title, array.shape[0], array.shape[1], max_pixels)
    return np.array(array)


def _opened_tiff(path: Path, title: str) -> Any:
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise DataError(
            f"{title} is a TIFF of other than one channel, which needs the package tifffile "
            f"({error}): pip install tifffile imagecodecs, or save .npy files"
        ) from error
    try:
        return tifffile.TiffFile(path)
    except Exception as error:  # tifffile has its own
        raise DataError(f"cannot read {title}: {error}") from error


def _only_page(file: Any, title: str) -> Any:
    pages = [page for page in file.pages if not int(page.aspage().subfiletype) & _NO_PAGE]
    if len(pages) != 1:
        raise DataError(
            f"{title} has {len(pages)} pages, but the channels of an image must be in one: save "
            "them in one, or as an .npy file"
        )
    return pages[0].aspage()


def _orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return 1 if tag is None else int(tag.value)


def _read_tiff(path: Path, title: str, max_pixels: int | None) -> npt.NDArray[Any]:
    """The samples of a TIFF, upright, ``[H, W, C]``."""
    with _opened_tiff(path, title) as file:
        page = _only_page(file, title)
        axes = str(page.axes)
        if axes not in _LAYOUTS:
            raise DataError(f"{title} is a TIFF with the axes {axes}, not an image")
        if int(page.photometric) not in _SHOWN_AS_STORED:
            raise DataError(
                f"{title} has colors of the kind {page.photometric.name}, whose channels are not "
                "what it shows: save it as gray or RGB"
            )
        _require_pixels(title, int(page.imagelength), int(page.imagewidth), max_pixels)
        try:
            values: npt.NDArray[Any] = page.asarray()
        except Exception as error:  # each compression has its own
            raise DataError(f"cannot read {title}: {error}") from error
        values = values[None] if axes == "YX" else values
        return turned_upright(values.transpose(_LAYOUTS[axes]), _orientation(page))
