"""Your own images and masks: from a folder to a trained network and pictures of its predictions.

From this folder, in a minute on a CPU::

    python train_your_folder.py                     # makes a folder of little pictures first
    python train_your_folder.py --folder DIR        # the same, kept in DIR
    python train_your_folder.py --folder DIR schedule.epochs=10

Lay out your data like the folder it makes: ``images/``, ``masks/`` (single-channel PNGs of class
ids, 255 for pixels that do not count), and three lists with a line for each image::

    labelled.txt, validation.txt    images/0.png masks/0.png
    unlabelled.txt                  images/8.png

``cac-ext data check`` with the same settings names every fault in such a folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cac_ext import train

CLASSES = ["background", "disk", "box"]
PARTS = {"labelled": 8, "unlabelled": 24, "validation": 8}  # images of each list
SIZE = 96  # pixels
QUICK = [
    "augment.crop_size=65",
    "network.width=32",
    "schedule.epochs=3",
    "schedule.iterations_per_epoch=40",
    "schedule.warmup_epochs=1",
]


def draw(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An image with a disk and a box on noise, and its mask of class ids."""
    noise = rng.integers(0, 90, (SIZE, SIZE, 3)) + rng.integers(0, 90, 3)
    image, mask = Image.fromarray(noise.astype(np.uint8)), Image.new("L", (SIZE, SIZE))
    for class_id in rng.permutation([1, 2]):
        left, top = rng.integers(0, SIZE * 2 // 3, 2).tolist()
        place = (left, top, left + SIZE // 3, top + SIZE // 3)
        color = tuple(rng.integers(90, 256, 3).tolist())
        for picture, fill in ((image, color), (mask, int(class_id))):
            pen = ImageDraw.Draw(picture)
            (pen.ellipse if class_id == 1 else pen.rectangle)(place, fill=fill)
    return image, mask


def make_folder(root: Path) -> None:
    """Writes ``images/``, ``masks/`` and the three lists."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    number = 0
    for part, count in PARTS.items():
        lines = []
        for _ in range(count):
            image, mask = draw(rng)
            names = [f"images/{number}.png", f"masks/{number}.png"]
            image.save(root / names[0])
            if part == "unlabelled":
                names = names[:1]
            else:
                mask.save(root / names[1])
            lines.append(" ".join(names) + "\n")
            number += 1
        (root / f"{part}.txt").write_text("".join(lines), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, prints the IoU of each class, and names the picture of the predictions."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of the data (default: a temporary one)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings")
    options = parser.parse_args(arguments)
    root = options.folder or Path(tempfile.mkdtemp(prefix="cac-ext-"))
    if not (root / "labelled.txt").exists():
        make_folder(root)
        print(f"made {sum(PARTS.values())} images in {root}")
    config = train.load_config(
        "folder",
        [
            f"data.root={root}",
            "data.labelled_list=labelled.txt",
            "data.unlabelled_list=unlabelled.txt",
            "data.validation_list=validation.txt",
            f"data.num_classes={len(CLASSES)}",
            f"data.class_names=[{','.join(CLASSES)}]",
            *QUICK,
            *options.overrides,
        ],
    )
    result = train.train(config)
    print(train.evaluate_run(train.load_run(result.folder)))
    print(f"image, truth and prediction: {result.folder / 'picture.png'}")


if __name__ == "__main__":
    main()
