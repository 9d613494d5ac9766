"""What mkdocs needs beside the pages: the drawings, and the files outside docs/ that pages link to.

Links in the documents are those of the source tree, so that they also work where the tree is read.
On the site, README.md is the first page, benchmarks/README.md a page as well, and each source file
that a page links to gets a page that shows it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from drawings import draw_all
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
#: Documents of the tree that have a place on the site, by their path in the tree.
PLACES = {"README.md": "index.md", "benchmarks/README.md": "measuring.md"}
#: Files that are copied as they are; of all others the text is shown.
_COPIED = (".png", ".svg", ".json")
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)(?P<path>[^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the drawings, what the pages link to, and what these link to."""
    for name, drawing in draw_all().items():
        files.append(File.generated(config, f"drawings/{name}", content=drawing))
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(PLACES)
    known = set(waiting)
    for origin in waiting:
        if not origin.startswith("docs/"):
            files.append(_file(origin, config))
        if origin.endswith(".md"):
            text = (ROOT / origin).read_text(encoding="utf-8")
            linked = {_target(match["path"], origin) for match in _LINK.finditer(text)}
            new = sorted(path for path in linked - known if not path.startswith("docs/"))
            waiting += new
            known.update(new)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links of the tree into links of the site."""
    here = posixpath.dirname(page.file.src_uri)
    origin = page.meta.get("origin", f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        return posixpath.relpath(_place(_target(match["path"], origin)), here or ".")

    return _LINK.sub(link, markdown) if origin.endswith(".md") else markdown


def _target(path: str, origin: str) -> str:
    """The file that a document links to, by its path in the tree."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))


def _place(path: str) -> str:
    """Where the site has a file of the tree."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in PLACES:
        return PLACES[path]
    return f"tree/{path}" + ("" if path.endswith((*_COPIED, ".md")) else ".md")


def _file(path: str, config: Any) -> File:
    source = ROOT / path
    if path.endswith(_COPIED):
        return File.generated(config, _place(path), abs_src_path=os.fspath(source))
    text = source.read_text(encoding="utf-8")
    if not path.endswith(".md"):
        language = {".py": "python", ".yaml": "yaml", ".sh": "bash"}.get(source.suffix, "text")
        text = f"# {source.name}\n\n`{path}`\n\n``````{language}\n{text}\n``````\n"
    searched = "" if path in PLACES else "search:\n  exclude: true\n"
    return File.generated(
        config, _place(path), content=f"---\norigin: {path}\n{searched}---\n{text}"
    )
