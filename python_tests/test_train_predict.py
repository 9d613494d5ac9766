"""`cac-ext evaluate` and `cac-ext predict`: from a run folder to figures and masks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TINY_RUN
from torch import nn

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.figures.panels import color_mask, save_confusion
from cac_ext.train.inference import Inference, class_probabilities, predict, predict_logits
from cac_ext.train.loop import train
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runs.folder import load_run

TINY = [
    *TINY_RUN,
    "data.synthetic.labelled=4",
    "data.synthetic.unlabelled=0",
    "schedule.epochs=1",
    "method.unsupervised_weight=0",
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("trained") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(load("synthetic", TINY), folder, progress=False)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def images(tmp_path: Path, seed: int) -> Path:
    """A folder of pictures of several formats, modes and sizes, one in a folder below."""
    generator = np.random.default_rng(seed)
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name, size in {"a.png": (31, 40, 3), "b.JPG": (50, 33, 3), "below/a.png": (20, 64)}.items():
        Image.fromarray(generator.integers(0, 256, size, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


class Pointwise(nn.Module):
    """Features that depend on the pixel alone, so windows and mirroring cannot change them."""

    out_channels, stride = 3, 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.square()


def test_windows_and_mirroring_cover_every_pixel_once(seed: int) -> None:
    torch.manual_seed(seed)
    network = SegmentationNetwork(Pointwise(), nn.Conv2d(3, 5, 1)).eval()
    image = torch.randint(0, 256, (3, 37, 53), dtype=torch.uint8)
    whole = predict_logits(network, image).softmax(dim=1)[0]
    for inference in (Inference(flip=True), Inference(window=16), Inference((1, 1), True, 40)):
        probabilities = class_probabilities(network, image, inference)
        torch.testing.assert_close(probabilities, whole, rtol=1e-4, atol=1e-5)
        assert predict(network, image, inference).shape == (37, 53)


def test_scales_average_the_probabilities_at_the_images_size(seed: int) -> None:
    torch.manual_seed(seed)
    network = SegmentationNetwork(Pointwise(), nn.Conv2d(3, 5, 1)).eval()
    flat = torch.randint(0, 256, (3, 1, 1), dtype=torch.uint8).expand(3, 21, 34)
    whole = predict_logits(network, flat).softmax(dim=1)[0]
    probabilities = class_probabilities(network, flat, Inference((0.5, 1.0, 1.7)))
    torch.testing.assert_close(probabilities, whole, rtol=1e-4, atol=1e-5)
    noise = torch.randint(0, 256, (3, 21, 34), dtype=torch.uint8)
    single, multi = (class_probabilities(network, noise, Inference(s)) for s in ((1,), (0.5, 1)))
    assert multi.shape == single.shape == (5, 21, 34)
    assert not torch.allclose(single, multi)
    torch.testing.assert_close(multi.sum(0), torch.ones(21, 34))


def test_evaluate_repeats_the_mIoU_of_the_training(  # noqa: N802
    run_folder: Path, tmp_path: Path, capsys
) -> None:
    assert main(["evaluate", str(run_folder)]) == 0
    table = capsys.readouterr().out
    record = json.loads((run_folder / "evaluation" / "scale-1" / "evaluation.json").read_text())
    logged = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["miou"] == logged["miou"]
    assert {k: v["iou"] for k, v in record["classes"].items()} == logged["class_iou"]
    assert sum(map(sum, record["confusion"])) == 4 * 48 * 48  # every pixel once
    for word in (*record["classes"], "IoU", "accuracy", "precision", f"{100 * logged['miou']:.2f}"):
        assert word in table
    save_confusion(
        tmp_path / "again.png", torch.tensor(record["confusion"]), list(record["classes"])
    )
    shown = run_folder / "evaluation" / "scale-1" / "confusion_matrix.png"
    assert shown.read_bytes() == (tmp_path / "again.png").read_bytes()


def test_evaluate_takes_scales_windows_and_other_data(run_folder: Path, capsys) -> None:
    options = ["--scales", "0.75,1", "--flip", "--window", "32", "data.synthetic.validation=2"]
    assert main(["evaluate", str(run_folder), *options]) == 0
    (path,) = (run_folder / "evaluation").glob("scale-0.75-1-flip-window-32/evaluation.json")
    assert json.loads(path.read_text())["images"] == 2

    for wrong, word in (
        (["optimizer.momentum=0"], "only data.*, evaluation.*, run.precision and device"),
        (["--scales", "0,x"], "--scales"),
        (["--window", "0"], "--window takes a number of pixels above 0"),
        (["--window", "all"], "or whole, but got all"),
        (["--window-memory", "0"], "--window-memory takes"),
    ):
        capsys.readouterr()
        assert main(["evaluate", str(run_folder), *wrong]) == 2
        assert word in capsys.readouterr().err


def test_predict_writes_ids_colors_and_overlays_and_leaves_the_images(
    run_folder: Path, images: Path, tmp_path: Path, capsys
) -> None:
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    output = tmp_path / "predicted"
    arguments = ["predict", str(run_folder), str(images), "--output", str(output)]
    assert main(arguments) == 0
    assert "3 of 3 images" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before

    run = load_run(run_folder)
    for name in ("a", "b", "below/a"):
        ids = Image.open(output / "ids" / f"{name}.png")
        source = next(path for path in before if str(path).startswith(f"{images / name}."))
        with Image.open(source) as picture:
            assert ids.size == picture.size
            pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        assert ids.mode == "L"
        assert np.array_equal(np.array(ids), predict(run.network, pixels).numpy())
        colors = color_mask(torch.from_numpy(np.array(ids)), run.classes)  # [H, W, 3]
        half = (pixels.permute(1, 2, 0).float() + torch.from_numpy(colors)) / 2
        for kind, expected in (("colors", colors), ("overlays", half.numpy())):
            with Image.open(output / kind / f"{name}.png") as picture:
                assert (picture.mode, picture.size) == ("RGB", ids.size)
                np.testing.assert_allclose(np.array(picture), expected, atol=1)

    # A second time: nothing is overwritten without --overwrite.
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_predict_never_writes_over_an_image(run_folder: Path, images: Path, capsys) -> None:
    ids = images / "ids"
    ids.mkdir()
    target = ids / "a.png"
    target.write_bytes((images / "a.png").read_bytes())
    before = target.read_bytes()
    arguments = ["predict", str(run_folder), str(target), "--overwrite"]
    assert main([*arguments, "--output", str(images)]) == 2
    assert "is one of the images" in capsys.readouterr().err
    assert target.read_bytes() == before

    # Two images with one name would go to the same file.
    arguments = ["predict", str(run_folder), str(target), str(images / "a.png")]
    assert main([*arguments, "--output", str(images / "out")]) == 2
    assert "would both be written" in capsys.readouterr().err


def test_a_broken_image_is_named_and_the_others_are_done(
    run_folder: Path, images: Path, tmp_path: Path, capsys
) -> None:
    (images / "broken.png").write_bytes(b"no picture")
    arguments = ["predict", str(run_folder), str(images), "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert str(images / "broken.png") in captured.err
    assert "3 of 4 images" in captured.out


def test_predict_says_what_is_missing(run_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    output = ["--output", str(tmp_path / "out")]
    for folder, image, word in (
        (tmp_path / "empty", tmp_path / "empty", "holds no images"),
        (run_folder, tmp_path / "nothing.png", "nothing.png"),
        (tmp_path / "empty", run_folder / "picture.png", "is no run folder"),
    ):
        assert main(["predict", str(folder), str(image), *output]) == 2
        assert word in capsys.readouterr().err
