"""`cac-ext figures` draws curves of runs, the precision of negatives, and predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_run import TINY_RUN, draw_no_pictures

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.figures.curves import (
    PrecisionCurve,
    ValidationCurve,
    precision_figure,
    validation_figure,
)
from cac_ext.train.figures.panels import predictions_figure
from cac_ext.train.figures.text import folded, shown_titles
from cac_ext.train.loop import train
from cac_ext.train.runs.folder import load_run, write_config

pytestmark = pytest.mark.usefixtures("one_thread")


def made_up_run(folder: Path, entries: list[dict], *overrides: str) -> str:
    """A run folder with a configuration and a log alone, as of a run that is still training."""
    write_config(folder, load("synthetic", [*TINY_RUN, *overrides]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in entries))
    return str(folder)


def evaluated(iteration: int, miou: float | None) -> dict:
    return {"iteration": iteration, "split": "validation", "miou": miou, "class_iou": {}}


def logged(iteration: int, selected: float | None = None, of_all: float | None = None) -> dict:
    return {
        "iteration": iteration,
        "split": "train",
        "active_share": 0.5,
        "negative_precision": selected,
        "negative_precision_random": of_all,
    }


def curve(
    name: str, epochs: list[float], iterations: list[int], *, whole_overlap: bool = False
) -> ValidationCurve:
    return ValidationCurve(name, epochs, iterations, [0.25] * len(epochs), whole_overlap)


def labels_of(figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """The figures that the command draws, by the function that draws them."""
    from cac_ext.train.experiments import run_figures

    figures = []
    for name in ("validation_figure", "precision_figure"):
        draw = getattr(run_figures, name)

        def keep(*arguments, draw=draw):
            figures.append(draw(*arguments))
            return figures[-1]

        monkeypatch.setattr(run_figures, name, keep)
    return figures


def test_curves_of_several_runs_are_those_of_their_logs(
    tmp_path: Path, drawn: list, capsys: pytest.CaptureFixture
) -> None:
    values = [logged(3), evaluated(2, 0.25), evaluated(4, None), evaluated(6, 0.5)]
    whole = "method.iou_range=[1.0,1.0]"
    runs = [
        made_up_run(tmp_path / "cac", [*values, evaluated(8, 0.375)]),
        made_up_run(tmp_path / "no_context", values, whole),
        made_up_run(tmp_path / "sup_only", values[1:], whole),  # no crop pairs: no IoU_1.0
    ]
    assert main(["figures", *runs, "--kind", "curves"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[2:5]] == [
        ["cac", "37.50", "50.00", "3"],
        ["no_context", "(IoU_1.0)", "50.00", "50.00", "3"],
        ["sup_only", "50.00", "50.00", "3"],
    ]
    assert printed[5] == str(tmp_path / "figures" / "validation_curves.png")
    assert Image.open(printed[5]).size > (600, 400)
    (figure,) = drawn
    (axis,) = figure.axes
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("epoch", "mIoU (%)")
    assert axis.get_title() == "validation on synthetic"
    points = [list(zip(*line.get_data(), strict=True)) for line in axis.lines]
    assert points == [[(1, 25), (3, 50), (4, 37.5)], [(1, 25), (3, 50)], [(1, 25), (3, 50)]]
    assert labels_of(figure) == ["cac", "no_context (IoU_1.0)", "sup_only"]
    assert [line.get_markerfacecolor() == "white" for line in axis.lines] == [False, True, False]
    assert [line.get_linestyle() for line in axis.lines] == ["-", "--", "-"]
    assert "IoU_1.0: both crops" in figure.legends[0].get_title().get_text()


def test_each_data_set_has_a_plot_and_unequal_epochs_share_an_axis_of_iterations() -> None:
    figure = validation_figure({"a": curve("voc", [1], [2]), "b": curve("camvid", [1], [2])})
    assert [axis.get_title() for axis in figure.axes] == [
        "validation on voc",
        "validation on camvid",
    ]
    assert figure.legends[0].get_title().get_text() == ""
    figure = validation_figure({"a": curve("voc", [1, 2], [2, 4]), "b": curve("voc", [1], [3])})
    (axis,) = figure.axes
    assert axis.get_xlabel() == "iteration"
    assert [line.get_xdata().tolist() for line in axis.lines] == [[2, 4], [3]]


def test_curves_differ_in_color_or_marker_and_names_stay_apart() -> None:
    names = [f"runs/{'a' * 40}/cac-seed{k}" for k in range(40)]
    figure = validation_figure({name: curve("voc", [1, 2], [2, 4]) for name in names})
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(looks) == 40
    labels = labels_of(figure)
    assert len(set(labels)) == 40
    assert labels[3].endswith("cac-seed3")
    middle = shown_titles([f"{'a' * 20}{k}{'b' * 20}" for k in range(3)])
    assert len(set(middle)) == 3
    assert shown_titles(["_x$", "_x$"]) == [r"_x\$ (1)", r"_x\$ (2)"]
    assert folded("cac-with-a-long_name of/run", 10).split("\n") == [
        "cac-with-",
        "a-long_",
        "name of/",
        "run",
    ]
    assert folded("abcdefgh", 3) == "abc\ndef\ngh"
    assert folded("道" * 3, 4) == "道道\n道"
    assert folded(r"ab\$", 3) == r"ab\$"


def test_the_precision_of_negatives_is_the_mean_of_each_epoch(
    tmp_path: Path, drawn: list, capsys: pytest.CaptureFixture
) -> None:
    """Two steps an epoch. A step without pairs counts nowhere."""
    entries = [logged(2), logged(3, 0.5, 0.25), logged(4, 1.0, 0.5), evaluated(4, 0.1)]
    one = made_up_run(tmp_path / "one", [*entries, logged(7, 0.75, 0.5), logged(8)])
    assert main(["figures", one, "--kind", "negatives"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[2].split() == ["one", "4", "75.00", "50.00"]
    assert printed[3] == str(tmp_path / "one" / "figures" / "negative_precision.png")
    assert Path(printed[3]).is_file()
    (figure,) = drawn
    (axis,) = figure.axes
    selected, of_all = axis.lines
    assert list(zip(*selected.get_data(), strict=True)) == [(2, 75), (4, 75)]
    assert list(zip(*of_all.get_data(), strict=True)) == [(2, 37.5), (4, 50)]
    assert labels_of(figure) == ["selected negatives", "random negatives"]
    assert (selected.get_color(), of_all.get_color()) == ("#0072B2", "#E69F00")
    assert "%" in axis.get_ylabel()

    figure = precision_figure({name: PrecisionCurve([1], [0.9], [0.5]) for name in ("a", "b")})
    assert labels_of(figure) == ["a, selected", "a, random", "b, selected", "b, random"]
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert colors[0] == colors[1] != colors[2] == colors[3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("one", "other")]
    with pytest.MonkeyPatch.context() as patch:
        draw_no_pictures(patch)
        for number, folder in enumerate(folders):
            overrides = [*TINY_RUN, "method.name=sup_only", f"seed={number}"]
            train(load("synthetic", overrides), folder, progress=False)
    return [str(folder) for folder in folders]


def test_the_panel_shows_images_truth_and_the_predictions_of_each_run(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["figures", *trained, "--kind", "panel", "--images", "3", "device=cpu"]
    assert main([*command, "--output", str(tmp_path / "given")]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == tmp_path / "given" / "predictions.png"
    runs = {Path(folder).name: load_run(Path(folder)) for folder in trained}
    splits = build_datasets(runs["one"].config.data)
    networks = {name: run.network for name, run in runs.items()}
    figure = predictions_figure(splits, networks, count=3)
    assert [axis.get_title() for axis in figure.axes[:4]] == ["image", "truth", "one", "other"]
    assert len(figure.axes) == 12
    figure.savefig(tmp_path / "expected.png", dpi=110)
    found, expected = (np.array(Image.open(x)) for x in (written, tmp_path / "expected.png"))
    np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_drawn_is_said_in_one_sentence(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def error(*arguments: str) -> str:
        assert main(["figures", *arguments]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    new = made_up_run(tmp_path / "new", [])
    short = made_up_run(tmp_path / "short", [logged(1)])
    for kind in ("curves", "negatives", "panel"):
        assert f"{tmp_path} is no run folder" in error(str(tmp_path), "--kind", kind)
    curves, negatives = ("--kind", "curves"), ("--kind", "negatives")
    assert "new has no validation curve: it has not been evaluated yet" in error(new, *curves)
    assert "run.negative_precision=true" in error(trained[0], *negatives)
    assert "another pseudo label" in error(short, *negatives)
    (tmp_path / "new" / "metrics.jsonl").unlink()
    assert "new holds no metrics.jsonl: its training has not begun" in error(new, *curves)
    assert "no metrics.jsonl" in error(new, *negatives)
    assert "new/classes.json" in error(new, "--kind", "panel")
    assert "reads the logs of the runs alone" in error(short, *curves, "data.root=x")
    assert "--images has no meaning for --kind curves" in error(short, *curves, "--images", "2")
    assert "--seed has no meaning for --kind panel" in error(
        short, "--kind", "panel", "--seed", "0"
    )
    other = tmp_path / "other_classes"
    shutil.copytree(trained[1], other)
    classes = (other / "classes.json").read_text()
    (other / "classes.json").write_text(classes.replace('"rows"', '"lines"'))
    assert "was trained on the classes" in error(trained[0], str(other), "--kind", "panel")
