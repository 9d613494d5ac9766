"""Texts of the user's in figures: names in any script, none taken for a formula or left out.

matplotlib's own font knows Latin, Greek, Cyrillic, Arabic and more, but no Chinese, Japanese or
Korean: its pictures show boxes, with a warning for each. Here another installed font steps in, and
where none has a character, the text says so in ASCII.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

#: Asked before all others, for their many characters.
_FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti TC",
    "Microsoft YaHei",
    "SimHei",
    "Malgun Gothic",
    "Yu Gothic",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Unifont",
)
_NO_FONTS = ("Last Resort",)  # boxes for every character
_LONGEST = 30  # characters of a name


def shown_names(names: Sequence[str]) -> list[str]:
    """Names of classes as figures can show them; ``class 3`` where no font has the characters."""
    return [
        _plain(name) if not _missing(name) else f"class {index}" for index, name in enumerate(names)
    ]


def shown_text(text: str) -> str:
    """A text as figures can show it, with escapes such as ``\\u4e2d`` where no font has a glyph."""
    missing = _missing(text)
    return _plain(
        "".join(
            character.encode("ascii", "backslashreplace").decode()
            if character in missing
            else character
            for character in text
        )
    )


def set_fonts(figure: Figure) -> None:
    """Gives all texts of a figure the fonts that they need; most need none but the default."""
    texts = figure.findobj(Text)
    families = _families("".join(text.get_text() for text in texts))
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)


def width_of(text: str) -> int:
    """Columns that a text takes: Chinese characters and their like are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _plain(text: str) -> str:
    """A text that is no formula, and no longer than a picture has room for."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1]}…"
    return text.replace("$", r"\$")  # matplotlib takes what is between two dollars for a formula


def _missing(text: str) -> set[str]:
    """Characters that no installed font has."""
    missing = _wanted(text) - _characters(findfont(FontProperties()))
    for family in _families(text):
        missing -= _characters(_installed().get(family, ""))
    return missing


def _families(text: str) -> list[str]:
    """The default font, and as many others as bring characters that it does not have."""
    families = list(rcParams["font.family"])
    missing = _wanted(text) - _characters(findfont(FontProperties()))
    if not missing:
        return families
    others = _installed()
    for family in [*_FALLBACKS, *sorted(others.keys() - set(_FALLBACKS))]:
        if family in others and missing & _characters(others[family]):
            families.append(family)
            missing -= _characters(others[family])
            if not missing:
                break
    return families


def _wanted(text: str) -> set[str]:
    """Characters that need a glyph: spaces and joiners do not."""
    return {c for c in text if not c.isspace() and unicodedata.category(c) != "Cf"}


@cache
def _installed() -> dict[str, str]:
    """Upright fonts of normal weight by family, their files."""
    return {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.style == "normal"
        and font.weight in (400, "normal", "regular", "book")
        and not font.name.startswith(_NO_FONTS)
    }


@cache
def _characters(path: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (RuntimeError, OSError):  # a damaged font
        return frozenset()
