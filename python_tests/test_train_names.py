"""Class names in any script, and as many classes as a mask holds, also in pictures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import QUICK
from image_trees import draw_image, folder_overrides
from matplotlib.figure import Figure
from PIL import Image
from test_train_pictures import logged_pictures

from cac_ext.train.cli.main import main
from cac_ext.train.config import DataConfig, load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.classes import Classes, load_classes
from cac_ext.train.errors import ConfigError
from cac_ext.train.figures import text as figure_text
from cac_ext.train.figures.panels import add_legend, class_colors, color_mask, save_confusion
from cac_ext.train.figures.text import set_fonts, shown_names, shown_text

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["背景", "道路", "_background_", "$a$ b_$", "é ж", "\U000f1234x"]
SETTINGS = [
    *QUICK,
    "method.selected_num=null",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
]


def tree_of_many(root: Path, classes: int) -> list[str]:
    """Four images whose 16-bit masks hold all the classes."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(4):
        draw_image(root / f"images/{number}.png", rng, (40, 48))
        mask = (np.arange(40 * 48).reshape(40, 48) + number) % classes
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8 if classes <= 256 else np.uint16)).save(
            root / f"masks/{number}.png"
        )
        lines.append(f"images/{number}.png masks/{number}.png\n")
    (root / "train.txt").write_text("".join(lines[:3]))
    (root / "val.txt").write_text(lines[3])
    ignored = [] if classes < 255 else ["data.ignore_index=-1"]
    return [*folder_overrides(root)[:-1], f"data.num_classes={classes}", *ignored, *SETTINGS]


