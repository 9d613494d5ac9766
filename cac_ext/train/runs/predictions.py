"""Predictions of images in files, into files: class ids, colours, overlays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as VF

from cac_ext.train.errors import DataError
from cac_ext.train.figures.panels import colour_mask
from cac_ext.train.inference import Inference, predict
from cac_ext.train.runs.folder import Run
from cac_ext.train.runtime.progress import Progress

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}
_KINDS = ("ids", "colours", "overlays")
_OVERLAY = 0.5  # share of the colours in an overlay


@dataclass(frozen=True)
class Job:
    """An image and where its predictions go."""

    image: Path
    targets: dict[str, Path]  # kind -> file


def plan(inputs: Sequence[Path], output: Path, *, overwrite: bool) -> list[Job]:
    """The images to predict: files as they are, folders with all images below them.

    An image ``a/b.jpg`` of a folder goes to ``OUTPUT/ids/a/b.png`` and so on.

    Raises:
        DataError: nothing found, two images would share a target, a target exists and
            ``overwrite`` is False, or a target is one of the images, which are never overwritten.
    """
    named: dict[Path, Path] = {}  # path below OUTPUT/KIND -> image
    for given in inputs:
        for image, name in _images(given, output):
            name = name.with_suffix(".png")
            if named.get(name, image) != image:
                raise DataError(f"{named[name]} and {image} would both be written to {name}")
            named[name] = image
    jobs = [
        Job(image, {kind: output / kind / name for kind in _KINDS}) for name, image in named.items()
    ]
    images = {job.image.resolve() for job in jobs}
    for target in (target for job in jobs for target in job.targets.values()):
        if target.resolve() in images:
            raise DataError(f"{target} is one of the images: give another --output")
        if target.exists() and not overwrite:
            raise DataError(f"{target} exists: give another --output, or --overwrite")
    return jobs


def _images(given: Path, output: Path) -> list[tuple[Path, Path]]:
    """(file, its name below the output) of each image that a file or folder stands for."""
    if given.is_file():
        return [(given, Path(given.name))]
    if not given.is_dir():
        raise DataError(f"there is no image or folder {given}")
    written = [(output / kind).resolve() for kind in _KINDS]  # earlier predictions are no inputs
    found = [
        (path, path.relative_to(given))
        for path in sorted(given.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(path.resolve().is_relative_to(folder) for folder in written)
    ]
    if not found:
        raise DataError(f"{given} holds no images ({', '.join(sorted(_SUFFIXES))})")
    return found


def predict_files(
    run: Run, jobs: Sequence[Job], inference: Inference, *, progress: bool = True
) -> list[str]:
    """Predicts and writes all; returns a sentence for each image that could not be read.

    Id masks are single-channel PNGs, of 16 bits where there are more than 256 classes.
    """
    failures = []
    for job in Progress(jobs, "predict", unit="image", disable=not progress):
        try:
            with Image.open(job.image) as picture:
                image = picture.convert("RGB")
        except Exception as error:  # each of Pillow's formats raises its own
            failures.append(f"cannot read the image {job.image}: {error}")
            continue
        mask = predict(run.network, VF.pil_to_tensor(image), inference).cpu()  # [H, W]
        colours = Image.fromarray(colour_mask(mask, run.classes))
        pictures = {
            "ids": Image.fromarray(_ids(mask, run.classes.num_classes)),
            "colours": colours,
            "overlays": Image.blend(image, colours, _OVERLAY),
        }
        for kind, target in job.targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            pictures[kind].save(target)
    return failures


def _ids(mask: torch.Tensor, num_classes: int) -> np.ndarray:
    return mask.numpy().astype(np.uint8 if num_classes <= 256 else np.uint16)
