"""Pages of docs/: the example works, the reference is complete, drawings stay the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import cac_ext
import cac_ext.train
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_data_set_of_the_page_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "extend.md").read_text(), re.S)
    (tmp_path / "data_of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = load("synthetic", ["data.name=data_of_the_page:Blocks"])
    splits = build_datasets(config.data)
    assert list(splits.class_names) == ["dark", "bright"]
    assert len(splits.unlabelled) == 32
    sample = splits.labelled[3]
    bright = sample["image"][:, sample["mask"] == 1].float().mean()
    assert bright > sample["image"][:, sample["mask"] == 0].float().mean() + 50


@pytest.mark.parametrize("package", [cac_ext, cac_ext.train], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package) -> None:
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    for name in set(package.__all__) - {"__version__"}:
        assert re.search(rf"^::: {package.__name__}\.{name}$", text, re.M), name


def test_drawings_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "site")
    monkeypatch.delitem(sys.modules, "drawings", raising=False)
    from drawings import draw_all

    first = draw_all()
    assert first == draw_all()
    for name, drawing in first.items():
        assert ElementTree.fromstring(drawing).tag.endswith("svg"), name
