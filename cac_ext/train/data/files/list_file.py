"""List files: which images there are, and where their masks lie.

A line is "image mask" for a labelled image and "image" for an unlabelled one, whose mask may be
named but is not read in training. Paths are relative to the data set's root, with or without a
leading slash, as in the paper authors' lists ("/JPEGImages/a.jpg /SegmentationClassAug/a.png"), or
absolute. Empty lines and lines that begin with ``#`` are skipped. If a path has spaces, a tab must
separate the columns, or follow a single column. Paths may contain ``..`` and lead out of the root.
The text is UTF-8, or UTF-16 with a byte order mark.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cac_ext.train.data.files.pictures import file_fault
from cac_ext.train.errors import DataError

_FAULTS_SHOWN = 10
_SPACES_HINT = "a path with spaces needs a tab between the columns, or behind it if it is alone"


@dataclass(frozen=True)
class Entry:
    """An image of a list.

    Attributes:
        name: path of the image, relative to the root if it lies inside, else absolute; ``/``
            between folders, and no ``..``, so that each image has a single name.
        image, mask: the files; mask is None if the list names none.
        source: place of the entry, for errors: "train.txt, line 3".
        line: the line itself, for hints in errors; empty if no list names the image.
    """

    name: str
    image: Path
    mask: Path | None
    source: str
    line: str = field(default="", compare=False)


def read_list(
    list_file: Path,
    root: Path,
    *,
    with_masks: bool,
    expand: Callable[[list[str]], list[str]] | None = None,
) -> list[Entry]:
    """The entries of a list file, whether or not their files exist.

    Args:
        list_file: see the module's docstring.
        root: folder to which its paths are relative.
        with_masks: whether each line must name a mask.
        expand: turns the columns of a line in a short form into "image", "mask".

    Raises:
        DataError: the list is missing, empty, no text, or has malformed lines, which are named.
    """
    entries, faults = [], []
    for number, line in read_lines(list_file):
        source = f"{list_file}, line {number}"
        columns = split_columns(line)
        columns = expand(columns) if expand else columns
        if len(columns) > 2 or (with_masks and len(columns) != 2) or "" in columns:
            needed = "'image mask'" if with_masks else "'image' or 'image mask'"
            count = f"{len(columns)} column{'s' * (len(columns) != 1)}"
            faults.append(
                f"{source}: needs {needed}, but has {count}: {line!r} ({_SPACES_HINT})"
                f"{line_hint(line)}"
            )
            continue
        image = locate(columns[0], root)
        mask = locate(columns[1], root) if len(columns) == 2 else None
        entries.append(Entry(relative_name(image, root), image, mask, source, line))
    if faults:
        shown = "\n".join(faults[:_FAULTS_SHOWN])
        more = len(faults) - _FAULTS_SHOWN
        raise DataError(shown + (f"\nand {more} more such lines" if more > 0 else ""))
    if not entries:
        raise DataError(f"the list {list_file} is empty")
    return entries


def read_lines(path: Path, kind: str = "list file") -> list[tuple[int, str]]:
    """The numbers (from 1) and lines of a list, without empty lines and comments.

    Raises:
        DataError: there is no such file, or it is neither UTF-8 nor UTF-16 text.
    """
    fault = file_fault(path, kind)
    if fault is not None:
        raise DataError(fault)
    try:
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the {kind} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"cannot read the {kind} {path}: it is no text in UTF-8, see line {line}: save it "
            "as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(
            f"cannot read the {kind} {path}: it holds bytes of 0, like UTF-16 without a byte order "
            "mark or a binary file: save it as text in UTF-8"
        )
    # Not splitlines(): names may hold other characters that Unicode calls line breaks.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbered = ((number, line.strip(" ")) for number, line in enumerate(lines, 1))
    return [(number, line) for number, line in numbered if line.strip() and line[0] != "#"]


def split_columns(line: str) -> list[str]:
    """The columns of a line, separated by tabs if it has any, else by spaces."""
    if "\t" not in line:
        return [part for part in line.split(" ") if part]
    columns = [part.strip(" ") for part in line.split("\t")]
    while len(columns) > 1 and not columns[-1]:
        del columns[-1]
    return columns


def line_hint(line: str) -> str:
    """What may be wrong with a line whose files are missing: text to append to an error, or ""."""
    hints = []
    if "," in line or ";" in line:
        hints.append("columns are separated by a space or a tab, not by a comma or semicolon")
    if "\\" in line:
        hints.append("folders are separated by /, not by \\")
    if any(mark in line for mark in "\"'<>{}[]"):
        hints.append("paths are written without quotes and brackets")
    if line and not any(character in "/." or character.isdigit() for character in line):
        hints.append("a header line must begin with #")
    elif "\t" not in line and " " in line and "." not in line.split(" ")[0].rpartition("/")[2]:
        hints.append(_SPACES_HINT)
    return f" ({'; '.join(hints)}; a line looks like 'images/a.jpg masks/a.png')" if hints else ""


def format_list(entries: Sequence[Entry], root: Path) -> str:
    """The text of a list file from which `read_list` makes the same entries.

    Raises:
        DataError: a list cannot hold the name of a file.
    """
    rows = [
        [relative_name(path, root) for path in (entry.image, entry.mask) if path is not None]
        for entry in entries
    ]
    for row in rows:
        for name in row:
            _require_listable(name)
    spaces = any(" " in path for row in rows for path in row)
    separator = "\t" if spaces else " "
    return "".join(
        separator.join(row) + ("\t" if spaces and len(row) == 1 else "") + "\n" for row in rows
    )


def _require_listable(name: str) -> None:
    faults = {
        "a line break": "\n" in name or "\r" in name,
        "a tab": "\t" in name,
        "a space or # at its start": name.startswith((" ", "#")),
        "a space at its end": name.endswith(" "),
        "bytes that are no UTF-8": any("\ud800" <= character <= "\udfff" for character in name),
    }
    for fault, found in faults.items():
        if found:
            raise DataError(f"no list can name the file {name!r}: it has {fault}; rename it")


def duplicates(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Repeated images: each entry of one that an earlier entry names, behind that one."""
    first: dict[Path, Entry] = {}
    found = []
    for entry in entries:
        if entry.image in first:
            found.append((first[entry.image], entry))
        first.setdefault(entry.image, entry)
    return found


def relative_name(path: Path, root: Path) -> str:
    """A path relative to ``root`` if it lies inside, else unchanged; ``/`` between folders."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def locate(text: str, root: Path) -> Path:
    """The file that a path in a list means: relative to the root or, if it exists so, absolute.

    Neither the result nor ``root`` contains ``..`` (see `without_parents`).
    """
    in_root = without_parents(root / text.lstrip("/"))
    path = without_parents(Path(text))
    if not path.is_absolute() or os.path.isfile(in_root):
        return in_root
    if os.path.isfile(path):
        return path
    # Missing in both places: name the one of which a part exists.
    elsewhere = not in_root.parent.is_dir() and Path(*path.parts[:2]).is_dir()
    return path if elsewhere else in_root


def without_parents(path: Path) -> Path:
    """``a/../b`` as ``b``, so that a file has a single path; if ``a`` is a link, it is followed."""
    if ".." not in path.parts:
        return path
    plain = Path(os.path.normpath(path))
    if path.exists() and not (plain.exists() and plain.samefile(path)):
        return path.resolve()
    return plain
