"""`benchmarks camvid` and `methods` compare like with like, resume and name no folder."""

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
from benchmarks.errors import UsageError
from benchmarks.trainings.resized import resized_copy
from cac_ext.train import load_run, predict, predict_probabilities
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets

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
    assert list(results["gains"]) == ["cac"]
    assert list(results["gains"]["cac"]["by_seed"].values()) == gains
    assert results["gains"]["cac"]["mean"] == pytest.approx(statistics.fmean(gains))
    for run in results["runs"]:
        assert run["evaluations"][-1] == [4, run["miou"]]
        assert ("negatives" in run["late"]) == (run["method"] == "cac")
        assert run["seconds_per_step"] > 0
    table = (output / "comparison.md").read_text()
    shown = [f"{100 * miou['cac', seed]:.2f}" for seed in (4, 7)]
    of_cac = [miou["cac", seed] for seed in (4, 7)]
    mean, spread = 100 * statistics.fmean(of_cac), 100 * statistics.stdev(of_cac)
    row = f"| CAC (ours) | {' | '.join(shown)} | {mean:.2f} ± {spread:.2f} |"
    assert f"{row} {100 * statistics.fmean(gains):+.2f} |" in table
    assert re.search(r"^\| `active_share` \| - \| \d", table, re.M)
    assert re.search(r"^\| unlabelled pixels with confidence 0.75 to 0.95 \| \d", table, re.M)
    for run in results["runs"]:
        assert run["limits"] == _limits(folders[f"{run['method']}-seed{run['seed']}"])
    # The picture is that of the comparison.
    drawn = output / "runs" / "comparison" / "picture.png"
    assert (output / "picture.png").read_bytes() == drawn.read_bytes()
    for name in ("picture.png", "validation_curves.png"):
        with Image.open(output / name) as picture:
            assert picture.format == "PNG"

    # The same command again trains nothing.
    checkpoints = {path: path.stat().st_mtime_ns for path in output.rglob("checkpoint.pt")}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("checkpoint.pt")} == checkpoints
    assert json.loads((output / "comparison.json").read_text())["runs"] == results["runs"]


def _limits(folder: Path) -> dict[str, object]:
    """What `find_limits` must find: from predictions of the API, counted by NumPy."""
    run = load_run(folder)
    splits = build_datasets(run.config.data)
    confusion = np.zeros((11, 11), dtype=np.int64)
    for index in range(len(splits.labelled)):
        sample = splits.labelled[index]
        found = predict(run, sample["image"].numpy().transpose(1, 2, 0))
        mask = sample["mask"].numpy()
        np.add.at(confusion, (mask[mask < 11], found[mask < 11]), 1)
    hits = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    edges = [0, 0.5, 0.75, 0.95, np.inf]
    counts, correct = np.zeros(4), np.zeros(4)
    for index in range(len(splits.unlabelled)):
        image = splits.unlabelled[index]["image"].numpy().transpose(1, 2, 0)
        probabilities = predict_probabilities(run, image)
        mask = splits.unlabelled.known_mask(index).numpy()
        known = mask < 11
        confidences, right = probabilities.max(0), probabilities.argmax(0) == mask
        counts += np.histogram(confidences[known], edges)[0]
        correct += np.histogram(confidences[known & right], edges)[0]
    return {
        "labelled_miou": pytest.approx((hits[union > 0] / union[union > 0]).mean()),
        "confident": pytest.approx(counts / counts.sum()),
        "correct": [
            pytest.approx(h / n) if n else None for h, n in zip(correct, counts, strict=True)
        ],
    }


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
    assert results["runs"][0]["late"]["negatives"] == 2 * 250
    assert results["runs"][1]["late"]["negatives"] > 2 * 250
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


