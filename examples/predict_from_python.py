"""The trainer from Python: train a network, or take a trained one, and predict pictures as arrays.

    python predict_from_python.py                             # trains for a minute on a CPU
    python predict_from_python.py --run RUN_FOLDER a.jpg b.jpg

`cac_ext.train` has a function for each command that trains, evaluates or predicts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from cac_ext import train

QUICK = ["schedule.epochs=2", "schedule.warmup_epochs=1", "schedule.iterations_per_epoch=50"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the share of each class in each picture, and the mIoU of a network it trains."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", help="folder of a trained run (default: train one)")
    parser.add_argument("images", nargs="*", help="files (default: noise)")
    options = parser.parse_args(arguments)

    folder = options.run
    if folder is None:
        result = train.train(train.load_config("synthetic", QUICK))
        print(f"mIoU {100 * result.miou:.2f}")
        folder = result.folder
    run = train.load_run(folder)
    images = options.images or [np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)]
    # The mean of two scales, each mirrored too; without it, one pass over the image.
    inference = train.Inference(scales=(1.0, 1.5), flip=True)
    for image, classes in zip(
        images, train.predict_all(run, images, inference=inference), strict=True
    ):
        shares = np.bincount(classes.ravel(), minlength=run.classes.num_classes) / classes.size
        named = zip(run.classes.class_names, shares, strict=True)
        shown = ", ".join(f"{name} {share:.1%}" for name, share in named if share)
        print(f"{image if isinstance(image, str) else 'noise'}: {shown}")


if __name__ == "__main__":
    main()
