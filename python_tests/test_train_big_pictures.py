"""Large images: read, predicted, counted and written by bands, and by windows while training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import draw_image, draw_mask, folder_overrides, folder_tree
from PIL import Image
from tiny_run import TINY_RUN, draw_no_pictures
from torch import Tensor

from cac_ext.train import inference, preflight
from cac_ext.train.cli.main import main
from cac_ext.train.config import load, to_mapping
from cac_ext.train.data import build_datasets
from cac_ext.train.errors import CheckpointError, DataError
from cac_ext.train.inference import Inference, predict
from cac_ext.train.loop import train
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runs import evaluation
from cac_ext.train.runs.checkpoint import require_same_settings
from cac_ext.train.runs.folder import load_run
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runtime import bands

HELPER = Path(__file__).parent / "big_picture.py"


def in_bands_of(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    assert pixels < bands.BAND_PIXELS
    monkeypatch.setattr(bands, "BAND_PIXELS", pixels)


@pytest.fixture
def no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations draw no confusion matrix, which takes most of their time."""
    monkeypatch.setattr(evaluation, "save_confusion", lambda *_: None)


@pytest.mark.usefixtures("no_matrix")
@pytest.mark.parametrize("pixels", [1, 100])
def test_bands_of_any_height_read_predict_and_count_the_same(
    pixels: int,
    run_folder: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder_tree(tmp_path / "data", rng, 2, 2)
    images = tmp_path / "images"
    images.mkdir()
    palette = Image.fromarray(rng.integers(0, 256, (21, 33), np.uint8), "P")
    palette.putpalette(rng.integers(0, 256, 768, np.uint8).tobytes())
    palette.save(images / "palette.png", transparency=3)
    Image.fromarray(rng.integers(0, 2**16, (21, 33), np.uint16)).save(images / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (21, 33, 4), np.uint8)).save(
        images / "turned.png", exif=exif
    )

    def results(name: str) -> dict[str, bytes]:
        output = tmp_path / name
        arguments = ["predict", str(run_folder), str(images), "--output", str(output / "masks")]
        assert main([*arguments, "--window", "16"]) == 0
        arguments = ["evaluate", str(run_folder), *folder_overrides(tmp_path / "data")]
        assert main([*arguments, "--output", str(output / "numbers")]) == 0
        found = [path for path in output.rglob("*") if path.is_file()]
        return {str(path.relative_to(output)): path.read_bytes() for path in found}

    expected = results("whole")
    assert len(expected) == 3 * 3 + 1
    in_bands_of(monkeypatch, pixels)
    assert results("bands") == expected


