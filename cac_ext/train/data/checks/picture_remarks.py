"""Remarks on readable images: they are turned, or nearly black once read."""

from __future__ import annotations

from collections.abc import Sequence

from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.images import read_image
from cac_ext.train.data.files.pictures import peculiarities
from cac_ext.train.errors import DataError

_NEARLY_BLACK = 16  # of 255; 12 of 16 bits stay below it


def picture_remarks(name: str, images: ImageFiles) -> list[str]:
    """Sentences about the images of the part called ``name``, broken ones left out.

    Only images of more than 8 bits are decoded.
    """
    turned, dark = [], []
    for entry in images.entries:
        try:
            found = peculiarities(entry.image)
            if found.turned:
                turned.append(entry.name)
            if not found.deep or images.form.low is not None:
                continue
            if read_image(entry.image, images.max_pixels, images.form).max() <= _NEARLY_BLACK:
                dark.append(entry.name)
        except DataError:
            continue
    remarks = []
    if turned and images.with_masks:
        remarks.append(
            f"{_some_of(turned, name)} turned or mirrored by the EXIF orientation, as viewers show "
            "them: their masks must fit the turned image"
        )
    if dark:
        remarks.append(
            f"{_some_of(dark, name)} nearly black: no value of the file is above a sixteenth of "
            "the range of 16 bits. If it uses fewer bits, give the range by data.value_low and "
            "data.value_high, or scale the values to all 16, or to 8"
        )
    return remarks


def _some_of(names: Sequence[str], part: str) -> str:
    """``2 of the labelled images (a.jpg, ...) are``."""
    more = ", ..." if len(names) > 1 else ""
    return f"{len(names)} of the {part} images ({names[0]}{more}) {'are' if more else 'is'}"
