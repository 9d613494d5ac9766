"""List files: which images there are, and where their masks lie.

A line is "image mask" for a labelled image and "image" for an unlabelled one, where a second column
may stand but is not looked at. Paths are relative to the data set's root, whether or not they begin
with a slash, as in the paper authors' lists ("/JPEGImages/a.jpg /SegmentationClassAug/a.png"), or
absolute. Empty lines and lines that begin with ``#`` are skipped. Paths with spaces: separate the
columns by a tab. Paths may contain ``..`` and lead out of the root.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_ext.train.errors import DataError

_FAULTS_SHOWN = 10


@dataclass(frozen=True)
class Entry:
    """An image of a list.

    Attributes:
        name: path of the image, relative to the root where it lies in it, else absolute; without
            ``..``, so that each image has one name; ``/`` between folders.
        image, mask: the files; mask is None where the list names none.
        source: where the entry stands, for errors: "train.txt, line 3".
    """

    name: str
    image: Path
    mask: Path | None
    source: str


def read_list(
    list_file: Path,
    root: Path,
    *,
    with_masks: bool,
    expand: Callable[[list[str]], list[str]] | None = None,
) -> list[Entry]:
    """The entries of a list file. That its images exist is not checked here.

    Args:
        list_file: see the module's docstring.
        root: folder to which its paths are relative.
        with_masks: whether each line must name a mask.
        expand: turns the columns of a line into "image", "mask", for lists in a short form.

    Raises:
        DataError: the list is missing, empty, no text, or has malformed lines; they are named.
    """
    if not list_file.is_file():
        raise DataError(f"there is no list file {list_file}")
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list file {list_file}: {error}") from error

    entries, faults = [], []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        source = f"{list_file}, line {number}"
        columns = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        columns = expand(columns) if expand else columns
        if len(columns) > 2 or (with_masks and len(columns) != 2):
            needed = "'image mask'" if with_masks else "'image' or 'image mask'"
            faults.append(
                f"{source}: needs {needed}, but has {len(columns)} columns: {line!r} (a tab "
                "between the columns allows paths with spaces)"
            )
            continue
        image = locate(columns[0], root)
        mask = locate(columns[1], root) if len(columns) == 2 else None
        entries.append(Entry(relative_name(image, root), image, mask, source))
    if faults:
        shown = "\n".join(faults[:_FAULTS_SHOWN])
        more = len(faults) - _FAULTS_SHOWN
        raise DataError(shown + (f"\nand {more} more such lines" if more > 0 else ""))
    if not entries:
        raise DataError(f"the list {list_file} is empty")
    return entries


def format_list(entries: Sequence[Entry], root: Path) -> str:
    """The text of a list file that `read_list` reads to the same entries."""
    rows = [
        [relative_name(path, root) for path in (entry.image, entry.mask) if path is not None]
        for entry in entries
    ]
    spaces = any(" " in path for row in rows for path in row)
    return "".join(("\t" if spaces else " ").join(row) + "\n" for row in rows)


def relative_name(path: Path, root: Path) -> str:
    """A path relative to ``root`` if it lies in it, else as it is; ``/`` between folders."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def locate(text: str, root: Path) -> Path:
    """The file that a list means: an absolute path if there is one, else relative to the root.

    Neither the result nor ``root`` has ``..`` in it (see `without_parents`).
    """
    in_root = without_parents(root / text.lstrip("/"))
    path = without_parents(Path(text))
    if not path.is_absolute() or in_root.is_file():
        return in_root
    if path.is_file():
        return path
    # Missing in both places: named where a part of the way exists.
    elsewhere = not in_root.parent.is_dir() and Path(*path.parts[:2]).is_dir()
    return path if elsewhere else in_root


def without_parents(path: Path) -> Path:
    """``a/../b`` as ``b``, so that a file has one path; where ``a`` is a link, as it leads."""
    if ".." not in path.parts:
        return path
    plain = Path(os.path.normpath(path))
    if path.exists() and not (plain.exists() and plain.samefile(path)):
        return path.resolve()
    return plain
