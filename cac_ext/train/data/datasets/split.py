"""Which images of a training set are labelled: the 1/16, 1/8, 1/4 of the experiments.

The rule, so that anyone can make the same lists: images are ordered by the SHA-256 of
``"SEED NAME"`` in UTF-8, where NAME is the path relative to the data set's root. The first
``ceil(ratio * images)`` are labelled. So the lists depend on no library, platform or order of
files, and with the same seed the images of a smaller ratio are among those of a larger one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from cac_ext.train.data.files.list_file import Entry, duplicates, format_list
from cac_ext.train.errors import ConfigError, DataError

# 1/8, 0.125, 12.5e-2; longer numbers would only take time.
_RATIO = r"[0-9]{1,9}/[0-9]{1,9}|([0-9]{1,9}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][-+]?[0-9]{1,2})?"


def parse_ratio(text: str) -> Fraction:
    """A labelled share: "1/8", "0.125", "full".

    Raises:
        ConfigError: it is no number, or not in (0, 1].
    """
    ratio = Fraction(1 if text.strip() == "full" else 0)
    if re.fullmatch(_RATIO, text.strip()):
        with suppress(ZeroDivisionError):
            ratio = Fraction(text.strip())
    if not 0 < ratio <= 1:
        raise ConfigError(
            f"a labelled ratio must be a share above 0 and at most 1, such as 1/8, 0.125 or full, "
            f"but is {text!r}"
        )
    return ratio


def split(entries: Sequence[Entry], ratio: Fraction, seed: int) -> tuple[list[Entry], list[Entry]]:
    """The labelled and the unlabelled entries, each sorted by name; at least one is labelled.

    Raises:
        DataError: an image is listed twice, and could end up on both sides.
    """
    twice = duplicates(entries)
    if twice:
        raise DataError(
            f"{twice[0][1].source}: {twice[0][1].name} is listed twice, first in "
            f"{twice[0][0].source}; a list that is split must name each image once"
        )
    order = sorted(entries, key=lambda entry: (_place(seed, entry.name), entry.name))
    count = math.ceil(ratio * len(order))
    labelled, unlabelled = order[:count], order[count:]
    return sorted(labelled, key=_name), sorted(unlabelled, key=_name)


def write_split(
    folder: Path, root: Path, entries: Sequence[Entry], ratio: Fraction, seed: int
) -> tuple[Path, Path | None]:
    """Writes ``labelled.txt`` and ``unlabelled.txt`` into ``folder``; returns their paths.

    If all images are labelled there is no second list, and its path is None. Both lists name masks
    where they are known; training never reads those of the second.

    Raises:
        DataError: there is a list of that name with other content.
    """
    labelled, unlabelled = split(entries, ratio, seed)
    paths = folder / "labelled.txt", folder / "unlabelled.txt" if unlabelled else None
    texts = {
        path: format_list(part, root)
        for path, part in zip(paths, (labelled, unlabelled), strict=True)
        if path is not None
    }
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{path} already exists and holds another list: take another folder, or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return paths


def _place(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()


def _name(entry: Entry) -> str:
    return entry.name
