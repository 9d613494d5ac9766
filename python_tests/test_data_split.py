"""Splits into labelled and unlabelled images: seeded, the same everywhere, read back as written."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from image_trees import folder_overrides, folder_tree

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.datasets.split import parse_ratio, split
from cac_ext.train.data.files.list_file import Entry
from cac_ext.train.errors import ConfigError, DataError


def entries_of(count: int) -> list[Entry]:
    names = [f"images/{number:04d}.jpg" for number in range(count)]
    return [Entry(name, Path(name), None, f"list, line {i}") for i, name in enumerate(names, 1)]


def names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_the_split_of_a_seed_never_changes() -> None:
    """Other names would change everybody's experiments."""
    labelled, unlabelled = split(entries_of(40), Fraction(1, 8), 0)
    assert names(labelled) == [f"images/{n}.jpg" for n in ("0002", "0003", "0012", "0017", "0023")]
    assert len(unlabelled) == 35


@pytest.mark.parametrize(
    ("count", "ratio", "labelled"),
    [(10582, "1/16", 662), (10582, "1/8", 1323), (2975, "1/8", 372), (2975, "1/4", 744)],
)
def test_the_sizes_are_the_papers(count: int, ratio: str, labelled: int) -> None:
    parts = split(entries_of(count), parse_ratio(ratio), 1)
    assert [len(part) for part in parts] == [labelled, count - labelled]


def test_parts_are_disjoint_nested_and_independent_of_order(seed: int) -> None:
    entries = entries_of(101)
    smaller = split(entries, Fraction(1, 16), seed)
    larger = split(entries, Fraction(1, 4), seed)
    for labelled, unlabelled in (smaller, larger):
        assert sorted(names(labelled) + names(unlabelled)) == names(entries)
    assert set(names(smaller[0])) < set(names(larger[0]))
    shuffled = random.Random(seed).sample(entries, len(entries))
    assert split(shuffled, Fraction(1, 4), seed) == larger
    assert split(entries, Fraction(1, 4), seed + 1) != larger
    assert split(entries, Fraction(1), seed) == (entries, [])


def test_every_image_is_equally_likely() -> None:
    counts = dict.fromkeys(names(entries_of(40)), 0)
    for seed in range(800):
        for entry in split(entries_of(40), Fraction(1, 4), seed)[0]:
            counts[entry.name] += 1
    # 200 of 800 expected; six standard deviations of a hypergeometric count.
    assert all(abs(count - 200) < 6 * (800 * 0.25 * 0.75) ** 0.5 for count in counts.values())


@pytest.mark.parametrize(
    "text", ["0", "-1/8", "9/8", "eighth", "1/0", "", "nan", "inf", "1e-999999999", "1/" + "9" * 99]
)
def test_a_ratio_that_is_no_share_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"1/8, 0\.125 or full"):
        parse_ratio(text)


def test_an_image_that_is_listed_twice_cannot_be_split() -> None:
    entries = entries_of(5)
    with pytest.raises(DataError, match=r"0002.*twice"):
        split([*entries, entries[2]], Fraction(1, 2), 0)


def test_the_command_writes_lists_that_training_reads(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    root, output = tmp_path / "data", tmp_path / "lists"
    folder_tree(root, np.random.default_rng(seed), train=9, validation=1)
    command = ["data", "split", "folder", *folder_overrides(root)]
    command += ["--ratios", "1/4,full", "--seeds", f"0,{seed}", "--output", str(output)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    for part, count in (("labelled", 3), ("unlabelled", 6)):
        assert f"{output / '1_4' / f'seed{seed}' / part}.txt: {count} images" in printed
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.txt")) == sorted(
        ["full/labelled.txt"]
        + [f"1_4/seed{s}/{part}.txt" for s in (0, seed) for part in ("labelled", "unlabelled")]
    )

    # The same command again changes nothing; another list in the same place is refused.
    assert main(command) == 0
    (output / "full/labelled.txt").write_text("images/train0.png masks/train0.png\n")
    assert main(command) == 2
    assert "full/labelled.txt already exists" in capsys.readouterr().err

    # Lists and ratio give the same data.
    lists = output / "1_4" / f"seed{seed}"
    by_lists = [f"data.{part}_list={lists / part}.txt" for part in ("labelled", "unlabelled")]
    by_ratio = ["data.labelled_ratio=1/4", f"data.split_seed={seed}"]
    datasets = [
        build_datasets(load("folder", [*folder_overrides(root), *overrides]).data)
        for overrides in (by_lists, by_ratio)
    ]
    for part in ("labelled", "unlabelled"):
        one, other = (getattr(splits, part) for splits in datasets)
        assert names(one.entries) == names(other.entries)
    assert len(datasets[0].labelled) == 3


def test_a_path_with_spaces_survives(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "my data"
    folder_tree(root, np.random.default_rng(seed), train=4, validation=1)
    (root / "images").rename(root / "my images")
    for name in ("train.txt", "val.txt"):
        text = (root / name).read_text().replace(" ", "\t").replace("images/", "my images/")
        (root / name).write_text(text)
    command = ["data", "split", "folder", *folder_overrides(root)]
    assert main([*command, "--ratios", "1/2", "--seeds", "0", "--output", str(tmp_path / "o")]) == 0
    lists = [f"data.labelled_list={tmp_path}/o/1_2/seed0/labelled.txt"]
    splits = build_datasets(load("folder", [*folder_overrides(root), *lists]).data)
    assert len(splits.labelled) == 2
    assert splits.labelled[1]["name"].startswith("my images/")


def test_a_ratio_and_an_unlabelled_list_contradict_each_other(tmp_path: Path, seed: int) -> None:
    folder_tree(tmp_path, np.random.default_rng(seed), train=4, validation=1)
    both = ["data.labelled_ratio=1/2", "data.unlabelled_list=train.txt"]
    with pytest.raises(ConfigError, match=r"data\.labelled_ratio.*data\.unlabelled_list"):
        build_datasets(load("folder", [*folder_overrides(tmp_path), *both]).data)


def test_data_that_are_no_files_cannot_be_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "split", "synthetic", "--output", str(tmp_path)]) == 2
    assert "not files" in capsys.readouterr().err
    assert main(["data", "split", "synthetic", "--ratios", "2"]) == 2
