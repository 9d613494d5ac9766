"""Finds the images in a folder: every readable format, without hidden files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cac_ext.train.data.files.pictures import image_suffixes
from cac_ext.train.errors import DataError

_HIDDEN_FOLDERS = ("__MACOSX",)  # macOS adds it to archives


@dataclass
class FoundImages:
    """What `find_images` found.

    Attributes:
        images: their paths relative to the folder, sorted.
        left_out: suffix -> number of files that are no images by their suffix.
        unreadable: a sentence for each unreadable folder and each broken link.
    """

    images: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)


def is_hidden(relative: Path) -> bool:
    """Whether a file or a folder above it is hidden: ``.DS_Store``, ``._a.jpg``, ``__MACOSX/``."""
    return any(part.startswith(".") or part in _HIDDEN_FOLDERS for part in relative.parts)


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files below ``folder`` that match ``pattern``, sorted, without hidden ones."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.relative_to(folder)))


def require_images(folder: Path, pattern: str) -> list[Path]:
    """`visible_files`; DataError if there are none."""
    images = visible_files(folder, pattern)
    if not images:
        raise DataError(f"there are no images {pattern} in {folder}")
    return images


def find_images(
    folder: Path,
    skip: Callable[[Path], bool] = lambda folder: False,
    suffixes: Collection[str] | None = None,
) -> FoundImages:
    """The images in a folder and in all below it, without hidden ones. Links are followed.

    Args:
        folder: where to look.
        skip: whether to leave out a folder and all below it, without a remark.
        suffixes: of images, in lower case with the dot; by default those of pictures.
    """
    suffixes = image_suffixes() if suffixes is None else suffixes
    found = FoundImages()
    seen: set[str] = set()  # real paths: a link may lead to a folder above it

    def failed(error: OSError) -> None:
        found.unreadable.append(f"cannot look into the folder {error.filename}: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        seen.add(os.path.realpath(place))
        below = [Path(place, name) for name in sorted(folders)]
        folders[:] = [
            path.name
            for path in below
            if not is_hidden(Path(path.name))
            and os.path.realpath(path) not in seen
            and not skip(path)
        ]
        for name in names:
            path = Path(place, name)
            if is_hidden(Path(name)):
                continue
            if path.suffix.lower() not in suffixes:
                found.left_out[path.suffix.lower()] += 1
            elif path.exists():
                found.images.append(path.relative_to(folder))
            else:
                found.unreadable.append(f"{path} is a link to nothing")
    found.images.sort()
    return found


def describe_left_out(left_out: Counter[str]) -> str:
    """``3 files that are no images by their suffix (.txt: 2, none: 1)``."""
    count = sum(left_out.values())
    kinds: Sequence[str] = [f"{suffix or 'none'}: {n}" for suffix, n in left_out.most_common()]
    files = "file that is no image by its" if count == 1 else "files that are no images by their"
    return f"{count} {files} suffix ({', '.join(kinds)})"