def test_a_wrong_id_is_found_in_any_band(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    mask = tmp_path / "masks/val0.png"
    assert mask.is_file()
    ids = np.array(Image.open(mask))
    ids[-1, -1] = 77
    Image.fromarray(ids).save(mask)
    in_bands_of(monkeypatch, 1)
    splits = build_datasets(load("folder", folder_overrides(tmp_path)).data, check=False)
    with pytest.raises(DataError, match="ids 77 in 1 pixels"):
        splits.validation[0]


@pytest.mark.usefixtures("no_matrix")
def test_windows_while_training_are_those_of_the_evaluate_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Training itself stays the same bit for bit."""
    draw_no_pictures(monkeypatch)
    sides: set[int] = set()
    original = inference.predict_logits

    def watched(network: SegmentationNetwork, image: Tensor, *options: object) -> Tensor:
        sides.update(image.shape[-2:])
        return original(network, image, *options)

    monkeypatch.setattr(inference, "predict_logits", watched)
    runs = []
    for options, side in (([], 48), (["evaluation.window=20"], 20)):
        folder = tmp_path / f"run-{side}"
        train(load("synthetic", [*TINY_RUN, *options]), folder, progress=False)
        assert sides == {side}
        logged = read_metrics(folder / "metrics.jsonl")[-1]["miou"]
        runs.append(load_run(folder))
        for window, seen in (([], side), (["--window", "20"], 20), (["--window", "whole"], 48)):
            sides.clear()
            arguments = ["evaluate", str(folder), "--output", str(tmp_path / "again")]
            assert main([*arguments, *window]) == 0
            assert sides == {seen}
            record = json.loads((tmp_path / "again/evaluation.json").read_text())
            assert ("window 20" in record["inference"]) == (seen == 20)
            assert seen != side or record["miou"] == logged
        sides.clear()
    capsys.readouterr()
    weights = [run.network.state_dict() for run in runs]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.usefixtures("no_matrix")
def test_evaluation_and_predictions_follow_the_runs_precision_and_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    draw_no_pictures(monkeypatch)
    options = ["run.precision=bf16", "run.channels_last=true", "evaluation.window=24"]
    train(load("synthetic", [*TINY_RUN, *options]), tmp_path / "run", progress=False)
    logged = read_metrics(tmp_path / "run/metrics.jsonl")[-1]["miou"]
    assert main(["evaluate", str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 0
    record = json.loads((tmp_path / "again/evaluation.json").read_text())
    assert record["miou"] == logged
    assert record["inference"] == "scale 1, window 24, bf16"
    arguments = ["evaluate", str(tmp_path / "run"), "--precision", "fp32"]
    assert main([*arguments, "--output", str(tmp_path / "exact")]) == 0
    record = json.loads((tmp_path / "exact/evaluation.json").read_text())
    assert record["inference"] == "scale 1, window 24"

    run = load_run(tmp_path / "run")
    weights = [x for x in run.network.parameters() if x.ndim == 4 and min(x.shape[1:]) > 1]
    assert weights
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in weights)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
    output = tmp_path / "out"
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "image.png"),
                 "--output", str(output)]) == 0  # fmt: skip
    found = torch.from_numpy(np.array(Image.open(output / "ids/image.png")))
    expected = predict(run.network, image, Inference(window=24, precision="bf16"))
    assert torch.equal(found.long(), expected)


def test_a_run_resumes_with_other_windows() -> None:
    """Even a run that was started before the section existed."""
    saved = to_mapping(load("folder"))
    config = load("folder", ["evaluation.window=513", "evaluation.window_memory=100"])
    require_same_settings(saved, config, Path("checkpoint.pt"))
    del saved["evaluation"]
    require_same_settings(saved, config, Path("checkpoint.pt"))
    del saved["schedule"]
    with pytest.raises(CheckpointError, match=r"schedule\.epochs is 80 there and 10 here"):
        require_same_settings(saved, config, Path("checkpoint.pt"))


def test_an_image_too_large_for_the_memory_is_refused_before_training(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_tree(tmp_path, rng, 2, 2)
    overrides = [*folder_overrides(tmp_path), "device=cpu"]
    for name in ("val0", "val1"):
        draw_image(tmp_path / f"images/{name}.png", rng, (50, 60))
        draw_mask(tmp_path / f"masks/{name}.png", rng, 3, (50, 60))
    scores = 4 * 3 * 50 * 60
    for memory, options, refused in (
        (scores, [], False),
        (scores - 1, [], True),
        (scores - 1, ["evaluation.window=33"], False),
        (None, [], False),
    ):
        monkeypatch.setattr(preflight, "total_memory", lambda device, memory=memory: memory)
        config = load("folder", [*overrides, *options])
        if refused:
            with pytest.raises(DataError, match=r"60 x 50 pixels.*cpu has.*Let the .*window=513"):
                preflight.require_labels(config, progress=False)
        else:
            preflight.require_labels(config, progress=False)


def test_an_image_too_large_for_the_memory_is_named_and_the_others_are_predicted(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for name, side in (("a", 20), ("b", 60), ("c", 20)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    original = torch.nn.functional.pad

    def pad(x: Tensor, *arguments: object, **options: object) -> Tensor:
        if x.shape[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(x, *arguments, **options)

    monkeypatch.setattr("cac_ext.train.inference.F.pad", pad)
    arguments = ["predict", str(run_folder), *(str(tmp_path / f"{n}.png") for n in "abc")]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--window", "whole"]) == 1
    captured = capsys.readouterr()
    assert "2 of 3 images" in captured.out
    assert f"{tmp_path / 'b.png'}: cpu has not enough memory to predict 60 x 60" in captured.err
    assert "--window 513" in captured.err
    arguments = [*arguments, "--output", str(tmp_path / "windows"), "--window", "33"]
    assert main(arguments) == 0


@pytest.mark.slow
def test_predicting_20000_x_20000_pixels_takes_4_gib() -> None:
    """Extrapolated from two sizes: memory is linear in the pixels, of which it needs 8 bytes."""
    sides, growths = (1500, 4500), []
    for side in sides:
        command = [sys.executable, str(HELPER), str(side)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        growths.append(json.loads(done.stdout)["growth_mib"] * 2**20)
    small, large = (side**2 for side in sides)
    slope = (growths[1] - growths[0]) / (large - small)
    assert slope < 10
    assert growths[1] + slope * (20_000**2 - large) < 4 * 2**30
