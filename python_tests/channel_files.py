"""Folders of images with other than three channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from image_trees import SIZE, draw_mask
from PIL import Image

#: Number of channels -> ending of the files, and settings that read them.
KINDS = {
    1: (".png", ["data.channels=1"]),
    4: (".png", ["data.channels=4"]),
    5: (".npy", ["data.channels=5", "data.value_low=[-1]", "data.value_high=[1,1,1,1,3]"]),
}


def draw_channels(path: Path, rng: np.random.Generator, channels: int) -> np.ndarray:
    """Writes noise: gray or RGBA pictures, or floats of five channels; returns ``[H, W, C]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        values = rng.uniform(-1, 1, (*SIZE, channels)).astype(np.float32)
        np.save(path, values)
        return values
    values = rng.integers(0, 256, (*SIZE, channels), np.uint8)
    Image.fromarray(values.squeeze()).save(path)
    return values


def channel_tree(root: Path, rng: np.random.Generator, channels: int) -> list[str]:
    """Two labelled, two unlabelled, two validation images of three classes; their settings."""
    suffix, settings = KINDS[channels]
    for part in ("train", "more", "val"):
        lines = []
        for number in range(2):
            image, mask = f"{part}/{number}{suffix}", f"masks/{part}{number}.png"
            draw_channels(root / image, rng, channels)
            draw_mask(root / mask, rng, [0, 1, 2, 255])
            lines.append(f"{image} {mask}\n")
        (root / f"{part}.txt").write_text("".join(lines))
    return [
        f"data.root={root}",
        "data.labelled_list=train.txt",
        "data.unlabelled_list=more.txt",
        "data.validation_list=val.txt",
        "data.num_classes=3",
        *settings,
    ]
