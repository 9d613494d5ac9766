"""The examples run as they are, on settings that take a second; the index names them all."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from tiny_run import TINY_RUN

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = EXAMPLES / "from_data_to_picture.ipynb"
ONE_STEP = [
    "network.width=16",
    "augment.crop_size=33",
    "schedule.epochs=1",
    "schedule.iterations_per_epoch=1",
    "schedule.warmup_epochs=0",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are found from any folder, and write below this one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports an example anew."""

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_the_index_names_every_example() -> None:
    named = re.findall(r"^\| \[(.*?)\]\((.*?)\)", (EXAMPLES / "README.md").read_text(), re.M)
    assert all(name == target for name, target in named)
    files = {path.name for kind in ("*.py", "*.ipynb") for path in EXAMPLES.glob(kind)}
    assert {name for name, _ in named} == files


def test_every_example_is_a_documented_program() -> None:
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        assert text.startswith('"""'), path
        assert f"python {path.name}" in text.split('"""')[1], path
        assert 'if __name__ == "__main__":\n    main()\n' in text, path


def test_the_loss_before_and_after_gives_the_same_curve(load, capsys, monkeypatch) -> None:
    example = load("before_and_after")
    before, after = (
        example.train(function, steps=12, batch=2).losses
        for function in (example.plain_loss, example.fused_loss)
    )
    assert before == pytest.approx(after, abs=1e-4)
    monkeypatch.setattr(example, "WEIGHT", 0.0)
    without = example.train(example.plain_loss, steps=12, batch=2).losses
    assert without != pytest.approx(before, abs=1e-2)  # the contrast takes part
    monkeypatch.setattr(example, "SIZE", 32)
    example.main(["--steps", "2", "--batch", "1"])
    assert "largest difference" in capsys.readouterr().out


def test_a_folder_is_made_and_trained_on(load, capsys, tmp_path: Path, monkeypatch) -> None:
    example = load("train_your_folder")
    monkeypatch.setattr(example, "PARTS", {"labelled": 2, "unlabelled": 2, "validation": 2})
    monkeypatch.setattr(example, "SIZE", 48)
    example.main(["--folder", str(tmp_path / "data"), *ONE_STEP])
    out = capsys.readouterr().out
    assert "made 6 images" in out
    assert "disk" in out
    picture = re.search(r"prediction: (.*)", out)
    assert picture is not None
    assert Path(picture[1]).is_file()
    # A folder that exists is used as it is.
    made = (tmp_path / "data/images/0.png").stat().st_mtime_ns
    monkeypatch.setattr(example, "make_folder", None)
    config = [*ONE_STEP, "method.name=sup_only"]
    example.main(["--folder", str(tmp_path / "data"), *config])
    assert (tmp_path / "data/images/0.png").stat().st_mtime_ns == made


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("name", ["unet", "mean_teacher", "timm_encoder"])
def test_it_trains(name: str, load, capsys) -> None:
    if name == "timm_encoder":
        pytest.importorskip("timm")
    load(name).main([*TINY_RUN, "schedule.iterations_per_epoch=1"])
    assert "mIoU" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["timm_encoder", "smp_network"])
def test_a_missing_package_is_named_in_a_sentence(name: str, load, capsys, monkeypatch) -> None:
    example = load(name)
    monkeypatch.setattr(example, "find_spec", lambda package: None)
    example.main([])
    assert re.fullmatch(r"skipped: this example needs .*pip install.*\n", capsys.readouterr().out)


def test_the_u_net_takes_any_size(load, seed: int) -> None:
    import torch

    from cac_ext.train.config import NetworkConfig
    from cac_ext.train.networks import build_network

    load("unet")
    torch.manual_seed(seed)
    config = NetworkConfig(name="unet:build", options={"width": 16})
    network = build_network(config, 4).eval()
    for size in ((64, 64), (33, 50), (17, 95)):
        assert network(torch.randn(1, 3, *size)).shape == (1, 4, *size)


def test_the_notebook_goes_from_data_to_picture(capsys, tmp_path: Path) -> None:
    from matplotlib import pyplot

    cells = [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]
    (settings,) = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    settings["source"] = [f"DATA, SETTINGS = 'synthetic', {TINY_RUN!r}"]
    pyplot.switch_backend("agg")
    names: dict[str, object] = {}
    try:
        for number, cell in enumerate(cells):
            text = "".join(cell["source"])
            exec(compile(text, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    finally:
        pyplot.close("all")
    out = capsys.readouterr().out
    assert re.search(r"SupOnly: mIoU .*\nCAC: mIoU ", out)
    (picture,) = tmp_path.glob("*/predictions.png")
    assert picture.stat().st_size > 1000


def test_the_notebook_is_committed_without_outputs() -> None:
    book = json.loads(NOTEBOOK.read_text())
    assert book["nbformat"] == 4
    for cell in book["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
