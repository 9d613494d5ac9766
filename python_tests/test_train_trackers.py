"""Weights & Biases and MLflow get what TensorBoard gets, and a resumed run continues its entry.

The packages are stood in for by modules that record the calls.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_run import TINY_RUN

from cac_ext.train import loop
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runs.trackers import open_trackers

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = [*TINY_RUN, "method.name=sup_only", "schedule.evaluate_every=1"]


class Calls(list[tuple[str, tuple[Any, ...], dict[str, Any]]]):
    """Any method can be called; the calls are kept in order."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: self.append((name, arguments, options))

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, options) for called, arguments, options in self if called == name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()

    def init(**options: Any) -> Calls:
        calls.append(("init", (), options))
        return calls

    module = SimpleNamespace(init=init, Image=lambda pixels: ("image", pixels))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


class Client(Calls):
    """MLflow's client; it knows no experiment yet."""

    def get_experiment_by_name(self, name: str) -> None:
        self.append(("get_experiment_by_name", (name,), {}))

    def create_experiment(self, name: str) -> str:
        return f"number of {name}"

    def create_run(self, experiment: str, run_name: str) -> Any:
        self.append(("create_run", (experiment, run_name), {}))
        return SimpleNamespace(info=SimpleNamespace(run_id="run 1"))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()
    entities = SimpleNamespace(Metric=lambda *values: values)
    module = SimpleNamespace(MlflowClient=lambda: client, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return client


def expected_scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What metrics.jsonl holds, by tag and iteration."""
    found: dict[tuple[str, int], float] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        split, iteration = line.pop("split"), line.pop("iteration")
        for key, value in line.items():
            named = value if isinstance(value, dict) else {"": value}
            for name, scalar in named.items():
                number = len(scalar) if isinstance(scalar, list) else scalar
                found[f"{split}/{key}{name and '/'}{name}", iteration] = number
    return found


def break_and_resume(config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_step = loop.take_step

    def dying(method, state, *rest):
        if state.iteration == 2:
            raise KeyboardInterrupt
        return take_step(method, state, *rest)

    monkeypatch.setattr(loop, "take_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(config, folder, progress=False)
    monkeypatch.setattr(loop, "take_step", take_step)
    train(config, folder, progress=False, resume=True)


def test_weights_and_biases_gets_scalars_pictures_and_settings(
    tmp_path: Path, wandb: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("synthetic", [*TINY, "run.trackers=[wandb]"])
    break_and_resume(config, tmp_path / "mine", monkeypatch)
    first, second = (options for _, options in wandb.named("init"))
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["name"] == "mine"
    assert first["config"]["schedule"]["epochs"] == 2
    logged = [arguments[0] for arguments, _ in wandb.named("log")]
    scalars = {
        (tag, values["iteration"]): value
        for values in logged
        for tag, value in values.items()
        if tag != "iteration" and not isinstance(value, tuple)
    }
    assert scalars == pytest.approx(expected_scalars(tmp_path / "mine"), nan_ok=True)
    pictures = [values["validation/predictions"][1] for values in logged if len(values) == 2]
    assert len(pictures) == 2
    assert all(pixels.dtype == np.uint8 and pixels.shape[2] == 3 for pixels in pictures)
    assert len(wandb.named("finish")) == 2


def test_mlflow_gets_scalars_pictures_and_settings(
    tmp_path: Path, mlflow: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "roads")
    config = load("synthetic", [*TINY, "run.trackers=[mlflow]"])
    break_and_resume(config, tmp_path / "mine", monkeypatch)
    assert mlflow.named("create_run") == [(("number of roads", "mine"), {})]  # once
    parameters = {arguments[1]: arguments[2] for arguments, _ in mlflow.named("log_param")}
    assert parameters["schedule.epochs"] == "2"
    assert len(parameters) == len(mlflow.named("log_param"))
    scalars = {
        (tag, step): value
        for (run,), options in mlflow.named("log_batch")
        for tag, value, _, step in options["metrics"]
        if run == "run 1"
    }
    assert scalars == pytest.approx(expected_scalars(tmp_path / "mine"), nan_ok=True)
    assert [options["step"] for _, options in mlflow.named("log_image")] == [2, 4]
    assert mlflow.named("set_terminated") == [(("run 1",), {})] * 2


def test_letters_that_mlflow_refuses_are_replaced(tmp_path: Path, mlflow: Client) -> None:
    (tracker,) = open_trackers(["mlflow"], tmp_path, load("synthetic"))
    names = ("d:x", "f(x)", "é", "a b")
    tracker.scalars({f"validation/class_iou/{name}": 0.5 for name in names}, 1)
    ((_, options),) = mlflow.named("log_batch")
    tags = [metric[0].rpartition("/")[2] for metric in options["metrics"]]
    assert tags == ["d_x", "f_x_", "_", "a b"]


def test_a_tracker_that_is_unknown_or_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no tracker 'wandbb' \(did you mean 'wandb'\?\)"):
        train(load("synthetic", [*TINY, "run.trackers=[wandbb]"]), tmp_path, progress=False)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        config = load("synthetic", [*TINY, f"run.trackers=[{name}]"])
        with pytest.raises(ConfigError, match=f"run.trackers: {name} needs pip install {name}"):
            train(config, tmp_path / name, progress=False)
