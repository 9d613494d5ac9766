"""The paper's tables as configurations, and self-training, from the command line to the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import TINY_RUN

from cac_ext.train.cli.main import main
from cac_ext.train.config import load, to_mapping
from cac_ext.train.data.batches import LabelledSample, collate_labelled, concatenate
from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.ablate import format_results, load_row, plan_rows
from cac_ext.train.experiments.methods import METHODS, method_overrides
from cac_ext.train.experiments.tables import TABLES, find_table

TINY = [
    *TINY_RUN,
    "network.name=small",
    "data.synthetic.labelled=4",
    "data.synthetic.unlabelled=8",
    "data.synthetic.validation=2",
    "data.labelled_ratio=null",
    "image_classifier.epochs=1",
]


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_every_row_of_every_table_is_there() -> None:
    rows = {name: len(table.rows) for name, table in TABLES.items()}
    assert rows == {"table1": 40, "table2": 6, "table3": 10, "table4": 7, "table5": 15}
    names = [(table.name, row.name) for table in TABLES.values() for row in table.rows]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", list(TABLES))
def test_every_row_is_a_configuration_of_its_own(name: str) -> None:
    table = find_table(name)
    base = load(table.config, table.overrides)
    configs = [load_row(table, row) for row in table.rows if row.overrides is not None]
    assert sum(config == base for config in configs) <= 1  # the whole method itself
    assert all(configs.count(config) == 1 for config in configs)


def test_rows_differ_from_the_whole_method_by_their_switches_alone() -> None:
    table = find_table("table3")
    rows = {row.name: to_mapping(load_row(table, row)) for row in table.rows}
    changed = {
        name: sorted(
            f"{section}.{key}"
            for section, keys in mapping.items()
            if isinstance(keys, dict)
            for key in keys
            if keys[key] != rows["cac"][section][key]
        )
        for name, mapping in rows.items()
    }
    switches = ["method.directional", "method.negative_sampling", "method.positive_filtering"]
    assert changed == {
        "sup_only": ["method.unsupervised_weight"],
        "self_training": ["method.unsupervised_weight", "self_training.pseudo_labels"],
        "l2": sorted(["method.loss", *switches]),
        "contrastive": switches,
        "directional": switches[1:],
        "no_filtering": switches[2:],
        "no_direction": switches[:1],
        "no_context": ["method.iou_range"],
        "no_projector": ["method.projector"],
        "cac": [],
    }
    assert rows["cac"]["network"]["name"] == "pspnet"
    assert rows["cac"]["data"]["labelled_ratio"] == "1/8"


def test_table_4_counts_negatives_of_each_of_two_gpus() -> None:
    table = find_table("table4")
    for row in table.rows:
        method = load_row(table, row).method
        per_gpu = 2 * (method.step_save + 1) * method.selected_num // 2
        assert row.name == f"negatives-{per_gpu}"


def test_rows_are_chosen_by_name_and_pattern() -> None:
    table = find_table("table1")
    (row,) = table.select(["pspnet-resnet50-cac-1_8"])
    assert (row.paper, load_row(table, row).data.labelled_ratio) == (71.3, "1/8")
    assert len(table.select(["*-cac-*"])) == 12
    (row,) = table.select(["deeplabv3plus-resnet101-s4gan-1_8"])
    assert (row.paper, load_row(table, row).method.name) == (72.4, "s4gan")
    with pytest.raises(ConfigError, match=r"no row 'pspnet-resnet50-cac-1_9' \(did you mean"):
        table.select(["pspnet-resnet50-cac-1_9"])
    with pytest.raises(ConfigError, match="only the paper's figures"):
        plan_rows(find_table("table5"), find_table("table5").select(["wssn-*"]), [0])


def test_cct_s_rows_train_its_method() -> None:
    """Its authors' figures come from their recipe, the reproduced ones from this paper's."""
    for name, count in (("table1", 4), ("table5", 4)):
        table = find_table(name)
        configs = [load_row(table, row) for row in table.select(["*cct*"])]
        assert len(configs) == count
        assert {config.method.name for config in configs} == {"cct"}
        assert {config.network.name for config in configs} == {"pspnet"}
    weak = [load_row(table, row).weak.pseudo_labels for row in table.select(["cct-*-weakly"])]
    assert weak == ["auto", "auto"]
    (own,) = table.select(["cct-resnet-50-semi"])
    (reproduced,) = table.select(["cct-reproduced-resnet-50-semi"])
    assert (own.paper, load_row(table, own).schedule.labelled_batch) == (69.4, 10)
    assert (reproduced.paper, load_row(table, reproduced).schedule.labelled_batch) == (72.8, 8)


@pytest.mark.parametrize("option", [[], ["table1"], ["table5", "cac-resnet-50-weakly"]])
def test_tables_are_listed_and_shown(option: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["tables", *option]) == 0
    shown = capsys.readouterr().out
    expected = {0: "table3", 1: "paper  72.4", 2: "pseudo_labels: auto"}[len(option)]
    assert expected in shown


def test_a_table_runs_to_its_end_and_resumes(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    command = ["ablate", "table3", "--config", "synthetic", "--seeds", str(seed % 1000)]
    command += ["--folder", str(tmp_path), *TINY, "--rows"]
    assert main([*command, "no_direction", "l2"]) == 0
    first = (tmp_path / "table.md").read_text()
    assert main([*command, "self_training", "l2"]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in text
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["row"] for record in records] == ["l2", "no_direction", "self_training"]
    for row, paper in (("l2", "64.2"), ("no_direction", "71.2"), ("self_training", "66.3")):
        (line,) = [x for x in text.splitlines() if x.startswith(f"| {row} ")][-1:]
        (record,) = [record for record in records if record["row"] == row]
        assert f"| {100 * record['miou']:.2f}" in line
        assert line.rstrip(" |").endswith(paper)
    assert "cannot be compared" in text
    assert "| - " in next(x for x in first.splitlines() if x.startswith("| self_training "))
    # The teacher is the supervised run of the same seed, and its labels are the student's.
    number = seed % 1000
    assert (tmp_path / f"sup_only-seed{number}" / "checkpoint.pt").is_file()
    assert len(list((tmp_path / f"teacher-labels-seed{number}").glob("*.png"))) == 8
    # A run that is finished is not trained again, and a table row of it equals the run's own.
    before = (tmp_path / f"sup_only-seed{number}" / "checkpoint.pt").stat().st_mtime_ns
    assert main([*command, "sup_only"]) == 0
    after = (tmp_path / f"sup_only-seed{number}" / "checkpoint.pt").stat().st_mtime_ns
    assert before == after


def test_image_level_labels_run_to_the_end_of_table_5(tmp_path: Path, seed: int) -> None:
    command = ["ablate", "table5", "--config", "synthetic", "--folder", str(tmp_path), *TINY]
    assert main([*command, f"data.synthetic.seed={seed}", "--rows", "cac-resnet-50-weakly"]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "76.1" in next(x for x in text.splitlines() if "cac-resnet-50-weakly" in x)
    assert len(list((tmp_path / "activation-labels-seed0").glob("*.png"))) == 8


def test_the_paper_s_figures_stand_in_their_own_column_only() -> None:
    table = find_table("table3")
    empty = format_results(table, {})
    lines = [line for line in empty.splitlines() if line.startswith("| ")]
    assert len(lines) == 11
    assert all(line.split("|")[3].strip() == "-" for line in lines[1:])
    assert "Lai et al., CVPR 2021" in empty


def test_a_student_s_batch_holds_both_kinds_of_images() -> None:
    class Constant(torch.utils.data.Dataset):
        def __init__(self, value: float) -> None:
            self.value = value

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> LabelledSample:
            return LabelledSample(torch.full((3, 2, 2), self.value), torch.zeros(2, 2))

    loaders = [
        iter(
            stream_loader(
                Stream(Constant(value), lambda sample: sample, 0, "x"),
                IterationSampler(0, 4, 2),
                num_workers=0,
                collate=collate_labelled,
            )
        )
        for value in (1.0, 2.0)
    ]
    batches = list(map(concatenate, *loaders))
    assert len(batches) == 4
    assert batches[0].images[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert batches[0].masks.shape == (4, 2, 2)


@pytest.mark.parametrize("name", METHODS)
def test_a_named_method_is_the_same_whatever_the_configuration_names(name: str) -> None:
    plain = load("synthetic", [*method_overrides(name)])
    named = load("synthetic", ["method.name=fixmatch", *method_overrides(name)])
    assert named == plain
