"""Masks in every form that is read, and in forms that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from image_trees import SIZE
from picture_files import write_bmp, write_png, write_tiff
from PIL import Image

#: Writes ids ``[H, W]`` uint8 to a file.
MaskWriter = Callable[[Path, np.ndarray], None]


def png(bits: int, color_type: int = 0) -> MaskWriter:
    chunks = [(b"PLTE", bytes(range(200, 212)))] if color_type == 3 else []
    return lambda path, ids: write_png(path, ids, bits, color_type, before=chunks)


def tiff(bits: int, **options: object) -> MaskWriter:
    return lambda path, ids: write_tiff(path, ids, bits, **options)


def array(kind: type, **options: object) -> MaskWriter:
    return lambda path, ids: Image.fromarray(ids.astype(kind)).save(path, **options)


def converted(mode: str) -> MaskWriter:
    return lambda path, ids: Image.fromarray(ids).convert(mode).save(path)


def pgm(maximum: int, magic: str = "P5") -> MaskWriter:
    def write(path: Path, ids: np.ndarray) -> None:
        data = ids.astype(np.uint8 if maximum < 256 else ">u2").tobytes()
        if magic == "P2":
            data = " ".join(map(str, ids.flatten())).encode()
        path.write_bytes(f"{magic} {SIZE[1]} {SIZE[0]} {maximum}\n".encode() + data)

    return write


def palette_with_transparency(path: Path, ids: np.ndarray) -> None:
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.putdata(ids.flatten().tolist())
    picture.save(path, transparency=0)


GRAYS, RAMP = [(17 * k,) * 3 for k in range(16)], [(k,) * 3 for k in range(256)]
#: name of the file -> (its writer, number of ids)
FORMS: dict[str, tuple[MaskWriter, int]] = {
    "1bit.png": (png(1), 2),
    "2bit.png": (png(2), 3),
    "4bit.png": (png(4), 3),
    "8bit.png": (png(8), 3),
    "16bit.png": (png(16), 3),
    "palette1.png": (png(1, 3), 2),
    "palette2.png": (png(2, 3), 3),
    "palette4.png": (png(4, 3), 3),
    "palette8.png": (png(8, 3), 3),
    "palette-transparent.png": (palette_with_transparency, 3),
    "la.png": (converted("LA"), 3),
    "rgb.png": (converted("RGB"), 3),
    "rgba.png": (converted("RGBA"), 3),
    "bool.tif": (array(bool), 2),
    "bool-fax.tif": (array(bool, compression="group4"), 2),
    "2bit.tif": (tiff(2), 3),
    "4bit.tif": (tiff(4), 3),
    "4bit-white-is-zero.tif": (tiff(4, white_is_zero=True), 3),
    "8bit.tif": (tiff(8), 3),
    "8bit-white-is-zero.tif": (tiff(8, white_is_zero=True), 3),
    "12bit.tif": (tiff(12), 3),
    "16bit.tif": (tiff(16), 3),
    "16bit-white-is-zero.tif": (tiff(16, white_is_zero=True), 3),
    "16bit-big-endian.tif": (tiff(16, order=">"), 3),
    "16bit-signed.tif": (tiff(16, sample_format=2), 3),
    "16bit-packed.tif": (array(np.uint16, compression="tiff_deflate"), 3),
    "32bit.tif": (tiff(32), 3),
    "int32.tif": (array(np.int32), 3),
    "float32.tif": (array(np.float32), 3),
    "la.tif": (converted("LA"), 3),
    "rgb.tif": (converted("RGB"), 3),
    "4bit.bmp": (lambda path, ids: write_bmp(path, ids, 4, GRAYS), 3),
    "8bit.bmp": (lambda path, ids: write_bmp(path, ids, 8, RAMP), 3),
    "2.pgm": (pgm(2), 3),
    "2-plain.pgm": (pgm(2, "P2"), 3),
    "20.pgm": (pgm(20), 3),
    "255.pgm": (pgm(255), 3),
    "1000.pgm": (pgm(1000), 3),
    "65535.pgm": (pgm(65535), 3),
    "bool.pbm": (array(bool), 2),
}


def transparent(path: Path, ids: np.ndarray) -> None:
    picture = Image.fromarray(ids).convert("LA")
    picture.putalpha(200)
    picture.save(path)


REFUSED: dict[str, tuple[MaskWriter, list[str]]] = {
    "colors.png": (
        lambda path, ids: Image.fromarray(np.stack([ids * 64, ids, ids], 2)).save(path),
        ["mode RGB", "3 of them", "(64, 1, 1)", "replace each color by the id of its class"],
    ),
    "fractions.tif": (
        lambda path, ids: Image.fromarray(ids / np.float32(2)).save(path),
        ["floats (mode F), such as 0.5", "whole numbers"],
    ),
    "nan.tif": (
        lambda path, ids: Image.fromarray(np.where(ids == 1, np.nan, ids).astype(np.float32)).save(
            path
        ),
        ["such as nan"],
    ),
    "mask.jpg": (lambda path, ids: Image.fromarray(ids).save(path), ["format JPEG", "PNG"]),
    "mask.webp": (lambda path, ids: Image.fromarray(ids).save(path), ["format WEBP", "PNG"]),
    "mask.avif": (lambda path, ids: Image.fromarray(ids).save(path), ["format AVIF", "PNG"]),
    "mask.jp2": (lambda path, ids: Image.fromarray(ids).save(path), ["format JPEG2000", "PNG"]),
    "mask.gif": (lambda path, ids: Image.fromarray(ids * 2).save(path), ["GIF", "renumber"]),
    "transparent.png": (transparent, ["mode LA", "transparent pixels"]),
    "rgb16.png": (
        lambda path, ids: write_png(path, np.stack([ids] * 3, 2), 16, 2),
        ["16 bits", "upper 8 bits"],
    ),
    "cmyk.tif": (
        lambda path, ids: Image.fromarray(ids).convert("CMYK").save(path),
        ["mode CMYK", "replace each color"],
    ),
    "pages.tif": (
        lambda path, ids: write_tiff(path, ids, 8, subfile_types=(0, 0)),
        ["2 pages or frames"],
    ),
    "two-grays.bmp": (
        lambda path, ids: write_bmp(path, ids // 2, 8, [(0, 0, 0), (255, 255, 255)]),
        ["BMP of 8 bits"],
    ),
    "scaled.png": (lambda path, ids: Image.fromarray(ids * 100).save(path), ["ids 100, 200"]),
    "large.tif": (
        lambda path, ids: write_tiff(path, ids.astype(np.int64) * (2**31), 32, order="<"),
        [f"ids {2**31}"],
    ),
    "negative.tif": (
        lambda path, ids: write_tiff(path, -(ids.astype(int)), 8, sample_format=2),
        ["ids -2, -1"],
    ),
    "other-size.png": (
        lambda path, ids: Image.fromarray(ids[:-1]).save(path),
        ["is 32 x 23 pixels", "is 32 x 24"],
    ),
    "empty.png": (lambda path, ids: path.write_bytes(b""), ["the file is empty"]),
    "cut.png": (
        lambda path, ids: (png(8)(path, ids), path.write_bytes(path.read_bytes()[:-60])),
        ["cannot read the mask"],
    ),
    "folder.png": (lambda path, ids: path.mkdir(), ["is a folder"]),
}
