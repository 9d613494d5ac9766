"""`cac-ext report` writes one page that needs nothing else and has the numbers of its runs."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import QUICK, SUPERVISED
from image_trees import folder_overrides, folder_tree
from PIL import Image
from tiny_run import TINY_RUN, draw_no_pictures

import cac_ext
from cac_ext import train as trainer
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data.classes import load_classes
from cac_ext.train.figures.panels import color_mask
from cac_ext.train.loop import train
from cac_ext.train.reports.charts import HEIGHT, WIDTH, Series, draw, look_of
from cac_ext.train.reports.settings import NO_NAME, named_configuration, notable_settings
from cac_ext.train.runs.environment import load_sessions, save_session
from cac_ext.train.runs.folder import write_config
from cac_ext.train.runs.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

SECTIONS = [
    *("summary", "validation", "classes", "predictions", "confusion", "training", "negatives"),
    *("cost", "settings", "environment"),
]
NAMES = ["<b>sky</b>", "a&amp;b", "\"x' onload=alert(1)"]
VOID = {"meta", "img", "wbr", "link", "br", "input", "base"}


class Page(HTMLParser):
    """A page by its sections: their texts, tables, and attributes of their tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.section = ""
        self.texts: dict[str, str] = {}
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.images: dict[str, list[dict[str, str]]] = {}
        self.styles = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = {key: value or "" for key, value in attributes}
        self.tags.append((tag, named))
        if tag == "section":
            self.section = named["id"]
            self.texts[self.section], self.tables[self.section] = "", []
            self.images[self.section] = []
        elif tag == "img":
            self.images[self.section].append(named)
        elif tag == "table":
            self.tables[self.section].append([])
        elif tag == "tr":
            self.tables[self.section][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.section][-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.styles += data
        elif self.section:
            self.texts[self.section] += data
            if {"td", "th"} & {*self.open}:
                row = self.tables[self.section][-1][-1]
                row[-1] = (row[-1] + data).strip()

    def rows(self, section: str, number: int = 0) -> dict[str, list[str]]:
        """The cells of a table's rows by their labels; of equal labels the first."""
        found: dict[str, list[str]] = {}
        for label, *cells in self.tables[section][number]:
            found.setdefault(label, cells)
        return found

    @property
    def dots(self) -> list[str]:
        """What the points of the charts say."""
        text = "\n".join(self.texts.values())
        return re.findall(r"^.*, (?:iteration|epoch) \d+: \S+$", text, re.M)


def page_of(*runs: Path, images: int = 2, output: Path) -> Page:
    return Page(trainer.write_report(runs, output, images=images).path)


def pixels_of(image: dict[str, str]) -> np.ndarray:
    kind, content = image["src"].split(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.array(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def made_up_run(folder: Path, entries: list[dict], *overrides: str) -> Path:
    """A run folder with a configuration and a log alone, as an earlier version left it."""
    write_config(folder, load("synthetic", [*TINY_RUN, *overrides]))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in entries))
    return folder


def evaluated(iteration: int, miou: float | None, **iou: float | None) -> dict:
    return {"iteration": iteration, "split": "validation", "miou": miou, "class_iou": iou}


def logged(iteration: int, **values: float | None) -> dict:
    costs = {"memory_mib": 10.0, "images_per_second": 4.0, "seconds_per_step": 0.5}
    return {"iteration": iteration, "split": "train", "loss": 1.0, **costs, **values}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on a folder of images; the names of everything would break a page."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("data") / "<i>&amp;"
    folder_tree(root, np.random.default_rng(0), 2, 3)
    (root / "images/val0.png").rename(root / "images/<u>&lt;.png")
    lists = (root / "val.txt").read_text().replace("images/val0.png", "images/<u>&lt;.png")
    (root / "val.txt").write_text(lists)
    overrides = [*folder_overrides(root), *QUICK, *SUPERVISED, "name=<script>"]
    overrides += [f"data.class_names={json.dumps(NAMES)}"]
    overrides += ["schedule.epochs=2", "schedule.log_every=1", "schedule.evaluate_every=1"]
    folder = root / "run <b>&"
    with pytest.MonkeyPatch.context() as patch:
        draw_no_pictures(patch)
        train(load("folder", overrides), folder, progress=False)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def test_the_page_needs_nothing_else_and_has_every_section(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    page = page_of(run, output=tmp_path / "page.html")
    assert [*page.texts] == SECTIONS
    assert all(len(text.split()) > 5 for text in page.texts.values())
    names = {tag for tag, _ in page.tags}
    assert not names & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "b",
        "u",
        "i",
    }
    for tag, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "srcset", "data", "action", "poster", "background"):
                assert value.startswith(("#", "data:image/")), (tag, key, value)
            assert "url(" not in value
            assert "@import" not in value
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    targets = {value["href"] for tag, value in page.tags if tag == "a"}
    assert targets == {f"#{section}" for section in SECTIONS}
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_names_are_shown_as_they_are(run: Path, tmp_path: Path) -> None:
    page = page_of(run, output=tmp_path / "page.html")
    assert [*page.rows("classes")] == ["class", *NAMES, "mIoU"]
    assert [*page.rows("confusion")][1:4] == NAMES
    assert "<u>&lt;.png" in page.texts["predictions"]
    assert page.rows("settings")["name"] == ["<script>", "folder"]
    titles = [value["title"] for tag, value in page.tags if tag == "td" and "title" in value]
    assert any(title.startswith(f"{NAMES[2]} as {NAMES[0]}: ") for title in titles)


