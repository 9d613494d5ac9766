"""User texts in figures: names in any script; never read as a formula, never dropped.

matplotlib's default font covers Latin, Greek, Cyrillic, Arabic and more, but not Chinese, Japanese
or Korean: it draws boxes and warns about each. Here other installed fonts step in. A character that
no font has is shown in ASCII.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

#: Tried before all others, because they have many characters.
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
_LONGEST = 30  # characters shown of a name


def shown_names(names: Sequence[str]) -> list[str]:
    """Class names that figures can show; ``class 3`` if no font has the characters of a name."""
    return [
        _plain(name) if not _missing(name) else f"class {index}" for index, name in enumerate(names)
    ]


def shown_text(text: str) -> str:
    """A text that figures can show; ``\\u4e2d`` and such for characters that no font has."""
    missing = _missing(text)
    return _plain(
        "".join(
            character.encode("ascii", "backslashreplace").decode()
            if character in missing
            else character
            for character in text
        )
    )


def shown_titles(texts: Sequence[str]) -> list[str]:
    """Different texts, e.g. paths of runs, as different texts that figures can show.

    A long text keeps its beginning and its end. Texts that would look equal are numbered.
    """
    half = (_LONGEST - 1) // 2
    shown = [
        shown_text(f"{text[:half]}…{text[-half:]}" if len(text) > _LONGEST else text)
        for text in texts
    ]
    return [
        f"{text} ({shown[: index + 1].count(text)})" if shown.count(text) > 1 else text
        for index, text in enumerate(shown)
    ]


def folded(text: str, width: int) -> str:
    """A text in lines of at most ``width`` characters, broken behind spaces, ``-``, ``_``, ``/``.

    A part that is longer than a line is broken anywhere.
    """
    lines = [""]
    for part in re.findall(r"[^-_/ ]*[-_/ ]+|[^-_/ ]+", text):
        if width_of(lines[-1] + part.rstrip()) > width and lines[-1]:
            lines.append("")
        for character in part:
            escaped = lines[-1].endswith("\\")  # "\\$" stays together
            if width_of(lines[-1] + character) > width and not (escaped or character.isspace()):
                lines.append("")
            lines[-1] += character
    return "\n".join(line.strip() for line in lines)


def set_fonts(figure: Figure) -> None:
    """Gives all texts of a figure the fonts that they need; most need only the default."""
    texts = figure.findobj(Text)
    families = _families("".join(text.get_text() for text in texts))
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)


def width_of(text: str) -> int:
    """Width of a text in columns: Chinese and similar characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _plain(text: str) -> str:
    """A text that is not read as a formula and is short enough for a figure."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 1]}…"
    return text.replace("$", r"\$")  # matplotlib reads text between two dollars as a formula


def _missing(text: str) -> set[str]:
    """Characters that no installed font has."""
    missing = _wanted(text) - _characters(findfont(FontProperties()))
    for family in _families(text):
        missing -= _characters(_installed().get(family, ""))
    return missing


def _families(text: str) -> list[str]:
    """The default font, and the others that are needed for characters that it lacks."""
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
    """Characters that need a glyph, so no spaces and joiners."""
    return {c for c in text if not c.isspace() and unicodedata.category(c) != "Cf"}


@cache
def _installed() -> dict[str, str]:
    """Font family -> file, for upright fonts of normal weight."""
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
