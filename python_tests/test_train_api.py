"""The functions of `cac_ext.train` do what the commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import assert_same_run
from tiny_run import TINY_RUN

from cac_ext import train
from cac_ext.train import api, cli
from cac_ext.train.cli.main import main
from cac_ext.train.errors import CheckpointError, ConfigError, DataError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_every_name_is_documented_and_imported_on_first_use() -> None:
    assert train.__all__ == api.__all__
    assert set(train.__all__) <= set(dir(train))
    for name in train.__all__:
        assert getattr(train, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'predictions'"):
        train.predictions  # noqa: B018


def test_importing_the_trainer_imports_no_package_of_its_extra() -> None:
    heavy = {
        "torchvision",
        "omegaconf",
        "matplotlib",
        "PIL",
        "torchmetrics",
        "tensorboard",
        "jinja2",
    }
    code = f"import sys, cac_ext.train; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_from_python_is_that_of_the_command(tmp_path: Path, seed: int, capsys) -> None:
    overrides = [*TINY_RUN, f"seed={seed}"]
    result = train.train(
        train.load_config("synthetic", overrides), str(tmp_path / "one"), progress=False
    )
    assert capsys.readouterr().out == ""
    assert main(["train", "synthetic", *overrides, "--folder", str(tmp_path / "two")]) == 0
    assert f"{100 * result.miou:.2f}" in capsys.readouterr().out
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert result.folder == tmp_path / "one"

    assert train.resume(tmp_path / "one", progress=False).miou == result.miou
    with pytest.raises(CheckpointError, match="already holds a run"):
        train.train(train.load_config("synthetic", overrides), tmp_path / "one", progress=False)
    with pytest.raises(CheckpointError, match=r"optimizer\.momentum"):
        train.resume(tmp_path / "one", ["optimizer.momentum=0.5"])
    with pytest.raises(ConfigError, match="is no run folder"):
        train.resume(tmp_path)


def test_without_a_folder_a_run_goes_below_the_output(tmp_path: Path) -> None:
    overrides = [*TINY_RUN, "method.name=sup_only", f"output={tmp_path}", "name=mine"]
    result = train.train(train.load_config("synthetic", overrides), progress=False)
    assert result.folder.parent == tmp_path
    assert result.folder.name.startswith("mine-")
    assert (result.folder / "checkpoint.pt").exists()


def test_a_comparison_gives_the_records_and_the_table(tmp_path: Path) -> None:
    result = train.compare(
        "synthetic", ["sup_only", "cac"], [3], TINY_RUN, folder=tmp_path, progress=False
    )
    written = json.loads((tmp_path / "results.json").read_text())
    assert [result.records[name, 3]["miou"] for name in ("sup_only", "cac")] == [
        record["miou"] for record in written
    ]
    assert (tmp_path / "table.txt").read_text() == f"{result}\n"


def test_an_evaluation_gives_what_the_command_writes(run_folder: Path, tmp_path: Path) -> None:
    run = train.load_run(run_folder)
    result = train.evaluate_run(
        run, inference=train.Inference(flip=True), output=tmp_path, progress=False
    )
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert result.miou == record["miou"]
    assert result.images == record["images"] == 2
    assert record["inference"] == "scale 1, flip"
    assert [*result.class_iou] == list(run.classes.class_names)
    assert f"{100 * result.miou:.2f}" in str(result)


def test_predictions_are_those_of_the_command(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 61), (33, 20))]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    paths = [tmp_path / "0.png", str(tmp_path / "1.png")]
    command = ["predict", str(run_folder), *map(str, paths), "--output", str(tmp_path / "out")]
    assert main([*command, "--flip", "--scales", "1,1.5"]) == 0

    run = train.load_run(run_folder, ["device=cpu"])
    inference = train.Inference(scales=(1.0, 1.5), flip=True)
    for given in (images, paths):
        for number, ids in enumerate(train.predict_all(run, given, inference=inference)):
            assert ids.dtype == np.int64
            expected = np.asarray(Image.open(tmp_path / f"out/ids/{number}.png"))
            np.testing.assert_array_equal(ids, expected)
    probabilities = train.predict_probabilities(run, images[0], inference=inference)
    assert probabilities.shape == (3, 40, 61)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    expected = train.predict(run, images[0], inference=inference)
    np.testing.assert_array_equal(probabilities.argmax(axis=0), expected)
    # A view into another array, mirrored: the memory is not contiguous.
    mirrored = train.predict(run, images[0][:, ::-1], inference=train.Inference(flip=True))
    plain = train.predict(run, images[0], inference=train.Inference(flip=True))
    assert (mirrored[:, ::-1] == plain).mean() > 0.99


def test_an_array_that_is_no_image_is_refused_by_name(run_folder: Path) -> None:
    run = train.load_run(run_folder)
    with pytest.raises(TypeError, match="uint8, but is of type float64"):
        train.predict(run, np.zeros((8, 8, 3)))
    for shape in ((8, 8), (3, 8, 8), (8, 8, 4), (0, 8, 3)):
        with pytest.raises(ValueError, match=r"\[H, W, 3\], but has the shape"):
            train.predict(run, np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="there is no image"):
        train.predict(run, "missing.png")


def test_the_example_predicts(run_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import predict_from_python as example

    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "red.png")
    example.main(["--run", str(run_folder), str(tmp_path / "red.png")])
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'red.png'}: class ")
    assert "%" in out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example, "QUICK", [*TINY_RUN, "method.name=sup_only"])
    example.main([])
    out = capsys.readouterr().out
    assert "mIoU" in out
    assert "noise: " in out


def test_the_commands_call_these_functions() -> None:
    for name in ("train", "evaluate", "report"):
        assert "from cac_ext.train import api" in Path(cli.__path__[0], f"{name}.py").read_text()