def test_the_numbers_are_those_of_the_run(run: Path, tmp_path: Path) -> None:
    page = page_of(run, output=tmp_path / "page.html")
    entries = read_metrics(run / "metrics.jsonl")
    steps = [entry for entry in entries if entry["split"] == "train"]
    first, last = (entry for entry in entries if entry["split"] == "validation")
    summary = page.rows("summary")
    assert summary["state"] == ["finished"]
    assert summary["last mIoU (%)"] == [f"{100 * last['miou']:.2f}"]
    assert summary["best mIoU (%)"] == [f"{100 * max(first['miou'], last['miou']):.2f}"]
    assert summary["of iteration"] == ["2"]
    classes = page.rows("classes")
    for name, iou in last["class_iou"].items():
        assert classes[name][0] == f"{100 * iou:.2f}"
    assert classes["mIoU"][0] == summary["last mIoU (%)"][0]

    validation = f"{run.name}, iteration 1: {100 * first['miou']:.4g}"
    assert validation in page.dots
    for step in steps:
        assert f"{run.name}, iteration {step['iteration']}: {step['loss']:.4g}" in page.dots
    costs = page.rows("cost")
    slowest = max(step["seconds_per_step"] for step in steps)
    assert costs["slowest logged (s)"] == [f"{slowest:.3g}"]
    assert costs["peak memory (MiB)"] == [f"{steps[-1]['memory_mib']:,.0f}"]

    stored = json.loads((run / "validation.json").read_text())
    confusion = np.array(stored["confusion"])
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    assert (confusion.diagonal() / union).mean() == pytest.approx(last["miou"], abs=1e-12)
    assert stored["iteration"] == last["iteration"] == 2
    matrix = page.rows("confusion")
    shares = confusion / confusion.sum(1, keepdims=True)
    for name, of_class in zip(NAMES, shares, strict=True):
        shown = [f"{100 * share:.0f}" if share >= 0.005 else "" for share in of_class]
        assert matrix[name] == shown
    accuracy = confusion.diagonal().sum() / confusion.sum()
    assert summary["pixel accuracy (%)"] == [f"{100 * accuracy:.2f}"]
    wrong = confusion - np.diag(confusion.diagonal())
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    assert page.tables["confusion"][1][1][:2] == [NAMES[true], NAMES[predicted]]

    environment = page.rows("environment")
    assert environment["torch"] == [torch.__version__]
    assert environment["device"] == ["cpu"]
    assert environment["threads of a process"] == ["1"]
    assert environment["cac_ext"] == [cac_ext.__version__]


def test_pictures_are_images_truth_and_predictions(run: Path, tmp_path: Path) -> None:
    page = page_of(run, images=3, output=tmp_path / "page.html")
    images = page.images["predictions"]
    assert len(images) == 9
    classes, loaded = load_classes(run), trainer.load_run(run)
    root = Path(loaded.config.data.root)
    names = ["<u>&lt;", "val1", "val2"]
    for number, name in enumerate(names):
        photo, truth, prediction = images[3 * number : 3 * number + 3]
        original = np.array(Image.open(root / f"images/{name}.png"))
        assert photo["alt"] == f"images/{name}.png"
        assert np.abs(pixels_of(photo).astype(int) - original).mean() < 60  # JPEG of noise
        mask = torch.from_numpy(np.array(Image.open(root / f"masks/val{number}.png")))
        np.testing.assert_array_equal(pixels_of(truth), color_mask(mask, classes))
        found = torch.from_numpy(trainer.predict(loaded, original))
        np.testing.assert_array_equal(pixels_of(prediction), color_mask(found, classes))
    assert "run <b>&, iteration 2" in page.texts["predictions"]
    none = page_of(run, images=0, output=tmp_path / "none.html")
    assert none.images["predictions"] == []


