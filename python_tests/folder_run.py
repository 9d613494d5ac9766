"""A training on a small folder of pictures, and data sets of a single image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from image_trees import SIZE, folder_overrides, folder_tree

from cac_ext.train.config import load
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import Entry
from cac_ext.train.loop import train

#: One step of the smallest network.
QUICK = [
    "device=cpu",
    "network.width=16",
    "augment.crop_size=33",
    "schedule.epochs=1",
    "schedule.iterations_per_epoch=1",
    "schedule.warmup_epochs=0",
]
SUPERVISED = ["schedule.labelled_batch=2", "method.unsupervised_weight=0"]


@contextmanager
def trained_on_a_folder(root: Path) -> Iterator[Path]:
    """A run folder below ``root``; its network, of three classes, is nearly random."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder_tree(root, np.random.default_rng(0), 2, 2)
    overrides = [*folder_overrides(root), *QUICK, *SUPERVISED]
    train(load("folder", overrides), root / "run", progress=False)
    yield root / "run"
    torch.set_num_threads(threads)


def one_image(path: Path, mask: Path | None = None, num_classes: int = 3) -> ImageFiles:
    """A data set of one image, as a list would make it."""
    entry = Entry(path.name, path, mask, "list.txt, line 1")
    return ImageFiles(
        path.parent,
        [entry],
        with_masks=mask is not None,
        num_classes=num_classes,
        ignore_index=255,
    )


def scene(rng: np.random.Generator) -> np.ndarray:
    """RGB ``[24, 32, 3]`` of many shades and colors, smooth enough for lossy formats."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    shades = [rows * 255 / (SIZE[0] - 1), columns * 255 / (SIZE[1] - 1), (rows + columns) * 4.0]
    order = rng.permutation(3)
    return np.stack([shades[k] for k in order], axis=2).clip(0, 255).astype(np.uint8)
