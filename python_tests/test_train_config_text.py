"""A text stays as typed, on the command line and in YAML; it never becomes a number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import TINY_RUN

from cac_ext.train import config as configuration
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.ablate import load_row
from cac_ext.train.experiments.compare import plan
from cac_ext.train.experiments.tables import find_table

#: Texts that plain YAML takes for a number, a truth value, a date, none, a list or a comment.
TEXTS = [
    "2021_01_01",
    "007",
    "1e3",
    "1.50",
    ".5",
    "0x10",
    "1:30",
    "on",
    "yes",
    "No",
    "true",
    "~",
    "2021-01-01",
    "1/8",
    "None",
    "a=b",
    "a, b",
    "[x]",
    "{a: 1}",
    "a: b",
    "# c",
    "x # c",
    "it's",
    '"q"',
    " two  spaces ",
    r"C:\data\new",
    r"\\server\share" + "\\",
    "$HOME/x",
    "@home",
    "!x",
    "&a",
    "*a",
    "%d",
    "- a",
    "数据/道路",
]
TEXT_KEYS = ["name", "output", "data.root", "data.labelled_list", "network.weights"]


def value_of(config: configuration.Config, key: str) -> object:
    value = configuration.to_mapping(config)
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_as_typed_and_survives_a_saved_configuration(
    text: str, tmp_path: Path
) -> None:
    config = load("synthetic", [f"{key}={text}" for key in TEXT_KEYS])
    assert [value_of(config, key) for key in TEXT_KEYS] == [text] * len(TEXT_KEYS)
    path = tmp_path / "config.yaml"
    path.write_text(configuration.to_yaml(config), encoding="utf-8")
    assert load(str(path)) == config


@pytest.mark.parametrize(
    "text", ["2021_01_01", "007", "1e3", ".5", "0x10", "1:30", "on", "No", "2021-01-01", "1/8"]
)
def test_a_text_in_yaml_needs_no_quotes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"base: synthetic\nname: {text}\ndata: {{root: {text}, class_names: [a, {text}]}}\n"
    )
    config = load(str(path))
    assert (config.name, config.data.root, config.data.class_names) == (text, text, ["a", text])


def test_null_is_none_only_where_a_text_may_be_missing(tmp_path: Path) -> None:
    config = load("synthetic", ["data.root=null", "network.weights=", "name=null"])
    assert (config.data.root, config.network.weights, config.name) == (None, None, "null")
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  root: ~\n  labelled_list: 'null'\n  unlabelled_list:\nname: null\n")
    config = load(str(path))
    data = config.data
    assert (data.root, data.labelled_list, data.unlabelled_list) == (None, "null", None)
    assert config.name == "null"
    path.write_text(configuration.to_yaml(config))
    assert load(str(path)) == config


def test_lists_of_texts_hold_texts() -> None:
    config = load("synthetic", ["data.class_names=[on, off, 1, 007, 'a, b', null]"])
    assert config.data.class_names == ["on", "off", "1", "007", "a, b", "null"]


def test_options_without_a_type_become_plain_numbers_or_stay_text(tmp_path: Path) -> None:
    given = {
        "depth": ("3", 3),
        "eps": ("1e-5", 1e-5),
        "flag": ("true", True),
        "none": ("null", None),
        "sizes": ("[1, 2.5, x]", [1, 2.5, "x"]),
        "date": ("2021_01_01", "2021_01_01"),
        "id": ("007", "007"),
        "ratio": ("1:30", "1:30"),
        "country": ("no", "no"),
        "quoted": ("'3'", "3"),
    }
    wanted = {key: value for key, (_, value) in given.items()}
    config = load(
        "synthetic", [f"network.options.{key}={text}" for key, (text, _) in given.items()]
    )
    assert config.network.options == wanted
    path = tmp_path / "run.yaml"
    lines = "".join(f"    {key}: {text}\n" for key, (text, _) in given.items())
    path.write_text(f"network:\n  options:\n{lines}")
    assert load(str(path)).network.options == wanted
    path.write_text(configuration.to_yaml(config))
    assert load(str(path)) == config


def test_another_key_s_value_is_filled_in_and_a_literal_one_kept(tmp_path: Path) -> None:
    config = load("synthetic", ["seed=3", "data.split_seed=${seed}", "name=${data.name}-${seed}"])
    assert (config.data.split_seed, config.name) == (3, "synthetic-3")
    path = tmp_path / "run.yaml"
    for text in (r"a\${seed}", r"C:\x\\\${seed}", r"\\${seed}"):
        config = load("synthetic", ["seed=7", f"data.root={text}"])
        path.write_text(configuration.to_yaml(config))
        assert load(str(path)) == config
    assert load("synthetic", [r"data.root=/a/\${seed}"]).data.root == "/a/${seed}"
    with pytest.raises(ConfigError, match=r"data\.root.*'nothing'"):
        load("synthetic", ["data.root=/a/${nothing}"])


@pytest.mark.parametrize("text", ["1:30", "0x10", "1e3", "1.0", "2021-01-01", "on", "one", "null"])
def test_only_a_decimal_number_is_a_seed(text: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        load("synthetic", [f"seed={text}"])


def test_a_number_with_zeros_in_front_is_decimal(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 010\n")
    assert (load(str(path)).seed, load("synthetic", ["seed=010"]).seed) == (10, 10)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.compile=2", ["run.compile", "true or false", "2"]),
        ("data.class_names=road,car", ["data.class_names", "list", "[a, b]", "road,car"]),
        ("method.iou_range=0.5", ["method.iou_range", "list"]),
        ("data.root.x=1", ["data.root.x", "no keys below"]),
        ("data.class_names=[a", ["data.class_names", "cannot read"]),
        ("name=", ["name", "not empty"]),
    ],
)
def test_a_value_of_another_kind_is_an_error(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load("synthetic", [override])
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: run.yaml\n", ["base of itself"]),
        ("base: [a]\n", ["base", "one configuration"]),
        ("- a\n", ["keys and values", "a list"]),
        ("seven\n", ["keys and values", "a single value"]),
        ("seed: 1\nseed: 2\n", ["seed is set twice"]),
        ("seed: !mine 1\n", ["!mine"]),
        ("data:\n  root: [a]\n", ["data.root", "one value"]),
        ("data: 3\n", ["data", "section"]),
        ("a: b: c\n", ["cannot read"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["config", str(path)]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in ["run.yaml", *words]:
        assert word in message


def test_methods_and_rows_keep_the_text_of_their_settings() -> None:
    given = ["name=007", "data.root=2021_01_01", "data.class_names=[on, off]"]
    configs = plan("synthetic", given, ["sup_only", "cac"], [3]).values()
    table = find_table("table1")
    row = table.select(["pspnet-resnet50-cac-1_8"])[0]
    for config in [*configs, load_row(table, row, given)]:
        assert (config.name, config.data.root) == ("007", "2021_01_01")
        assert config.data.class_names == ["on", "off"]
    assert load_row(table, row).data.labelled_ratio == "1/8"


def test_a_run_with_such_names_resumes_from_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    texts = ["name=1:30", "data.labelled_ratio=0.50", "network.options={}"]
    command = ["train", "synthetic", *TINY_RUN, *texts, "method.unsupervised_weight=0"]
    assert main([*command, "--folder", str(folder)]) == 0
    assert main(["resume", str(folder)]) == 0
    config = load(str(folder / "config.yaml"))
    assert (config.name, config.data.labelled_ratio) == ("1:30", "0.50")
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["iteration"] == 4