def test_without_data_the_page_has_the_picture_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (50, 20), (1, 2, 3)).save(run / "picture.png")
    command = ["report", str(run), "--output", str(tmp_path / "page.html"), "data.root=/nowhere"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'page.html'}\n"
    assert f"missing in the report: {run.name}: predictions: data.root" in printed.err
    page = Page(tmp_path / "page.html")
    (image,) = page.images["predictions"]
    assert pixels_of(image).shape == (20, 50, 3)
    assert "/nowhere" in page.texts["summary"]


def test_what_earlier_versions_did_not_store_is_named_and_can_be_measured(
    run: Path, tmp_path: Path
) -> None:
    (run / "validation.json").unlink()
    (run / "environment.json").unlink()
    report = trainer.write_report(run, tmp_path / "page.html", images=0)
    assert [sentence.split(": ")[1] for sentence in report.missing] == [
        "confusion matrix",
        "environment",
    ]
    page = Page(report.path)
    assert "No run has stored a confusion matrix" in page.texts["confusion"]
    assert "No run has recorded its environment" in page.texts["environment"]
    assert "earlier versions did not" in page.texts["summary"]

    result = trainer.evaluate_run(trainer.load_run(run), progress=False)
    page = page_of(run, images=0, output=tmp_path / "page.html")  # replaces the earlier report
    assert page.rows("summary")["last mIoU (%)"] == [f"{100 * result.miou:.2f}"]
    assert "evaluation/scale-1/evaluation.json" in page.texts["confusion"]
    # Of other options or another iteration, a matrix is not that of the log.
    (path,) = run.glob("evaluation/*/evaluation.json")
    record = json.loads(path.read_text())
    for changed in ({"inference": "scale 1, flip"}, {"iteration": 1}):
        path.write_text(json.dumps({**record, **changed}))
        page = page_of(run, images=0, output=tmp_path / "page.html")
        assert "No run has stored a confusion matrix" in page.texts["confusion"]
    path.write_text(json.dumps({**record, "confusion": [[1]]}))
    assert "[1, 1]" in page_of(run, images=0, output=tmp_path / "page.html").texts["summary"]


def test_runs_stand_side_by_side_finished_or_not(run: Path, tmp_path: Path) -> None:
    iou = {"rows": 0.25, "plain": None}
    negatives = {"negative_precision": 0.75, "negative_precision_random": 0.5}
    running = made_up_run(
        tmp_path / "running",
        [logged(1), logged(2, **negatives), evaluated(2, 0.25, **iou), logged(3, loss=None)],
        "schedule.epochs=4",
        "seed=3",
    )
    other = made_up_run(
        tmp_path / "other",
        [evaluated(2, 0.5, rows=0.5, plain=0.5), evaluated(4, 0.25, rows=0.5, plain=0.0)],
        "method.unsupervised_weight=0",
    )
    new = made_up_run(tmp_path / "new", [])
    (new / "metrics.jsonl").unlink()
    runs = [run, running, other, new]
    report = trainer.write_report(runs, images=1)
    assert report.path == tmp_path / "report.html"
    page = Page(report.path)
    summary = page.rows("summary")
    assert summary["run"] == [run.name, "running", "other", "new"]
    assert summary["state"] == [
        "finished",
        "unfinished: logged up to iteration 3 of 8",
        "finished",
        "not begun: nothing is logged",
    ]
    assert summary["data"] == ["folder", "synthetic", "synthetic", "synthetic"]
    assert summary["last mIoU (%)"][1:] == ["25.00", "25.00", "–"]
    assert summary["best mIoU (%)"][1:] == ["25.00", "50.00", "–"]
    assert summary["method"][2] == "cac, without its loss on unlabelled images"
    assert "not evaluated on the same images" in page.texts["summary"]
    charts = [value["aria-label"] for tag, value in page.tags if tag == "svg" and "role" in value]
    assert charts[0].startswith("validation mIoU on folder (%)")
    assert "running: 25 at iteration 2; other: 25 at iteration 4" in charts[1]
    assert len(page.tables["classes"]) == 2
    assert page.rows("classes", 1) == {
        "class: IoU (%)": ["running", "other"],
        "rows": ["25.00", "50.00"],
        "plain": ["–", "0.00"],
        "mIoU": ["25.00", "25.00"],
    }
    assert "running: mean of 1 of 2 classes, without plain" in page.texts["classes"]
    assert "running, selected, epoch 1: 75" in page.dots
    assert "running, random, epoch 1: 50" in page.dots
    assert "other has logged no precision of negatives" in page.texts["negatives"]
    settings = page.rows("settings")
    assert page.rows("environment")["torch"] == [torch.__version__, *["not recorded"] * 3]
    assert settings["seed"] == ["0", "3", "0", "0", "0"]
    assert settings["setting"][-1] == "default (folder, synthetic)"
    assert settings["augment.crop_size"][-1] == "folder: 129; synthetic: 65"
    assert "data.synthetic.seed" in settings
    missing = "\n".join(report.missing)
    assert "new: curves and figures: there is no metrics.jsonl" in missing
    assert "running, other, new: environment: not recorded" in missing
    for name in ("running", "other", "new"):
        assert re.search(rf"{name}.*: predictions: cannot read \S+classes.json", missing), name