def test_smaller_copies_keep_class_ids_and_lists(camvid: Path, tmp_path: Path, seed: int) -> None:
    (camvid / "lists.txt").write_text("a b\n")
    copy = tmp_path / "copy"
    resized_copy(camvid, copy, 24)
    assert {p.relative_to(camvid) for p in camvid.rglob("*")} == {
        p.relative_to(copy) for p in copy.rglob("*")
    }
    for path in camvid.rglob("*.png"):
        with Image.open(path) as whole, Image.open(copy / path.relative_to(camvid)) as small:
            assert max(small.size) == 24 < max(whole.size)
            assert abs(small.width * whole.height - small.height * whole.width) <= max(whole.size)
            if path.parent.name.endswith("annot"):
                assert np.isin(np.asarray(small), np.asarray(whole)).all()
    assert (copy / "lists.txt").read_text() == "a b\n"
    # A second copy changes nothing; one inside the data would copy itself.
    times = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    resized_copy(camvid, copy, 24)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == times
    with pytest.raises(UsageError, match="must lie outside of the data"):
        resized_copy(camvid, camvid / "small", 24)
    with pytest.raises(UsageError, match="there is no folder"):
        resized_copy(camvid / "nowhere", copy, 24)


def test_a_smaller_copy_is_what_is_trained(camvid: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    arguments = ["camvid", "--data", str(camvid), "--output", str(output), "--long-side", "28"]
    assert main([*arguments, "--only", "comparison", "--seeds", "4", *TINY]) == 0
    config = load(str(output / "runs/comparison/cac-seed4/config.yaml"))
    assert (config.data.root, config.augment.base_size) == (str(output / "data"), None)
    assert "images reduced to 28 pixels" in (output / "comparison.md").read_text()


SMALL = ["network.width=16", "augment.crop_size=33", "data.synthetic.validation=2"]
SMALL += ["schedule.labelled_batch=2", "schedule.unlabelled_batch=2"]


def test_methods_trains_each_method_and_measures_its_steps(tmp_path: Path) -> None:
    output = tmp_path / "output"
    arguments = ["methods", "--output", str(output), "--methods", "sup_only,cac"]
    assert main([*arguments, "--quick", "device=cpu", *SMALL]) == 0
    accuracy = json.loads((output / "accuracy.json").read_text())
    assert str(tmp_path) not in (output / "accuracy.json").read_text()
    assert [(x["method"], x["seed"]) for x in accuracy["runs"]] == [("sup_only", 0), ("cac", 0)]
    assert list(accuracy["gains"]) == ["cac"]
    assert "these figures say nothing" in (output / "accuracy.md").read_text()
    cost = json.loads((output / "cost.json").read_text())
    assert [each["method"] for each in cost["costs"]] == ["sup_only", "cac"]
    assert all(each["seconds_per_step"] > 0 < each["memory_mib"] for each in cost["costs"])
    supervised, contrastive = cost["costs"]
    assert contrastive["seconds_per_step"] > supervised["seconds_per_step"]
    assert "| SupOnly | " in (output / "cost.md").read_text()
    assert (output / "picture.png").exists()


def test_the_cost_alone_is_kept_in_a_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost_of(method: str, overrides: object) -> dict[str, object]:
        return {"method": method, "seconds_per_step": 0.25, "memory_mib": 300.0}

    monkeypatch.setattr("benchmarks.trainings.methods._cost_of", cost_of)
    output = tmp_path / "new" / "folder"
    arguments = ["methods", "--only", "cost", "--methods", "sup_only,cac", "--output", str(output)]
    assert main([*arguments, "device=cpu"]) == 0
    assert "| 250 | 1.00x | 300 |" in (output / "cost.md").read_text()


def test_a_method_that_cannot_be_trained_ends_the_measurement_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["methods", "--output", str(tmp_path / "o"), "--only", "cost"]
    assert main([*arguments, "--methods", "sup_only", "augment.crop_size=0"]) == 2
    assert "augment.crop_size" in capsys.readouterr().err
    assert main([*arguments, "--methods", "cack"]) == 2
    assert "did you mean 'cac'?" in capsys.readouterr().err
