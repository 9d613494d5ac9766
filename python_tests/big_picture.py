"""Peak memory of predicting a large image by windows, in a process of its own.

    python python_tests/big_picture.py 20000

draws an image of that side, predicts it with a network that costs nearly nothing, writes class ids,
colors and overlay as `cac-ext predict` does, and prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from cac_ext.train.config import load
from cac_ext.train.data.classes import Classes
from cac_ext.train.inference import Inference
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runs.folder import Run
from cac_ext.train.runs.predictions import plan, predict_files

_TILE = 500  # pixels


class Colors(nn.Module):
    """The image itself as features."""

    out_channels, stride = 3, 1

    def forward(self, images: Tensor) -> Tensor:
        return images.clone()


def draw(path: Path, side: int) -> None:
    """Writes an image of large squares."""
    picture = Image.new("RGB", (side, side))
    for top in range(0, side, _TILE):
        for left in range(0, side, _TILE):
            color = (top * 7 % 256, left * 5 % 256, (top + left) % 256)
            picture.paste(color, (left, top, left + _TILE, top + _TILE))
    picture.save(path, compress_level=1)


def resident_bytes() -> int:
    """Memory of this process now; its peak if the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * resource.getpagesize()


def peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", type=int, help="of the image in pixels")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--window", type=int, default=513)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = SegmentationNetwork(Colors(), nn.Conv2d(3, options.classes, 1)).eval()
    classes = Classes([f"class {k}" for k in range(options.classes)], 255, None)
    config = load("synthetic", [f"data.max_image_pixels={options.side**2}"])
    inference = Inference(window=options.window)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, classes, network, 0, Path(folder))
        path = Path(folder) / "image.png"
        # In a process of its own: drawing takes memory, too.
        drawing = multiprocessing.get_context("spawn").Process(
            target=draw, args=(path, options.side)
        )
        drawing.start()
        drawing.join()
        small = Path(folder) / "small.png"
        draw(small, options.window + 1)
        for image in (small, path):  # the small one loads what is loaded on first use
            began, before = time.monotonic(), resident_bytes()
            found = plan([image], Path(folder) / "out", overwrite=True)
            failures = predict_files(run, found.jobs, inference, progress=image == path)
            assert not failures, failures
        with Image.open(Path(folder) / "out" / "ids" / "small.png") as ids:
            assert ids.size == (options.window + 1,) * 2
    result = {
        "side": options.side,
        "classes": options.classes,
        "window": options.window,
        "growth_mib": round((peak_bytes() - before) / 2**20),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