@pytest.mark.parametrize("count", [30, 31])
def test_the_confusion_matrix_of_many_classes_is_a_picture(
    tmp_path: Path, rng: np.random.Generator, count: int
) -> None:
    """The last class is absent: its row has no shares."""
    names = [f"<{k}>" for k in range(count)]
    run = made_up_run(tmp_path / "run", [evaluated(4, 0.5, **dict.fromkeys(names, 0.5))])
    confusion = rng.integers(0, 100, (count, count))
    confusion[-1] = 0
    shares = {"iou": 0.5, "accuracy": 0.5, "precision": None}
    record = {"iteration": 4, "inference": "scale 1", "images": 3, "miou": 0.5}
    record |= {"pixel_accuracy": 0.25, "classes": dict.fromkeys(names, shares)}
    record |= {"confusion": confusion.tolist(), "absent_classes": []}
    (run / "validation.json").write_text(json.dumps(record))
    page = page_of(run, images=0, output=tmp_path / "page.html")
    assert page.rows("summary")["pixel accuracy (%)"] == ["25.00"]
    assert page.rows("classes")["<3>"] == ["50.00", "50.00", "–"]
    tables, pictures = page.tables["confusion"], page.images["confusion"]
    assert (len(tables), len(pictures)) == ((2, 0) if count == 30 else (1, 1))
    if count == 30:
        assert page.rows("confusion")["<29>"] == ["–"] * 30
    else:
        assert min(pixels_of(pictures[0]).shape[:2]) > 400
    common = page.rows("confusion", len(tables) - 1)
    wrong = confusion - np.diag(confusion.diagonal())
    assert len(tables[-1]) == 9
    first = tables[-1][1]
    true, predicted = names.index(first[0]), names.index(first[1])
    assert wrong[true, predicted] == wrong.max()
    assert first[3] == f"{100 * wrong.max() / wrong.sum():.2f}"
    assert "true class" in common


def test_a_run_without_patience_left_has_stopped_early(tmp_path: Path) -> None:
    entries = [evaluated(2, 0.5, a=0.5), evaluated(4, 0.25, a=0.25), evaluated(6, 0.5, a=0.5)]
    settings = ("schedule.epochs=4", "schedule.patience=2")
    run = made_up_run(tmp_path / "run", entries, *settings)
    page = page_of(run, images=0, output=tmp_path / "page.html")
    assert page.rows("summary")["state"] == [
        "stopped early, after iteration 6 of 8 (schedule.patience)"
    ]


def test_settings_are_compared_with_the_named_configuration() -> None:
    def keys(*configs) -> list[str]:
        return [setting.key for setting in notable_settings(configs)]

    plain = load("synthetic")
    assert keys(plain) == []
    # data.synthetic.seed follows the seed.
    assert keys(load("synthetic", ["seed=2"])) == ["seed"]
    assert keys(load("synthetic", ["data.synthetic.seed=2"])) == ["data.synthetic.seed"]
    changed = load("camvid", ["name=mine", "augment.crop_size=129"])
    assert named_configuration(changed) == "camvid"
    (name, setting) = notable_settings([changed])
    assert (name.key, name.values, name.defaults) == ("name", ["mine"], {"camvid": "camvid"})
    assert (setting.key, setting.values, setting.changed) == ("augment.crop_size", ["129"], [True])
    assert setting.meaning
    assert setting.defaults == {"camvid": "320"}
    own = load("synthetic", ["name=mine", "data.name=my_data:build"])
    assert named_configuration(own) == NO_NAME
    assert "network.name" not in keys(own)
    assert "augment.crop_size" in keys(own)


