"""All tables are written here: aligned for a terminal, in Markdown for a document."""

from __future__ import annotations

from collections.abc import Sequence


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded to equal width; the first ``left`` hold text, the others numbers."""
    lines = _padded([header, *rows], left)
    lines.insert(1, ["-" * len(cell) for cell in lines[0]])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, *, padded: bool = False
) -> str:
    """The same table in Markdown; with ``padded`` it is aligned on a terminal too."""
    lines: list[Sequence[str]] = [header, *rows]
    if padded:
        lines = [*_padded(lines, left)]
        dashes = ["-" * (len(cell) + 2) for cell in lines[0]]
        rule = [line if i < left else f"{line[1:]}:" for i, line in enumerate(dashes)]
    else:
        rule = [" --- "] * left + [" ---: "] * (len(header) - left)
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], f"|{'|'.join(rule)}|", *texts[1:]])


def _padded(lines: Sequence[Sequence[str]], left: int) -> list[list[str]]:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        [
            f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
