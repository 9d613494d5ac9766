"""A smaller copy of a data set, so that a processor without a GPU can train on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.errors import UsageError

#: Of PIL: pictures whose values are class ids.
_MASK_MODES = {"1", "L", "P", "I", "I;16"}
_PICTURES = {".png", ".jpg", ".jpeg"}


def resized_copy(source: Path, target: Path, long_side: int) -> None:
    """Copies a folder; pictures get ``long_side`` pixels on their longer side if they are larger.

    Images are reduced with an antialiasing filter, masks take the nearest pixel. Other files, such
    as lists, are copied as they are. A copy that was begun is completed.

    Raises:
        UsageError: there is no folder ``source``, or it lies around ``target``.
    """
    from PIL import Image

    if not source.is_dir():
        raise UsageError(f"--data: there is no folder {source}")
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"--output must lie outside of the data, but is {target.parent}")
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / path.relative_to(source)
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f".{copy.name}")
        if path.suffix.lower() not in _PICTURES:
            shutil.copyfile(path, partial)
        else:
            with Image.open(path) as picture:
                scale = min(1.0, long_side / max(picture.size))
                size = (round(scale * picture.width), round(scale * picture.height))
                is_mask = picture.mode in _MASK_MODES
                resample = Image.Resampling.NEAREST if is_mask else Image.Resampling.BICUBIC
                small = picture.resize(size, resample)
                small.save(partial, picture.format, **({} if is_mask else {"quality": 95}))
        partial.replace(copy)