def test_a_session_replaces_those_that_began_no_earlier(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    for iteration, processes in ((0, 1), (0, 2), (5, 3), (3, 4)):
        save_session(tmp_path, iteration, cpu, processes)
    sessions = load_sessions(tmp_path)
    assert [(x["from_iteration"], x["processes"]) for x in sessions] == [(0, 2), (3, 4)]
    assert sessions[0]["packages"]["torch"] == torch.__version__
    made_up_run(tmp_path, [])
    page = page_of(tmp_path, images=0, output=tmp_path / "page.html")
    environment = page.rows("environment")
    assert environment["processes"] == ["2 (from iteration 0); 4 (from iteration 3)"]
    assert environment["device"] == ["cpu"]
    (tmp_path / "environment.json").write_text("{")
    assert load_sessions(tmp_path) == []


def test_what_cannot_be_written_is_said_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def error(*arguments: str | Path) -> str:
        assert main(["report", *map(str, arguments)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    run = made_up_run(tmp_path / "runs/one", [])
    assert f"{tmp_path} is no run folder: it holds no config.yaml" in error(tmp_path)
    assert "missing is no run folder" in error(tmp_path / "missing")
    assert f"holds 1 of them: give {tmp_path}/runs/*" in error(tmp_path / "runs")
    assert "needs a run folder" in error("data.root=x")
    assert "--images takes a number from 0 up, but got -1" in error(run, "--images", "-1")
    assert "is a folder: give the name of a file" in error(run, "--output", tmp_path)
    notes = tmp_path / "notes.html"
    notes.write_text("<p>mine</p>")
    assert "is no report of cac-ext, so it is not overwritten" in error(run, "--output", notes)
    assert notes.read_text() == "<p>mine</p>"
    assert "must end in .html" in error(run, "--output", tmp_path / "report.pdf")

    target = tmp_path / "new" / "page.html"
    for _ in range(2):  # a report is replaced
        assert main(["report", str(run), str(run), "--images", "0", "--output", str(target)]) == 0
    assert Page(target).rows("summary")["run"] == ["one"]
    with pytest.raises(trainer.UserError, match="needs a run folder"):
        trainer.write_report([])


def test_charts_have_gaps_means_and_every_point_inside(rng: np.random.Generator) -> None:
    look = look_of(0)
    chart = draw("t", "x", [Series("a", look, [(1, 1.0), (2, None), (3, 2.0), (4, 3.0)])])
    (line,) = chart.lines
    assert re.sub(r"[\d. ]+", "", line.path) == "MhML"
    assert [dot.text for dot in chart.dots] == ["a, x 1: 1", "a, x 3: 2", "a, x 4: 3"]
    assert "a: 3 at x 4" in chart.summary
    assert draw("t", "x", []) is None
    assert draw("t", "x", [Series("a", look, [(1, None)])]) is None

    values = rng.normal(size=1000) * 10.0 ** rng.integers(-6, 6)
    points = list(enumerate(values.tolist(), 1))
    chart = draw("t", "x", [Series("a", look, points)])
    assert chart.averaged == 4
    (line,) = chart.lines
    places = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", line.path), float)
    assert len(places) == 250
    assert ((places >= 0) & (places <= [WIDTH, HEIGHT])).all()
    assert not chart.dots
    # The first mean lies where the axis says.
    low, high = chart.y_ticks[0], chart.y_ticks[-1]
    numbers = [float(tick.text.replace(",", "")) for tick in (low, high)]
    share = (places[0, 1] - low.place) / (high.place - low.place)
    shown = numbers[0] + share * (numbers[1] - numbers[0])
    assert shown == pytest.approx(values[:4].mean(), abs=0.01 * np.ptp(values))

    for constant in (0.0, -2.5, 4096.0):
        flat = draw("t", "x", [Series("a", look, [(5, constant), (9, constant)])])
        assert all(0 < dot.y < HEIGHT for dot in flat.dots)
        assert len(flat.y_ticks) > 1
    assert len({look_of(k) for k in range(28)}) == 28
