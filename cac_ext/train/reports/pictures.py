"""Validation images with truth and predictions, as pictures inside of the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.errors import UserError
from cac_ext.train.figures.panels import (
    as_rgb,
    class_colors,
    color_mask,
    confusion_figure,
    spread,
)
from cac_ext.train.inference import configured_inference, predict, smallest_dtype
from cac_ext.train.reports.facts import RunFacts
from cac_ext.train.runs.folder import Run, load_run, require_same_classes

_LONGEST_SIDE = 480  # pixels of a picture in the page
_IN_LEGEND = 40  # most classes


class Picture(NamedTuple):
    """A picture inside of the page: its data URI, its size in pixels, and what it shows."""

    uri: str
    width: int
    height: int
    text: str


class PictureRow(NamedTuple):
    """An image, its truth, and the prediction of each column."""

    name: str
    pictures: Sequence[Picture]


@dataclass
class PictureGroup:
    """The pictures of the runs that have the same validation images.

    Attributes:
        columns: their titles: image, truth, runs.
        runs: for each column the number of its run; None for image and truth.
        rows: the images.
        legend: name and color of the classes.
        finished: pictures that runs drew when they ended, in place of rows that cannot be made.
    """

    columns: list[str] = field(default_factory=list)
    runs: list[int | None] = field(default_factory=list)
    rows: list[PictureRow] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    finished: list[Picture] = field(default_factory=list)


def draw_pictures(
    runs: Sequence[RunFacts], overrides: Sequence[str], count: int
) -> tuple[list[PictureGroup], Mapping[int, str]]:
    """Predicts ``count`` validation images, spread evenly, with the last network of each run.

    Args:
        runs: a group of pictures is made for those with the same validation images.
        overrides: ``key=value`` of data, evaluation and device, for all runs.
        count: number of images.

    Returns:
        The groups; and by the number of a run, the reason why it has no predictions.
    """
    alike: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        alike.setdefault(run.validation_data, []).append(number)
    failures: dict[int, str] = {}
    groups = []
    for numbers in alike.values():
        group = PictureGroup()
        for number in numbers:
            try:
                _add_run(group, runs[number], number, overrides, count)
            except (UserError, OSError) as error:
                failures[number] = str(error)
                drawn = _drawn_at_the_end(runs[number])
                group.finished += [drawn] if drawn is not None else []
        if group.rows or group.finished:
            groups.append(group)
    return groups, failures


def _add_run(
    group: PictureGroup, facts: RunFacts, number: int, overrides: Sequence[str], count: int
) -> None:
    """Adds a column of predictions; with the first one, the columns of images and truth."""
    run = load_run(facts.folder, overrides)
    splits = build_datasets(run.config.data)
    require_same_classes(run, splits)
    rows = []
    for place, index in enumerate(spread(len(splits.validation), count)):
        sample = splits.validation[index]
        if group.rows:
            row = group.rows[place]
        else:
            truth = _mask(sample["mask"], splits, f"truth of {sample['name']}")
            row = PictureRow(sample["name"], [_photo(sample["image"], sample["name"]), truth])
        found = _prediction(run, splits, sample["image"], f"{facts.title}: {sample['name']}")
        rows.append(PictureRow(row.name, [*row.pictures, found]))
    if not group.rows:
        group.columns, group.runs = ["image", "truth"], [None, None]
        group.legend = class_legend(splits)
    group.rows = rows
    group.columns.append(f"{facts.title}, iteration {run.iteration}")
    group.runs.append(number)


def class_legend(splits: DatasetSplits) -> list[tuple[str, str]]:
    """Name and ``#rrggbb`` of each class, of very many the first ones."""
    colors = [hex_color(color) for color in class_colors(splits)]
    legend = list(zip(splits.class_names, colors, strict=True))
    more = len(legend) - _IN_LEGEND
    return legend[:_IN_LEGEND] + ([(f"and {more} more", "")] if more > 0 else [])


def hex_color(color: Sequence[int] | npt.NDArray[np.uint8]) -> str:
    """RGB as ``#rrggbb``."""
    return "#" + "".join(f"{int(part):02x}" for part in color)


def png(path: Path, text: str) -> Picture:
    """A picture file as it is."""
    with Image.open(path) as image:
        width, height = image.size
    return Picture(_uri("png", path.read_bytes()), width, height, text)


def confusion_picture(pixels: npt.NDArray[np.int64], names: Sequence[str], text: str) -> Picture:
    """A confusion matrix ``[K, K]`` of many classes."""
    file = BytesIO()
    figure = confusion_figure(torch.from_numpy(pixels), names)
    figure.savefig(file, dpi=80, format="png")
    width, height = figure.canvas.get_width_height()
    return Picture(_uri("png", file.getvalue()), width, height, text)


def _drawn_at_the_end(facts: RunFacts) -> Picture | None:
    path = facts.folder / "picture.png"
    text = f"{facts.title}: images, truth and predictions at the end of the training"
    return png(path, text) if path.is_file() else None


def _prediction(run: Run, splits: DatasetSplits, image: Tensor, text: str) -> Picture:
    inference = configured_inference(run.config)
    dtype = smallest_dtype(splits.num_classes)
    return _mask(predict(run.network, image, inference, dtype=dtype), splits, text)


def _photo(image: Tensor, text: str) -> Picture:
    """``[C, H, W]`` uint8 as JPEG."""
    photo = Image.fromarray(as_rgb(image).permute(1, 2, 0).contiguous().numpy())
    photo = photo.resize(_size(photo), Image.Resampling.BOX)
    return _encoded(photo, "jpeg", text)


def _mask(ids: Tensor, splits: DatasetSplits, text: str) -> Picture:
    """Class ids ``[H, W]`` as PNG in the colors of the classes."""
    step = max(1, max(ids.shape) // (2 * _LONGEST_SIDE))  # so that a huge mask is not colored whole
    colored = Image.fromarray(color_mask(ids.as_subclass(Tensor)[::step, ::step], splits))
    colored = colored.resize(_size(colored), Image.Resampling.NEAREST)
    if splits.num_classes < 256:  # colors of a palette take half of the space
        colored = colored.quantize(256, dither=Image.Dither.NONE)
    return _encoded(colored, "png", text)


def _size(image: Image.Image) -> tuple[int, int]:
    """At most `_LONGEST_SIDE`, with the proportions of the image."""
    scale = min(1, _LONGEST_SIDE / max(image.size))
    width, height = (max(1, round(scale * side)) for side in image.size)
    return width, height


def _encoded(image: Image.Image, kind: str, text: str) -> Picture:
    file = BytesIO()
    image.save(file, kind, quality=85, optimize=True)
    return Picture(_uri(kind, file.getvalue()), *image.size, text)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
