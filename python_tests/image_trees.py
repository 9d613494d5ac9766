"""Small data sets in the layouts of the real ones, drawn by the tests that read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)  # height and width of an image


def draw_image(path: Path, rng: np.random.Generator, size: tuple[int, int] = SIZE) -> None:
    """Writes an image of noise; JPEG or PNG by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)


def draw_mask(
    path: Path,
    rng: np.random.Generator,
    ids: int | list[int],
    size: tuple[int, int] = SIZE,
    palette: list[int] | None = None,
) -> np.ndarray:
    """Writes and returns a mask ``[H, W]`` of random ids (below ``ids``, or of the list)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = rng.choice(ids, size).astype(np.uint8)
    picture = Image.fromarray(mask)
    if palette is not None:
        picture = picture.convert("P")
        picture.putpalette(palette)
        picture.putdata(mask.flatten().tolist())
    picture.save(path)
    return mask


def voc_tree(root: Path, rng: np.random.Generator, train: int, validation: int) -> list[str]:
    """VOC 2012 with SegmentationClassAug; returns the ids, those of the training images first."""
    ids = [f"2007_{number:06d}" for number in range(train + validation)]
    for name in ids:
        draw_image(root / f"JPEGImages/{name}.jpg", rng)
        draw_mask(root / f"SegmentationClassAug/{name}.png", rng, [*range(21), 255])
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in ids[train:]))
    return ids


def cityscapes_tree(root: Path, rng: np.random.Generator, mask: str, ids: list[int]) -> None:
    """Two training cities of two images and one of validation, masks named ``..._gtFine_MASK``."""
    for part, city, count in (("train", "aachen", 2), ("train", "ulm", 2), ("val", "lindau", 1)):
        for number in range(count):
            stem = f"{part}/{city}/{city}_{number:06d}_000019"
            draw_image(root / f"leftImg8bit/{stem}_leftImg8bit.png", rng)
            draw_mask(root / f"gtFine/{stem}_gtFine_{mask}.png", rng, ids)


def folder_tree(root: Path, rng: np.random.Generator, train: int, validation: int) -> None:
    """A folder with list files of three classes: ``train.txt`` and ``val.txt``."""
    for part, count in (("train", train), ("val", validation)):
        lines = []
        for number in range(count):
            image, mask = f"images/{part}{number}.png", f"masks/{part}{number}.png"
            draw_image(root / image, rng)
            draw_mask(root / mask, rng, [0, 1, 2, 255])
            lines.append(f"{image} {mask}\n")
        (root / f"{part}.txt").write_text("".join(lines))


def folder_overrides(root: Path) -> list[str]:
    """Settings that read a `folder_tree`."""
    return [
        f"data.root={root}",
        "data.labelled_list=train.txt",
        "data.validation_list=val.txt",
        "data.num_classes=3",
    ]
