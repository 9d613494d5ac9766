"""Picture files that Pillow does not write, made byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_tiff(
    path: Path,
    samples: np.ndarray,
    bits: int,
    *,
    order: str = "<",
    white_is_zero: bool = False,
    sample_format: int = 1,
    subfile_types: Sequence[int] = (0,),
) -> None:
    """An uncompressed TIFF of gray ``[H, W]`` or RGB ``[H, W, 3]`` samples.

    Args:
        path: of the file.
        samples: numbers that fit ``bits``.
        bits: of a sample: 1, 2, 4, 8, 12, 16 or 32.
        order: of the bytes, "<" or ">".
        white_is_zero: whether 0 stands for white.
        sample_format: 1 unsigned, 2 signed, 3 float.
        subfile_types: NewSubfileType of each page; all show the same.
    """
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    rows = samples.reshape(height, -1)
    if bits >= 8 and bits != 12:
        kind = {1: "u", 2: "i", 3: "f"}[sample_format]
        data = rows.astype(f"{order}{kind}{bits // 8}").tobytes()
    else:
        digits = ["".join(f"{value:0{bits}b}" for value in row) for row in rows.tolist()]
        padded = [row + "0" * (-len(row) % 8) for row in digits]
        data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in padded)
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    for number, subfile_type in enumerate(subfile_types, 1):
        photometric = 2 if channels == 3 else int(not white_is_zero)
        entries = 11
        extra = len(content) + 2 + 12 * entries + 4  # of values that do not fit in the directory
        values = [
            (254, 4, [subfile_type]),
            (256, 4, [width]),
            (257, 4, [height]),
            (258, 3, [bits] * channels),
            (259, 3, [1]),
            (262, 3, [photometric]),
            (273, 4, [0]),
            (277, 3, [channels]),
            (278, 4, [height]),
            (279, 4, [len(data)]),
            (339, 3, [sample_format] * channels),
        ]
        behind, packed = b"", []
        for tag, kind, numbers in values:
            value = b"".join(struct.pack(order + {3: "H", 4: "I"}[kind], n) for n in numbers)
            if len(value) > 4:
                offset, behind = extra + len(behind), behind + value + b"\0" * (len(value) % 2)
                value = struct.pack(order + "I", offset)
            packed.append([tag, kind, len(numbers), value.ljust(4, b"\0")])
        place = extra + len(behind)
        packed[6][3] = struct.pack(order + "I", place)
        end = place + len(data) + len(data) % 2
        directory = struct.pack(order + "H", entries)
        for tag, kind, count, value in packed:
            directory += struct.pack(order + "HHI", tag, kind, count) + value
        directory += struct.pack(order + "I", end if number < len(subfile_types) else 0)
        content += directory + behind + data + b"\0" * (len(data) % 2)
    path.write_bytes(content)


def write_png(
    path: Path,
    samples: np.ndarray,
    bits: int,
    color_type: int = 0,
    *,
    before: Sequence[tuple[bytes, bytes]] = (),
    behind: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """A PNG of samples ``[H, W]`` or ``[H, W, channels]`` that fit ``bits``.

    Args:
        path: of the file.
        samples: numbers.
        bits: of a sample: 1, 2, 4, 8, 16.
        color_type: of PNG: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
        before, behind: chunks (name, content) in front of the pixels and after them.
    """
    height, width = samples.shape[:2]
    lines = []
    for row in samples.reshape(height, -1).tolist():
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)
        lines.append(b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big"))
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        *before,
        (b"IDAT", zlib.compress(b"".join(lines))),
        *behind,
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        checksum = zlib.crc32(name + data)
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
    path.write_bytes(content)


def write_bmp(path: Path, ids: np.ndarray, bits: int, palette: Sequence[Sequence[int]]) -> None:
    """A BMP of 4 or 8 bits with a palette of RGB; ``ids`` are ``[H, W]``."""
    height, width = ids.shape
    rows = []
    for row in ids.tolist()[::-1]:
        if bits == 4:
            row = [*row, 0] if width % 2 else row
            row = [16 * row[k] + row[k + 1] for k in range(0, len(row), 2)]
        rows.append(bytes(row) + b"\0" * (-len(row) % 4))
    data = b"".join(rows)
    colors = b"".join(bytes([blue, green, red, 0]) for red, green, blue in palette)
    offset = 14 + 40 + len(colors)
    sizes = (40, width, height, 1, bits, 0, len(data), 0, 0, len(palette), 0)
    head = b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset)
    path.write_bytes(head + struct.pack("<IiiHHIIiiII", *sizes) + colors + data)


def exif_bytes(orientation: int) -> bytes:
    """The content of an eXIf chunk that holds an orientation alone."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """``[H, W, ...]`` as it must be stored so that the EXIF orientation makes it upright.

    In the standard's words: where row 0 and column 0 of the stored picture lie in the upright one.
    """
    swapped = np.swapaxes(upright, 0, 1)
    return {
        1: upright,  # row 0 is the top, column 0 the left side
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: swapped,  # left, top
        6: swapped[::-1],  # right, top
        7: swapped[::-1, ::-1],  # right, bottom
        8: swapped[:, ::-1],  # left, bottom
    }[orientation]
