"""`benchmarks camvid` compares like with like, resumes when interrupted and names no folder."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from image_trees import draw_image, draw_mask
from PIL import Image

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")

from benchmarks.__main__ import main
from cac_ext.train.config import load

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [
    "device=cpu",
    "network.name=small",
    "network.weights=null",
    "network.width=16",
    "augment.crop_size=33",
    "augment.base_size=null",
    "data.num_workers=0",
    "schedule.epochs=2",
    "schedule.iterations_per_epoch=2",
    "schedule.warmup_epochs=1",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
    "schedule.log_every=1",
]


@pytest.fixture
def camvid(tmp_path: Path, seed: int) -> Path:
    """Sixteen training and two validation images."""
    rng = np.random.default_rng(seed)
    root = tmp_path / "camvid"
    for part, count in (("train", 16), ("val", 2)):
        for number in range(count):
            draw_image(root / part / f"{number}.png", rng)
            draw_mask(root / f"{part}annot" / f"{number}.png", rng, 11)
    return root


def test_both_methods_meet_the_same_images_at_equal_iterations(
    camvid: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    arguments = ["camvid", "--data", str(camvid), "--output", str(output)]
    arguments += ["--only", "comparison", "--seeds", "4,7", *TINY]
    assert main(arguments) == 0
    folders = {path.name: path for path in (output / "runs/comparison").iterdir() if path.is_dir()}
    assert set(folders) == {f"{m}-seed{s}" for m in ("sup_only", "cac") for s in (4, 7)}
    configs = {name: load(str(path / "config.yaml")) for name, path in folders.items()}
    for name, config in configs.items():
        seed = int(name.removeprefix("sup_only-seed").removeprefix("cac-seed"))
        assert (config.seed, config.data.split_seed, config.iterations) == (seed, seed, 4)
        assert config.data.labelled_ratio == "1/8"

    results = json.loads((output / "comparison.json").read_text())
    assert str(tmp_path) not in (output / "comparison.json").read_text()
    assert results["command"].startswith("cac-ext compare camvid --methods sup_only,cac")
    assert "data.root=DATA" in results["command"]
    miou = {(run["method"], run["seed"]): run["miou"] for run in results["runs"]}
    gains = [miou["cac", seed] - miou["sup_only", seed] for seed in (4, 7)]
    assert list(results["gains"]["by_seed"].values()) == gains
    assert results["gains"]["mean"] == pytest.approx(statistics.fmean(gains))
    for run in results["runs"]:
        assert run["evaluations"][-1] == [4, run["miou"]]
        assert ("negatives" in run) == (run["method"] == "cac")
    table = (output / "comparison.md").read_text()
    assert f"| gain | {100 * gains[0]:+.2f} | {100 * gains[1]:+.2f} |" in table
    # The picture is that of the comparison.
    drawn = output / "runs" / "comparison" / "picture.png"
    assert (output / "picture.png").read_bytes() == drawn.read_bytes()
    with Image.open(output / "picture.png") as picture:
        assert picture.format == "PNG"

    # The same command again trains nothing.
    checkpoints = {path: path.stat().st_mtime_ns for path in output.rglob("checkpoint.pt")}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("checkpoint.pt")} == checkpoints
    assert json.loads((output / "comparison.json").read_text())["runs"] == results["runs"]


def test_a_quick_sweep_has_rows_of_other_numbers_of_negatives(camvid: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    # These settings come after the number of negatives of each row and do not change it.
    small = [setting for setting in TINY if not setting.startswith("schedule.")]
    small += ["schedule.unlabelled_batch=16", "method.step_save=0"]
    arguments = ["camvid", "--data", str(camvid), "--output", str(output), "--quick", *small]
    with pytest.warns(UserWarning, match="all of them become negatives"):
        assert main([*arguments, "--only", "negatives"]) == 0
    results = json.loads((output / "negatives.json").read_text())
    assert [run["row"] for run in results["runs"]] == ["negatives-500", "negatives-25600"]
    assert results["runs"][0]["negatives"] == 2 * 250
    assert results["runs"][1]["negatives"] > 2 * 250
    table = (output / "negatives.md").read_text()
    assert "these figures say nothing" in table
    assert re.search(r"^\| 500 \| 500 \|", table, re.M)


def test_what_cannot_be_used_is_said_at_once(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["camvid", "--data", str(camvid), "--output", str(tmp_path / "output")]
    assert main([*arguments, "--seeds", "zero"]) == 2
    assert "--seeds takes integers like 0,1,2, but got zero" in capsys.readouterr().err
    assert main([*arguments, "shedule.epochs=2"]) == 2
    assert "did you mean 'schedule'?" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