@pytest.mark.parametrize("classes", [2, 21, 256, 300, 1000])
def test_any_number_of_classes_is_trained_evaluated_and_predicted(
    classes: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given, run = tree_of_many(tmp_path, classes), tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["train", "folder", *given, "--folder", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2 * classes
    output = tmp_path / "out"
    assert main(["predict", str(run), str(tmp_path / "images"), "--output", str(output)]) == 0
    ids = np.array(Image.open(output / "ids/0.png"))
    assert ids.max() < classes
    colors = np.array(Image.open(output / "colors/0.png"))
    assert np.array_equal(colors, class_colors(load_classes(run))[ids])
    for pictures in logged_pictures(run).values():
        for picture in pictures.values():
            assert max(picture.shape) < 2000
    assert max(Image.open(run / "picture.png").size) < 3000
    (confusion,) = run.rglob("confusion_matrix.png")
    assert max(Image.open(confusion).size) < 5000


@pytest.mark.parametrize("count", [2, 20, 21, 64, 65, 256, 300, 1000, 8192])
def test_every_class_has_a_different_color_and_none_has_that_of_ignored_pixels(count: int) -> None:
    colors = class_colors(Classes(["x"] * count, 255, None))
    assert colors.shape == (count, 3)
    assert len(np.unique(colors, axis=0)) == count
    assert not (colors == 255).all(axis=1).any()


@pytest.mark.parametrize("ignored", [-1, 1, 255, 300, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("count", [3, 256, 300])
def test_ignored_pixels_are_white_whatever_their_value(count: int, ignored: int) -> None:
    classes = Classes([f"c{k}" for k in range(count)], ignored, None)
    mask = torch.tensor([[0, 2], [count - 1, ignored]])
    picture = color_mask(mask, classes)
    for place, value in zip(((0, 0), (0, 1), (1, 0), (1, 1)), mask.flatten().tolist(), strict=True):
        white = value == ignored
        expected = (255, 255, 255) if white else tuple(class_colors(classes)[value])
        assert tuple(picture[place]) == expected


def legend_of(names: list[str], masks: list[torch.Tensor]) -> list[str]:
    figure = Figure(figsize=(6, 3), layout="constrained")
    add_legend(figure, Classes(names, 255, None), masks)
    set_fonts(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no glyph missing, no label left out
        figure.draw_without_rendering()
    return [text.get_text().replace(r"\$", "$") for text in figure.legends[0].get_texts()]


def test_a_legend_of_many_classes_names_those_that_are_seen() -> None:
    names = [f"name {k}" for k in range(300)]
    assert legend_of(names, [torch.tensor([7, 255, 299]), torch.tensor([[7, 2]])]) == [
        "name 2",
        "name 7",
        "name 299",
    ]
    shown = legend_of(names, [torch.arange(300)])
    assert len(shown) == 41
    assert shown[-1] == "and 259 more"
    assert legend_of(names[:30], [torch.tensor([3])]) == names[:30]


def test_names_that_no_font_has_are_shown_as_their_class(tmp_path: Path) -> None:
    shown = legend_of(NAMES, [])
    assert shown[2:5] == ["_background_", "$a$ b_$", "é ж"]
    assert shown[5] == "class 5"
    assert shown[0] in ("背景", "class 0")  # as the fonts of the machine have it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_confusion(tmp_path / "c.png", torch.eye(len(NAMES)).long(), NAMES)
    assert legend_of(["x" * 500, "y"], [])[0] == "x" * 29 + "…"


def test_a_font_that_has_the_letters_steps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed font with letters that the default lacks."""
    known = figure_text._characters
    monkeypatch.setattr(
        figure_text, "_installed", lambda: {"Other": "other.ttf", "SimHei": "simhei.ttf"}
    )
    monkeypatch.setattr(
        figure_text,
        "_characters",
        lambda path: {"simhei.ttf": frozenset("背景")}.get(path) or known(path),
    )
    assert shown_names(["背景", "道"]) == ["背景", "class 1"]
    assert shown_text("背道x") == "背\\u9053x"
    figure = Figure()
    text = figure.text(0, 0, "背景")
    set_fonts(figure)
    assert text.get_fontfamily()[-1] == "SimHei"
    assert len(text.get_fontfamily()) > 1


def test_no_name_is_a_traceback_on_a_terminal_of_ascii(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    given = [*tree_of_many(tmp_path, 2), "data.class_names=[背景,道路]", "name=实验"]
    run = tmp_path / "跑"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["train", "folder", *given, "--folder", str(run)]) == 0
        assert main(["evaluate", str(run)]) == 0
        assert main(["config", str(run / "config.yaml")]) == 0
        assert main(["compare", "folder", *given, "--folder", str(tmp_path / "比")]) == 0
    printed = terminal.buffer.getvalue()
    assert b"mIoU" in printed
    assert rb"\u9053\u8def" in printed
    assert load(str(run / "config.yaml")).data.class_names == ["背景", "道路"]
    assert load_classes(run).class_names == ["背景", "道路"]


@pytest.mark.parametrize(
    ("shell", "environment"),
    [("{} config voc 'name=实验'", {"LC_ALL": "C"}), ("{} config voc | true", {})],
    ids=["C locale", "a reader that closes early"],
)
def test_a_command_ends_without_a_traceback(shell: str, environment: dict[str, str]) -> None:
    ended = subprocess.run(
        shell.format(f"{sys.executable} -m cac_ext.train"),
        shell=True,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.root holds bytes"):
        load("synthetic", ["data.root=/caf\udce9"])


@pytest.mark.parametrize("palette", [((0, 0, 0),), ((0, 0), (1, 1)), ((0, 0, 0), (1, 2, 256))])
def test_a_palette_that_does_not_fit_the_classes_is_refused(
    palette: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_data_check

    monkeypatch.setattr(test_data_check.OwnDataset, "palette", palette, raising=False)
    with pytest.raises(ConfigError, match=r"palette .* must be 2 colors"):
        build_datasets(DataConfig(name="test_data_check:OwnDataset"))


@pytest.mark.parametrize(
    "names", [["one"], ["a", "a"], ["a", ""], ["a", "b\nc"], ["a", 3]], ids=str
)
def test_a_data_set_class_s_names_are_checked(names: list, monkeypatch: pytest.MonkeyPatch) -> None:
    import test_data_check

    monkeypatch.setattr(test_data_check.OwnDataset, "class_names", names)
    with pytest.raises(ConfigError, match="test_data_check:OwnDataset"):
        build_datasets(DataConfig(name="test_data_check:OwnDataset"))
