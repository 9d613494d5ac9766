"""A wrong setting is an error that names the key and the allowed values."""

from __future__ import annotations

from pathlib import Path

import pytest

from cac_ext.train import config as configuration
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.ablate import plan_rows
from cac_ext.train.experiments.compare import plan
from cac_ext.train.experiments.tables import TABLES


def test_every_shipped_configuration_loads() -> None:
    assert "synthetic" in configuration.shipped()
    for name in configuration.shipped():
        load(name)


def test_the_printed_configuration_loads_to_the_same(tmp_path: Path) -> None:
    config = load("synthetic", ["seed=3", "method.iou_range=[0.2,0.5]"])
    path = tmp_path / "again.yaml"
    path.write_text(configuration.to_yaml(config))
    assert load(str(path)) == config


def test_a_base_is_overridden_by_the_file_and_the_file_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("base: synthetic\nseed: 1\nname: base\n")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nseed: 2\n")
    config = load(str(tmp_path / "run.yaml"), ["schedule.epochs=7"])
    assert (config.seed, config.name, config.schedule.epochs) == (2, "base", 7)
    assert config.augment.crop_size == load("synthetic").augment.crop_size


def test_the_labelled_images_can_go_with_the_seed(tmp_path: Path) -> None:
    """For means over several lists of labelled images instead of one list."""
    path = tmp_path / "lists.yaml"
    path.write_text("base: synthetic\ndata:\n  split_seed: ${seed}\n")
    table = TABLES["table3"]
    for name, overrides in ((str(path), []), ("synthetic", ["data.split_seed=${seed}"])):
        runs = [
            *plan(name, overrides, ["sup_only", "cac"], [3, 5]).values(),
            *plan_rows(table, table.rows[-1:], [3, 5], overrides, name).values(),
        ]
        assert [run.seed for run in runs] == [3, 3, 5, 5, 3, 5]
        assert all(run.data.split_seed == run.seed for run in runs)
    fixed = plan("synthetic", ["data.split_seed=1"], ["cac"], [3, 5]).values()
    assert [run.data.split_seed for run in fixed] == [1, 1]


@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_help_says_how_lists_go_with_seeds(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert "data.split_seed='${seed}'" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("augment.crop_sise=65", ["augment.crop_sise", "did you mean", "augment.crop_size"]),
        ("lr=1", ["there is no key lr", "optimizer"]),
        ("learning_rate=1", ["learning_rate", "optimizer.learning_rate"]),
        ("augment.crop_size=big", ["augment.crop_size", "big"]),
        ("method.loss=hinge", ["method.loss", "hinge", "contrastive", "l2"]),
        ("schedule=5", ["schedule", "section", "schedule.epochs"]),
        ("schedule.epochs=0", ["schedule.epochs", "greater than 0", "0"]),
        ("method.iou_range=[0.5,0.1]", ["method.iou_range", "low <= high"]),
        ("augment.flip=2", ["augment.flip", "between 0 and 1"]),
        ("seed", ["key=value", "seed"]),
    ],
)
def test_a_wrong_setting_is_named(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load("synthetic", [override])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("network.name=smal", ["network.name", "'small'", "package.module:function"]),
        ("data.name=folders", ["data.name", "'folder'"]),
        ("network.name=no_such_module:build", ["network.name", "no_such_module"]),
    ],
)
def test_an_unknown_network_or_data_set_is_named(
    override: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code = main(["train", "synthetic", override, "--folder", str(tmp_path / "run")])
    assert code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_an_unknown_configuration_lists_the_shipped_ones(
    capsys: pytest.CaptureFixture,
) -> None:
    assert main(["train", "synthetik"]) == 2
    message = capsys.readouterr().err
    assert "did you mean 'synthetic'" in message
    assert "folder" in message
