"""Predicts image files into files of class ids, colors and overlays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from cac_ext.train.data.classes import Classes
from cac_ext.train.data.files.find_images import describe_left_out, find_images
from cac_ext.train.data.files.images import RGB_FILES, ImageForm, read_image
from cac_ext.train.data.files.pictures import picture_of_ids
from cac_ext.train.errors import DataError
from cac_ext.train.figures.panels import as_rgb, color_mask
from cac_ext.train.inference import Inference, predict, smallest_dtype
from cac_ext.train.runs.folder import Run
from cac_ext.train.runtime.bands import bands
from cac_ext.train.runtime.progress import Progress

_KINDS = ("ids", "colors", "overlays")
_OVERLAY = 0.5  # share of the class colors in an overlay


@dataclass(frozen=True)
class Job:
    """An image and the files of its predictions."""

    image: Path
    targets: dict[str, Path]  # kind -> file


@dataclass(frozen=True)
class Plan:
    """The result of `plan`.

    Attributes:
        jobs: the images to predict.
        unreadable: a sentence for each folder or link that cannot be read and may hold more images.
        remarks: a sentence for each folder with files that are no images.
    """

    jobs: list[Job]
    unreadable: list[str]
    remarks: list[str]


def plan(
    inputs: Sequence[Path], output: Path, *, overwrite: bool, form: ImageForm = RGB_FILES
) -> Plan:
    """Lists the images to predict: the given files, and all images below the given folders.

    An image ``a/b.jpg`` of a folder goes to ``OUTPUT/ids/a/b.png`` and so on. Beside a ``b.tif`` it
    goes to ``b.jpg.png``, and the other to ``b.tif.png``. Hidden files are left out. ``form`` says
    what images hold, and so which suffixes they have.

    Raises:
        DataError: there is no image, two images would share a target, a target exists and
            ``overwrite`` is False, or a target is one of the images (these are never overwritten).
    """
    found = Plan([], [], [])
    named: dict[Path, Path] = {}  # name below an input -> image
    for given in inputs:
        for image, name in _images(given, output, found, form):
            if named.get(name, image) != image:
                raise DataError(
                    f"{named[name]} and {image} would both be written to {name}: predict them into "
                    "different --output folders"
                )
            named[name] = image
    for name, target in _target_names(named).items():
        targets = {kind: output / kind / target for kind in _KINDS}
        found.jobs.append(Job(named[name], targets))
    images = {job.image.resolve() for job in found.jobs}
    for target in (target for job in found.jobs for target in job.targets.values()):
        if target.resolve() in images:
            raise DataError(f"{target} is one of the images to predict: give another --output")
        if target.exists() and not overwrite:
            raise DataError(f"{target} exists: give another --output, or --overwrite to replace it")
    return found


def _target_names(names: Iterable[Path]) -> dict[Path, Path]:
    """``a.jpg`` -> ``a.png``; images that would share a target keep their suffix: ``a.jpg.png``."""
    targets = {name: name.with_suffix(".png") for name in names}
    while True:
        taken = Counter(targets.values())
        shared = [
            name
            for name, target in targets.items()
            if taken[target] > 1 and target != _with_suffix_kept(name)
        ]
        if not shared:
            return targets
        targets |= {name: _with_suffix_kept(name) for name in shared}


def _with_suffix_kept(name: Path) -> Path:
    return name.with_name(f"{name.name}.png")


def _images(given: Path, output: Path, found: Plan, form: ImageForm) -> list[tuple[Path, Path]]:
    """(file, name below the output) of each image in a given file or folder."""
    if not given.is_dir():
        if not given.exists():
            raise DataError(f"there is no image or folder {given}")
        return [(given, Path(given.name))]
    written = [(output / kind).resolve() for kind in _KINDS]  # earlier predictions are not inputs
    listed = find_images(given, lambda folder: folder.resolve() in written, form.suffixes)
    left_out = describe_left_out(listed.left_out) if listed.left_out else ""
    if not listed.images and not listed.unreadable:
        some = ", ".join(s for s in (".png", ".jpg", ".tif", ".webp") if s in form.suffixes)
        raise DataError(f"{given} holds no images ({some}, ...){left_out and f', but {left_out}'}")
    found.unreadable.extend(listed.unreadable)
    if left_out:
        found.remarks.append(f"{given}: left out are {left_out}")
    return [(given / name, name) for name in listed.images]


def predict_files(
    run: Run, jobs: Sequence[Job], inference: Inference, *, progress: bool = True
) -> list[str]:
    """Predicts all images; returns a sentence for each that could not be read or is too large.

    Id masks are single-channel PNGs, of 16 bits for more than 256 classes. Besides class
    probabilities (`inference.predict`), an image takes about eight bytes a pixel: the image itself,
    its ids, and one picture in colors at a time.
    """
    failures, form = [], ImageForm.of(run.config.data)
    dtype = smallest_dtype(run.classes.num_classes)
    for job in Progress(jobs, "predict", unit="image", disable=not progress):
        try:
            image = read_image(job.image, run.config.data.max_image_pixels, form)  # [C, H, W]
            ids = predict(run.network, image, inference, dtype=dtype, progress=progress).cpu()
        except DataError as error:
            failures.append(str(error) if job.image.name in str(error) else f"{job.image}: {error}")
            continue
        for target in job.targets.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        _write(job, image, ids, run.classes)
    return failures


def _write(job: Job, image: Tensor, ids: Tensor, classes: Classes) -> None:
    """Writes the three pictures of an image ``[C, H, W]`` and its class ids ``[H, W]``."""
    picture_of_ids(ids.numpy(), classes.num_classes).save(job.targets["ids"])
    height, width = ids.shape
    picture = Image.new("RGB", (width, height))
    for rows in bands(height, width):
        picture.paste(Image.fromarray(color_mask(ids[rows], classes)), (0, rows.start))
    picture.save(job.targets["colors"])
    for rows in bands(height, width):
        colors = picture.crop((0, rows.start, width, rows.stop))
        below = VF.to_pil_image(as_rgb(image[:, rows]))
        picture.paste(Image.blend(below, colors, _OVERLAY), (0, rows.start))
    picture.save(job.targets["overlays"])
