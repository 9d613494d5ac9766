"""A run from the command line to its results, and its exact resume."""

from __future__ import annotations

import json
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from run_folders import assert_identical
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import TINY_RUN

from cac_ext.train import loop
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.errors import CheckpointError
from cac_ext.train.experiments import compare, engine
from cac_ext.train.figures.panels import save_panel
from cac_ext.train.loop import train
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.folder import load_run

TINY = [
    *TINY_RUN,
    "schedule.epochs=5",
    "method.confidence_threshold=0.1",
]

pytestmark = pytest.mark.usefixtures("one_thread")


def test_train_writes_all_that_a_run_folder_holds(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "synthetic", *TINY, f"seed={seed}", "--folder", str(folder)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "mIoU" in output
    assert str(folder) in output

    assert load(str(folder / "config.yaml")) == load("synthetic", [*TINY, f"seed={seed}"])
    run = load_run(folder)
    save_panel(tmp_path / "again.png", build_datasets(run.config.data), {"prediction": run.network})
    assert (folder / "picture.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["split"] == "train"]
    assert [line["iteration"] for line in steps] == list(range(1, 11))
    assert all(line["loss"] > 0 for line in steps)
    assert ["loss_unsupervised" in line for line in steps] == [False] * 2 + [True] * 8
    assert any(line.get("active_share", 0) > 0 for line in steps)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    for key in ("loss", "loss_unsupervised"):
        shown = {event.step: event.value for event in board.Scalars(f"train/{key}")}
        logged = {line["iteration"]: line[key] for line in steps if key in line}
        assert shown == pytest.approx(logged)
    evaluated = [line["iteration"] for line in lines if line["split"] == "validation"]
    assert evaluated == [4, 8, 10]
    state = read_checkpoint(folder / "checkpoint.pt")
    assert state["iteration"] == 10
    assert state["results"]["miou"] == lines[-1]["miou"]

    # Nothing is overwritten: the same folder again is refused.
    assert main(arguments) == 2
    assert "cac-ext resume" in capsys.readouterr().err


def test_an_interrupted_and_resumed_run_equals_an_unbroken_one(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("synthetic", [*TINY, f"seed={seed}", "schedule.evaluate_every=3"])
    unbroken = train(config, tmp_path / "unbroken", progress=False)

    folder = tmp_path / "broken"
    take_step = loop.take_step
    for stop_at in (1, 5, 8):  # in the warm-up, in the middle of an epoch, at the start of one

        def stop(*arguments, stop_at=stop_at):
            if arguments[1].iteration == stop_at:  # iteration
                raise KeyboardInterrupt
            return take_step(*arguments)

        monkeypatch.setattr(loop, "take_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, folder, resume=True, progress=False)
    monkeypatch.setattr(loop, "take_step", take_step)
    torch.rand(7)  # the state of the process must not matter
    resumed = train(config, folder, resume=True, progress=False)

    assert resumed.miou == unbroken.miou
    states = [read_checkpoint(result.folder / "checkpoint.pt") for result in (unbroken, resumed)]
    for part in ("modules", "optimizers", "method", "random"):
        assert_identical(states[0][part], states[1][part], part)
    losses = []
    for result in (unbroken, resumed):
        lines = [json.loads(x) for x in (result.folder / "metrics.jsonl").read_text().splitlines()]
        keys = ("iteration", "split", "loss", "miou", "negative_precision")
        losses.append([[line.get(key) for key in keys] for line in lines])
    assert losses[0] == losses[1]


@pytest.mark.usefixtures("without_pictures")
def test_the_number_of_workers_does_not_change_the_result(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}", "schedule.epochs=2"]
    results = []
    for workers in (0, 2):
        config = load("synthetic", [*overrides, f"data.num_workers={workers}"])
        folder = tmp_path / str(workers)
        train(config, folder, progress=False)
        results.append(read_checkpoint(folder / "checkpoint.pt")["modules"])
    assert_identical(*results, "model")


@pytest.mark.usefixtures("without_pictures")
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    overrides = [*TINY, "schedule.epochs=1"]
    train(load("synthetic", overrides), tmp_path, progress=False)
    other = load("synthetic", [*overrides, "optimizer.learning_rate=0.5"])
    with pytest.raises(CheckpointError, match=r"optimizer\.learning_rate is 0\.05 there and 0\.5"):
        train(other, tmp_path, resume=True, progress=False)


@pytest.mark.usefixtures("without_pictures")
def test_resume_takes_what_does_not_change_the_result_and_refuses_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "run"
    train(load("synthetic", [*TINY, "schedule.epochs=1"]), folder, progress=False)
    moved = ["data.root=elsewhere", "data.num_workers=1"]
    assert main(["resume", str(folder), *moved]) == 0
    config = load(str(folder / "config.yaml"))
    assert (config.data.root, config.data.num_workers) == ("elsewhere", 1)

    (folder / "checkpoint.pt").unlink()  # as before the first checkpoint
    capsys.readouterr()
    assert main(["resume", str(folder), "optimizer.learning_rate=0.5"]) == 2
    message = capsys.readouterr().err
    assert "optimizer.learning_rate is 0.05 there and 0.5 here" in message
    assert "data.root" in message
    assert load(str(folder / "config.yaml")) == config
    with pytest.raises(SystemExit):
        main(["resume", "--help"])
    assert "data.num_workers" in capsys.readouterr().out


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_a_damaged_checkpoint_is_named(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train(load("synthetic", [*TINY, "schedule.epochs=1"]), tmp_path, progress=False)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content or whole[: len(whole) // 2])
    assert main(["resume", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "checkpoint.pt" in message
    assert "Traceback" not in message


@pytest.mark.usefixtures("without_pictures")  # of the runs
def test_compare_ends_with_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, SegmentationNetwork] = {}

    def save_and_keep(path: Path, splits: DatasetSplits, networks: dict, **options) -> None:
        shown.update(networks)
        save_panel(path, splits, networks, **options)

    monkeypatch.setattr(compare, "save_panel", save_and_keep)
    folder = tmp_path / "compare"
    arguments = ["compare", "synthetic", *TINY, "schedule.epochs=2", "--folder", str(folder)]
    assert main([*arguments, "--methods", "sup_only,cac", "--seeds", "4,5"]) == 0
    table = capsys.readouterr().out
    for word in ("SupOnly", "CAC (ours)", "seed 4", "seed 5", "gain"):
        assert word in table
    networks = {
        title: load_run(folder / f"{name}-seed4").network
        for title, name in (("SupOnly", "sup_only"), ("CAC (ours)", "cac"))
    }
    assert list(shown) == list(networks)
    for title, network in networks.items():
        assert_identical(dict(shown[title].state_dict()), dict(network.state_dict()), title)
    splits = build_datasets(load_run(folder / "cac-seed4").config.data)
    save_panel(tmp_path / "again.png", splits, networks)
    assert (folder / "picture.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    records = json.loads((folder / "results.json").read_text())
    assert [(r["method"], r["seed"]) for r in records] == [
        ("sup_only", 4),
        ("cac", 4),
        ("sup_only", 5),
        ("cac", 5),
    ]
    # The two methods start from the same weights and images: equal until the warm-up ends.
    lines = [
        json.loads((folder / f"{name}-seed4" / "metrics.jsonl").read_text().splitlines()[1])
        for name in ("sup_only", "cac")
    ]
    assert lines[0]["iteration"] == lines[1]["iteration"] == 2
    assert lines[0]["loss"] == lines[1]["loss"]

    # Once more: nothing is trained again, the table is the same.
    assert main([*arguments, "--methods", "sup_only,cac", "--seeds", "4,5"]) == 0
    assert table.partition("\nmethod")[2] == capsys.readouterr().out.partition("\nmethod")[2]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    ("epochs", "method", "warned"),
    [
        (1, "method.name=cac", 1),
        (1, "method.name=fixmatch", 1),
        (1, "method.unsupervised_weight=0", 0),
        (2, "method.name=cac", 0),
    ],
)
def test_a_run_that_is_all_warm_up_is_warned_of(
    epochs: int, method: str, warned: int, tmp_path: Path
) -> None:
    overrides = [*TINY, f"schedule.epochs={epochs}", method]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(load("synthetic", overrides), tmp_path, progress=False)
    messages = [str(w.message) for w in caught if "the whole run is warm-up" in str(w.message)]
    assert len(messages) == warned
    assert all("schedule.warmup_epochs" in message for message in messages)


@pytest.mark.usefixtures("without_pictures")
def test_compare_keeps_the_networks_of_its_picture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the memory of a run is not that of the runs before it."""
    networks, alive = [], []
    trained = engine.train

    def watched(*arguments, **options):
        alive.append([network() is not None for network in networks])
        result = trained(*arguments, **options)
        networks.append(weakref.ref(result.network))
        return result

    monkeypatch.setattr(engine, "train", watched)
    overrides = [*TINY, "schedule.epochs=1"]
    runs = compare.plan("synthetic", overrides, ["sup_only", "cac"], [4, 5])
    compare.compare(runs, tmp_path, progress=False)
    assert alive == [[], [True], [True, True], [True, True, False]]
