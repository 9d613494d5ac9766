"""Every key is documented, and `cac-ext config --explain` shows all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_train_config_bounds import NUMBERS, leaves

from cac_ext.train.cli.main import main
from cac_ext.train.config import Config, load
from cac_ext.train.config.bounds import Bounds
from cac_ext.train.config.explain import all_keys, find_keys
from cac_ext.train.errors import ConfigError

KEYS = {key.name: key for key in all_keys()}


def explained(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["config", *arguments]) == 0
    return capsys.readouterr().out


def test_every_key_has_one_or_two_sentences() -> None:
    assert set(KEYS) == {key for key, _, _ in leaves(Config)}
    for name, key in KEYS.items():
        assert re.match(r"[A-Z\d].*\.$", key.meaning), f"{name}: {key.meaning!r}"
        sentences = re.findall(r"\.(?= [A-Zn\d$]|$)", key.meaning)
        assert 1 <= len(sentences) <= 3, (
            f"{name}: {key.meaning!r}"
        )  # the third says what null means


def test_what_null_means_is_said_wherever_null_is_allowed() -> None:
    for name, key in KEYS.items():
        assert ("or null" in key.allowed) == ("null: " in key.meaning), name


def test_no_key_is_missing(capsys: pytest.CaptureFixture) -> None:
    text = explained(capsys, "--explain")
    shown = re.findall(r"^  ([a-z0-9_.]+): .*", text, re.MULTILINE)
    assert shown == list(KEYS)
    in_one_line = " ".join(text.split())
    for key in KEYS.values():
        assert f"{key.name}: {key.allowed}; default {key.default} {key.meaning}" in in_one_line


@pytest.mark.parametrize(("key", "hint", "f"), NUMBERS, ids=[key for key, _, _ in NUMBERS])
def test_the_bounds_shown_are_those_checked(key: str, hint: object, f: object) -> None:
    bounds = f.metadata["bounds"]
    for each in [bounds] if isinstance(bounds, Bounds) else bounds:
        assert str(each) in KEYS[key].allowed
    if isinstance(bounds, Bounds) and not isinstance(f.default, tuple):
        wrong = "[-1e99]" if "list" in KEYS[key].allowed else "-" + "9" * 30
        with pytest.raises(ConfigError) as error:
            load("voc", [f"{key}={wrong}"])
        # A number that no integer holds is refused earlier.
        assert str(bounds) in str(error.value) or "could not be converted" in str(error.value)


def test_choices_are_those_checked() -> None:
    for key in ("method.loss", "run.precision", "network.stride_in", "image_classifier.network"):
        *others, last = KEYS[key].allowed.replace(", ", " or ").split(" or ")
        for choice in (*others, last):
            load("voc", [f"{key}={choice}"])
        with pytest.raises(ConfigError, match=key):
            load("voc", [f"{key}=none_of_them"])


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (["method.loss"], {"method.loss"}),
        (["method"], {key for key in KEYS if key.startswith("method.")}),
        (["data.synthetic"], {key for key in KEYS if key.startswith("data.synthetic.")}),
        (["*.weights"], {"network.weights", "image_classifier.weights"}),
        (["seed", "run.c*"], {"seed", "run.compile", "run.channels_last"}),
    ],
)
def test_keys_are_found_by_name_section_and_pattern(patterns: list[str], wanted: set[str]) -> None:
    assert {key.name for key in find_keys(patterns)} == wanted


@pytest.mark.parametrize(
    ("pattern", "offered"),
    [
        ("augment.grey", "augment.gray"),
        ("temperature", "did you mean method.temperature?"),
        ("weights", "network.weights or image_classifier.weights"),
        ("netwok", "network"),
        ("qqq", "the sections are data"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    pattern: str, offered: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["config", "--explain", pattern]) == 2
    message = capsys.readouterr().err
    assert f"there is no key {pattern!r}" in message
    assert offered in message


def test_a_configuration_s_values_stand_beside_the_defaults(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = explained(capsys, "voc", "--explain", "network", "schedule.epochs", "network.width=32")
    assert "In voc: 32 (differs from 64)." in text
    assert "In voc: IMAGENET1K_V1 (differs from null)." in text
    assert "In voc: 80 (the default)." in text
    assert "method" not in re.findall(r"^(\w+): ", text, re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 100])
def test_lines_are_wrapped_to_the_terminal(
    columns: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lengths = [len(line) for line in explained(capsys, "--explain").splitlines()]
    assert columns - 10 < max(lengths) <= columns


def test_a_configuration_alone_is_printed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text(explained(capsys, "voc", "seed=3"))
    assert load(str(path)) == load("voc", ["seed=3"])
    assert main(["config"]) == 2
    assert "--explain" in capsys.readouterr().err


def test_the_old_name_of_gray_names_the_new_one() -> None:
    with pytest.raises(ConfigError, match=r"no key augment.grey \(did you mean 'augment.gray'"):
        load("synthetic", ["augment.grey=0.1"])


def test_the_document_of_settings_is_up_to_date(capsys: pytest.CaptureFixture) -> None:
    document = Path(__file__).parent.parent / "docs" / "settings.md"
    if not document.parent.is_dir():
        pytest.skip("needs the repository: an sdist has no docs")
    text = explained(capsys, "--explain", "--markdown")
    assert document.read_text() == text, (
        "run: cac-ext config --explain --markdown > docs/settings.md"
    )
    assert re.findall(r"^\* `([a-z0-9_.]+)`: ", text, re.MULTILINE) == list(KEYS)
