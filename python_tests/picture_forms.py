"""Images in every form that is read, and in forms that are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from folder_run import scene
from image_trees import SIZE
from picture_files import write_bmp, write_png, write_tiff
from PIL import Image

#: Writes RGB ``[H, W, 3]`` to a file and returns what the file shows.
PictureWriter = Callable[[Path, np.ndarray], np.ndarray]


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def sixteen(values: np.ndarray) -> np.ndarray:
    """8-bit values as the same shades in 16 bits."""
    return values.astype(np.uint16) * 257


def pillow(mode: str, **options: object) -> PictureWriter:
    """A writer by Pillow from RGB, which returns the converted picture."""

    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(rgb).convert(mode)
        picture.save(path, **options)
        return np.array(picture.convert("RGB"))

    return write


def with_alpha(mode: str) -> PictureWriter:
    """Half of the pixels are transparent; the colors beneath them count."""

    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(rgb).convert(mode.removesuffix("A"))
        alpha = np.zeros(rgb.shape[:2], np.uint8)
        alpha[:, ::2] = 255
        expected = np.array(picture.convert("RGB"))
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(alpha))
        picture.save(path)
        return expected

    return write


def transparent_palette(path: Path, rgb: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    picture.save(path, transparency=bytes(range(16)))
    return np.array(picture.convert("RGB"))


def gray_png(bits: int, color_type: int = 0) -> PictureWriter:
    """Gray values of a depth; for color types with alpha, transparent ones."""

    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        top = (1 << bits) - 1
        stored = np.rint(rgb[..., 0] / 255 * top).astype(np.uint16)
        samples = stored if color_type == 0 else np.stack([stored, stored // 2], axis=2)
        write_png(path, samples, bits, color_type)
        return as_rgb(np.rint(stored.astype(float) * 255 / top).astype(np.uint8))

    return write


def rgb_png_16(path: Path, rgb: np.ndarray) -> np.ndarray:
    write_png(path, sixteen(rgb), 16, 2)
    return rgb


def gray_tiff(bits: int, **options: object) -> PictureWriter:
    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        top = (1 << bits) - 1
        shown = np.rint(rgb[..., 0] / 255 * top).astype(np.uint16)
        stored = top - shown if options.get("white_is_zero") else shown
        write_tiff(path, stored, bits, **options)
        return as_rgb(np.rint(shown.astype(float) * 255 / top).astype(np.uint8))

    return write


def rgb_tiff_16(order: str) -> PictureWriter:
    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        write_tiff(path, sixteen(rgb), 16, order=order)
        return rgb

    return write


def packed_tiff_16(path: Path, rgb: np.ndarray) -> np.ndarray:
    Image.fromarray(sixteen(rgb[..., 0])).save(path, compression="tiff_lzw")
    return as_rgb(rgb[..., 0])


def lab_tiff(path: Path, rgb: np.ndarray) -> np.ndarray:
    """Grays: lightness alone, of CIE Lab."""
    lightness = np.linspace(0, 100, SIZE[1])
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    shown = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    bands = [np.full(SIZE, np.rint(lightness * 2.55)), np.full(SIZE, 128), np.full(SIZE, 128)]
    Image.merge("LAB", [Image.fromarray(band.astype(np.uint8)) for band in bands]).save(path)
    return as_rgb(np.broadcast_to(np.rint(shown), SIZE).astype(np.uint8))


def pgm(maximum: int) -> PictureWriter:
    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        stored = np.rint(rgb[..., 0] / 255 * maximum).astype(int)
        data = stored.astype(np.uint8 if maximum < 256 else ">u2").tobytes()
        path.write_bytes(f"P5 {SIZE[1]} {SIZE[0]} {maximum}\n".encode() + data)
        return as_rgb(np.rint(stored * 255 / maximum).astype(np.uint8))

    return write


def reduced_copy_tiff(path: Path, rgb: np.ndarray) -> np.ndarray:
    write_tiff(path, rgb, 8, subfile_types=(0, 1, 4))
    return rgb


def camera_mpo(path: Path, rgb: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(rgb)
    preview = picture.resize((8, 6))
    picture.save(path, format="MPO", save_all=True, append_images=[preview], quality=100)
    return rgb


#: name of the file -> (its writer, largest difference between the read and the shown image)
FORMS = {
    "8.png": (pillow("RGB"), 0),
    "gray.png": (pillow("L"), 0),
    "1bit.png": (pillow("1"), 0),
    "2bit.png": (gray_png(2), 0),
    "4bit.png": (gray_png(4), 0),
    "16bit.png": (gray_png(16), 0),
    "16bit-alpha.png": (gray_png(16, 4), 1),
    "16bit-rgb.png": (rgb_png_16, 1),
    "palette.png": (pillow("P"), 0),
    "palette-transparent.png": (transparent_palette, 0),
    "la.png": (with_alpha("LA"), 0),
    "rgba.png": (with_alpha("RGBA"), 0),
    "la.tif": (with_alpha("LA"), 0),
    "rgba.tiff": (with_alpha("RGBA"), 0),
    "8.tif": (pillow("RGB", compression="tiff_deflate"), 0),
    "cmyk.tif": (pillow("CMYK"), 1),
    "ycc.tif": (pillow("YCbCr"), 1),
    "lab.tif": (lab_tiff, 8),
    "4bit.tif": (gray_tiff(4), 0),
    "white-is-zero.tif": (gray_tiff(8, white_is_zero=True), 0),
    "12bit.tif": (gray_tiff(12), 1),
    "16bit.tif": (gray_tiff(16), 0),
    "16bit-big-endian.TIF": (gray_tiff(16, order=">"), 0),
    "16bit-white-is-zero.tif": (gray_tiff(16, white_is_zero=True), 0),
    "16bit-packed.tif": (packed_tiff_16, 0),
    "16bit-rgb.tif": (rgb_tiff_16("<"), 1),
    "16bit-rgb-big-endian.tif": (rgb_tiff_16(">"), 1),
    "overviews.tif": (reduced_copy_tiff, 0),
    "15.pgm": (pgm(15), 1),
    "255.pgm": (pgm(255), 0),
    "1023.pgm": (pgm(1023), 1),
    "65535.pgm": (pgm(65535), 0),
    "8.ppm": (pillow("RGB"), 0),
    "8.bmp": (pillow("RGB"), 0),
    "8.gif": (pillow("P"), 0),
    "8.jfif": (pillow("RGB", format="JPEG", quality=100, subsampling=0), 6),
    "cmyk.jpg": (pillow("CMYK", quality=100, subsampling=0), 8),
    "camera.jpeg": (camera_mpo, 40),
    "8.webp": (pillow("RGB", lossless=True), 0),
    "8.jp2": (pillow("RGB"), 0),
    "16bit.jp2": (
        lambda path, rgb: (
            Image.fromarray(sixteen(rgb[..., 0])).save(path),
            as_rgb(rgb[..., 0]),
        )[1],
        0,
    ),
    "8.avif": (pillow("RGB", quality=100, subsampling="4:4:4"), 12),
}


def float_tiff(path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(SIZE)).save(path)


def animation(path: Path) -> None:
    frames = [Image.new("RGB", SIZE[::-1], (k, 0, 0)) for k in (0, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


REFUSED = {
    "float.tif": (float_tiff, ["mode F", "from 0 to 1", "scale it"]),
    "float.pfm": (float_tiff, ["mode F", "scale it"]),
    "int32.tif": (
        lambda path: Image.fromarray(np.full(SIZE, 70000, np.int32)).save(path),
        ["mode I", "int32", "70000"],
    ),
    "signed16.tif": (
        lambda path: write_tiff(path, np.full(SIZE, -5), 16, sample_format=2),
        ["from -5 to -5", "without sign"],
    ),
    "signed8.tif": (
        lambda path: write_tiff(path, np.full(SIZE, -5), 8, sample_format=2),
        ["int8", "from -5 to -5"],
    ),
    "pages.tif": (
        lambda path: write_tiff(path, np.zeros(SIZE, int), 8, subfile_types=(0, 0, 0)),
        ["3 pages or frames"],
    ),
    "moves.gif": (animation, ["2 pages or frames"]),
    "moves.png": (animation, ["2 pages or frames"]),
    "moves.webp": (animation, ["2 pages or frames"]),
    "two-grays.bmp": (
        lambda path: write_bmp(path, np.ones(SIZE, int), 8, [(0, 0, 0), (255, 255, 255)]),
        ["BMP of 8 bits", "save it as a PNG"],
    ),
    "empty.png": (lambda path: path.write_bytes(b""), ["the file is empty"]),
    "text.png": (lambda path: path.write_text("version https://git-lfs"), ["b'version https://g"]),
    "cut.jpg": (
        lambda path: (
            Image.new("RGB", SIZE[::-1]).save(path),
            path.write_bytes(path.read_bytes()[:-99]),
        ),
        ["runcated"],
    ),
    "cut.png": (
        lambda path: (
            rgb_png_16(path, scene(np.random.default_rng(0))),
            path.write_bytes(path.read_bytes()[:-99]),
        ),
        ["cannot read"],
    ),
    "cut.tif": (
        lambda path: (
            write_tiff(path, np.zeros(SIZE, int), 8),
            path.write_bytes(path.read_bytes()[:-99]),
        ),
        ["cannot read"],
    ),
    "folder.jpg": (lambda path: path.mkdir(), ["is a folder"]),
    "pipe.jpg": (os.mkfifo, ["is no regular file"]),
    "link.jpg": (lambda path: path.symlink_to("nowhere.jpg"), ["there is no image", "nowhere.jpg"]),
}
