"""Which images of a training set are labelled: the 1/16, 1/8, 1/4 of the experiments.

The rule, so that anyone can make the same lists: an image's place in the order of a seed is the
SHA-256 of ``"SEED NAME"`` in UTF-8, NAME being its path relative to the data set's root. The first
``ceil(ratio * images)`` are labelled, the others are not. So the lists depend on no library,
platform or order of files, and with one seed a smaller ratio's images are among a larger one's.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

from cac_ext.train.data.list_file import Entry, format_list
from cac_ext.train.errors import ConfigError, DataError

# 1/8, 0.125, 12.5e-2; longer numbers would only cost time.
_RATIO = r"[0-9]{1,9}/[0-9]{1,9}|([0-9]{1,9}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][-+]?[0-9]{1,2})?"


def parse_ratio(text: str) -> Fraction:
    """A labelled share: "1/8", "0.125", "full".

    Raises:
        ConfigError: no number, or not above 0 and at most 1.
    """
    ratio = Fraction(1 if text.strip() == "full" else 0)
    if re.fullmatch(_RATIO, text.strip()):
        with suppress(ZeroDivisionError):
            ratio = Fraction(text.strip())
    if not 0 < ratio <= 1:
        raise ConfigError(
            f"a labelled ratio is a share above 0 and at most 1, such as 1/8, 0.125 or full, but "
            f"got {text!r}"
        )
    return ratio


def split(entries: Sequence[Entry], ratio: Fraction, seed: int) -> tuple[list[Entry], list[Entry]]:
    """The labelled and the unlabelled entries, each sorted by name; at least one is labelled.

    Raises:
        DataError: an image is there twice, and might come to lie on both sides.
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

    Where all images are labelled there is no second list, and None stands for it. Masks are named
    in both lists, where they are known; of the second they are never read in training.

    Raises:
        DataError: a list that is already there says something else.
    """
    parts = dict(zip(("labelled.txt", "unlabelled.txt"), split(entries, ratio, seed), strict=True))
    texts = {folder / name: format_list(part, root) for name, part in parts.items() if part}
    for path, text in texts.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise DataError(
                f"{path} is already there and holds another list: take another folder, or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return (*texts, None)[:2]


def duplicates(entries: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    """Entries of one and the same image: (its first entry, a later one)."""
    first: dict[Path, Entry] = {}
    found = []
    for entry in entries:
        if entry.image in first:
            found.append((first[entry.image], entry))
        first.setdefault(entry.image, entry)
    return found


def _place(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest()


def _name(entry: Entry) -> str:
    return entry.name
