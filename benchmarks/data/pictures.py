"""The pictures that are loaded: made up, in the sizes of known data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = 21
IGNORE = 255

#: The root of the mean of squares of a scale between 0.5 and 2: a picture at this scale has as many
#: pixels as one at a random scale has on average.
USUAL_SCALE = 1.32
LARGEST_SCALE = 2.0


@dataclass(frozen=True)
class PictureCase:
    """Pictures of one size, and how they are loaded.

    Attributes:
        width, height: of the file, in pixels.
        crop_size: side of the crops.
        base_size: long side before scaling; None for that of the file.
        batch: images of a batch.
    """

    width: int
    height: int
    crop_size: int
    base_size: int | None
    batch: int


#: Crops and long sides are those of the configurations voc and cityscapes; a large picture is
#: scaled from its own size, which is the default.
CASES = {
    "voc": PictureCase(500, 375, 320, 400, 8),
    "cityscapes": PictureCase(2048, 1024, 720, 2048, 4),
    "large": PictureCase(5184, 3456, 320, None, 2),
}
#: Shows in seconds that everything runs; also the warm-up of a memory probe.
TINY = PictureCase(120, 90, 65, None, 2)


@dataclass(frozen=True)
class Files:
    """A JPEG and its mask, a PNG of class ids."""

    image: Path
    mask: Path


def write_files(case: PictureCase, folder: Path, seed: int) -> Files:
    """Draws a picture with edges, gradients and grain, about 3 bits a pixel as JPEG."""
    rng = np.random.default_rng(seed)
    files = Files(folder / f"{case.width}.jpg", folder / f"{case.width}.png")
    size = (case.width, case.height)
    regions = _enlarged(rng, case, 48, Image.Resampling.NEAREST, 1)[..., 0]  # [H, W]
    shades = _enlarged(rng, case, 24, Image.Resampling.BICUBIC, 3)  # [H, W, 3]
    grain = np.tile(rng.integers(0, 24, (256, 256, 1), np.uint8), _repeats(size, 256))
    pixels = shades // 2 + regions[..., None] // 3 + grain[: case.height, : case.width]
    Image.fromarray(pixels).save(files.image, quality=90)
    Image.fromarray(regions % CLASSES).save(files.mask)
    return files


def _enlarged(
    rng: np.random.Generator,
    case: PictureCase,
    cell: int,
    method: Image.Resampling,
    channels: int,
) -> npt.NDArray[np.uint8]:
    """Noise with cells of so many pixels, ``[H, W, channels]``."""
    rows, columns, _ = _repeats((case.width, case.height), cell)
    noise = rng.integers(0, 256, (rows, columns, channels), np.uint8)
    layers = [
        Image.fromarray(noise[..., k]).resize((case.width, case.height), method)
        for k in range(channels)
    ]
    return np.stack([np.asarray(layer) for layer in layers], axis=-1)


def _repeats(size: tuple[int, int], cell: int) -> tuple[int, int, int]:
    """Rows and columns of cells that cover a picture, and one channel."""
    return -(-size[1] // cell), -(-size[0] // cell), 1
