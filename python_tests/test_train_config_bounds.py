"""Every number of a configuration has bounds, which stand beside it in the schema."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from cac_ext.train.cli.main import main
from cac_ext.train.config import Config, load
from cac_ext.train.config.bounds import Bounds
from cac_ext.train.errors import ConfigError


def leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, Any, Field]]:
    """Key, type and field of every key that is not a section."""
    hints = get_type_hints(schema)
    for f in fields(schema):
        if is_dataclass(hints[f.name]):
            yield from leaves(hints[f.name], f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", hints[f.name], f


def mentions_a_number(hint: Any) -> bool:
    return hint in (int, float) or any(
        mentions_a_number(inner)
        for inner in get_args(hint)
        if typing.get_origin(hint) is not typing.Literal
    )


NUMBERS = [(key, hint, f) for key, hint, f in leaves(Config) if mentions_a_number(hint)]


def test_the_walk_finds_numbers_lists_and_pairs() -> None:
    keys = {key for key, _, _ in NUMBERS}
    assert {"seed", "data.num_classes", "image_classifier.scales", "method.iou_range"} <= keys
    assert len(keys) > 45
    assert not {"name", "run.compile", "data.class_names", "network.options"} & keys


@pytest.mark.parametrize(("key", "hint", "f"), NUMBERS, ids=[key for key, _, _ in NUMBERS])
def test_every_number_refuses_what_is_out_of_its_bounds(key: str, hint: Any, f: Field) -> None:
    assert "bounds" in f.metadata, f"{key} has no bounds: make it by bounds.number"
    bounds = f.metadata["bounds"]
    each = [bounds] if isinstance(bounds, Bounds) else list(bounds)
    base = None  # for a single number
    if typing.get_origin(hint) in (list, tuple):
        base = list(_get(load("voc"), key))
        each = [bounds] * len(base) if isinstance(bounds, Bounds) else each
    for place, bound in enumerate(each):
        below = bound.low if bound.low_excluded else bound.low - 1
        beyond = bound.high if bound.high_excluded else bound.high * 2 + 1
        for wrong in ("nan", "inf", "-inf", below, beyond):
            shown = wrong
            if base is not None:
                shown = f"[{','.join(str(wrong if i == place else v) for i, v in enumerate(base))}]"
            with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
                load("voc", [f"{key}={shown}"])
        held = bound.high if bound.low_excluded else bound.low
        assert bound.holds(held)


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.momentum=-1", ["optimizer.momentum", "at least 0 and below 1", "-1"]),
        ("optimizer.momentum=1", ["optimizer.momentum", "below 1"]),
        ("optimizer.learning_rate=inf", ["optimizer.learning_rate", "greater than 0", "inf"]),
        ("optimizer.poly_power=-1", ["optimizer.poly_power", "between 0 and 100"]),
        ("augment.flip=nan", ["augment.flip", "between 0 and 1", "nan"]),
        ("augment.jitter_strength=[0.1,0.1,0.1,0.6]", ["augment.jitter_strength", "0.5", "0.6"]),
        ("augment.jitter_strength=[0.1]", ["augment.jitter_strength", "4"]),
        ("method.iou_range=[0.1,0.5,1]", ["method.iou_range", "2"]),
        ("method.iou_range=[nan,1]", ["method.iou_range", "nan"]),
        ("method.temperature=1e-9", ["method.temperature", "between 0.001"]),
        ("image_classifier.scales=[]", ["image_classifier.scales", "at least one"]),
        ("image_classifier.background=0.9", ["image_classifier.foreground", "0.9"]),
        ("network.dropout=1", ["network.dropout", "below 1"]),
        ("data.num_classes=1", ["data.num_classes", "the background is a class too", "is 2"]),
        ("data.num_workers=-1", ["data.num_workers", "-1"]),
        ("seed=-1", ["seed", "-1"]),
    ],
)
def test_a_number_out_of_bounds_is_named_with_them(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load("synthetic", [override])
    for word in words:
        assert word in str(error.value)


def test_more_iterations_than_can_be_is_an_error() -> None:
    overrides = ["schedule.epochs=1000000", "schedule.iterations_per_epoch=1000000"]
    with pytest.raises(ConfigError, match=r"schedule\.epochs times"):
        load("synthetic", overrides)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("[other, road, other]", ["'other'", "classes 0, 2", "more than once"]),
        ("[a, '']", ["class 1", "not empty"]),
        ("[a, ' ']", ["class 1", "not empty"]),
        ('[a, "b\\nc"]', ["class 1", "line break"]),
        ("[a, b]", ["2 names", "data.num_classes is 3"]),
    ],
)
def test_class_names_that_name_no_class_are_refused(
    names: str, words: list[str], capsys: pytest.CaptureFixture
) -> None:
    command = ["config", "folder", f"data.class_names={names}", "data.num_classes=3"]
    assert main(command) == 2
    message = capsys.readouterr().err
    for word in ["data.class_names", *words]:
        assert word in message


def test_class_names_are_compared_as_given() -> None:
    names = ["Road", "road", "a‌b"]
    config = load("folder", [f"data.class_names=[{','.join(names)}]", "data.num_classes=3"])
    assert config.data.class_names == names


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["evaluate", "RUN", "--scales", "nan"], ["--scales", "nan"]),
        (["evaluate", "RUN", "--scales", "inf"], ["--scales", "inf"]),
        (["evaluate", "RUN", "--scales", "1,-1"], ["--scales", "1,-1"]),
        (["evaluate", "RUN", "--scales", ""], ["--scales"]),
        (["evaluate", "RUN", "--window", "0"], ["--window", "0"]),
        (["evaluate", "RUN", "--window", "99999999999"], ["--window", "99999999999"]),
        (["predict", "RUN", "x", "--output", "o", "--window", "-1"], ["--window", "-1"]),
        (["figures", "RUN", "--images", "0"], ["--images", "0"]),
        (["figures", "RUN", "--seed", "-1"], ["--seed", "-1"]),
        (["figures", "RUN", "--seed", "4294967296"], ["--seed", "4294967296"]),
        (["figures", "RUN", "--pixel", "1,-1"], ["--pixel", "1,-1"]),
        (["compare", "synthetic", "--seeds", "-1"], ["--seeds", "-1"]),
        (["compare", "synthetic", "--seeds", "1,"], ["--seeds", "1,"]),
        (["compare", "synthetic", "--seeds", "1e3"], ["--seeds", "1e3"]),
        (["compare", "synthetic", "--seeds", "9" * 30], ["--seeds", "18 digits"]),
        (["ablate", "table3", "--seeds", "nan"], ["--seeds", "nan"]),
        (["data", "split", "folder", "--ratios", "nan"], ["ratio", "nan"]),
        (["data", "split", "folder", "--ratios", "1/8,inf"], ["ratio", "inf"]),
        (["data", "split", "folder", "--seeds", "-1"], ["--seeds", "-1"]),
    ],
    ids=lambda value: "_".join(value),
)
def test_numbers_of_commands_have_bounds(
    command: list[str], words: list[str], capsys: pytest.CaptureFixture
) -> None:
    try:
        code = main([word if word != "RUN" else "/no/run" for word in command])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message
