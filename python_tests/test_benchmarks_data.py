"""Loaders are compared at the same work, within a time budget."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")

from benchmarks.__main__ import main
from benchmarks.data import probe as data_probe
from benchmarks.data import run as data_run
from benchmarks.data.pictures import IGNORE, PictureCase, write_files
from benchmarks.data.pipelines import PIPELINES, Work, augment_config
from benchmarks.data.table import data_table
from benchmarks.documents.compare import compare
from benchmarks.documents.report import render_report
from benchmarks.errors import UsageError
from benchmarks.measure.memory import MemoryUse
from benchmarks.measure.results import Results


@pytest.fixture
def probed_here(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The requests for memory probes, which run in this process: a child needs seconds to start."""
    requests: list[dict] = []

    def probe(module: str, request: dict, timeout: float) -> MemoryUse:
        assert module == "benchmarks.data.probe"
        assert timeout > 0
        requests.append(request)
        return data_probe.probe({**request, "limit_bytes": 0, "threads": torch.get_num_threads()})

    monkeypatch.setattr(data_run, "run_probe", probe)
    return requests


def test_the_quick_way_measures_every_row(tmp_path: Path, capsys, probed_here: list) -> None:
    output = tmp_path / "data.json"
    words = ["--quick", "--threads", "1", "--workers", "0", "1", "--output", str(output)]
    assert main(["data", *words]) == 0
    results = Results.load(output)
    found = {(row.implementation, row.phase) for row in results.rows}
    assert found == {
        (name, f"{task}, {workers}")
        for name, pipeline in PIPELINES.items()
        for task in pipeline.tasks
        for workers in ("0 workers", "1 worker")
    }
    assert all(row.status == "ok" and len(row.samples) == 1 for row in results.rows)
    assert all(row.median > 0 for row in results.rows)
    assert [request["pipeline"] for request in probed_here] == list(PIPELINES)
    memory = {r.implementation: r.extra_memory for r in results.rows if r.extra_memory is not None}
    assert set(memory) == set(PIPELINES)
    printed = capsys.readouterr().out
    assert "8 labelled images every" in printed
    assert data_table(results) in printed
    assert "labelled, 1 worker" in render_report({"data": results})
    document = tmp_path / "document.md"
    document.write_text("<!-- benchmark: data.json data -->\n<!-- end benchmark -->\n")
    assert main(["readme", str(document)]) == 0
    assert main(["readme", "--check", str(document)]) == 0
    rows = [line for line in document.read_text().splitlines() if "120 x 90" in line]
    assert len(rows) == 6
    assert all(f"{1 / row.median:.3g}" in document.read_text() for row in results.rows)
    assert len(compare(results, results)) == len(results.rows)


def test_a_budget_that_is_used_up_leaves_a_reason_in_every_row(probed_here: list, capsys) -> None:
    """A picture of which one pass would take longer than all the time."""
    assert main(["data", "--cases", "voc", "--threads", "1", "--time-budget", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert probed_here == []
    rows = [line for line in printed.splitlines() if line.startswith("voc ")]
    assert len(rows) == sum(2 * len(pipeline.tasks) for pipeline in PIPELINES.values())
    assert all("skipped" in line for line in rows)
    assert f"{len(rows)} rows: the time budget was used up" in printed


def test_a_pass_that_would_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    slow = MemoryUse("ok", 1, seconds=100.0)
    monkeypatch.setattr(data_run, "run_probe", lambda *_, **__: slow)
    monkeypatch.setattr(data_run, "_pass", lambda *_: pytest.fail("was begun"))
    assert main(["data", "--quick", "--threads", "1", "--time-budget", "60"]) == 0
    assert "a pass takes about 600 s" in capsys.readouterr().out


def test_a_pipeline_that_fails_is_a_row(
    monkeypatch: pytest.MonkeyPatch, probed_here: list, capsys
) -> None:
    def broken(work: Work) -> None:
        raise RuntimeError("no JPEG here")

    monkeypatch.setitem(PIPELINES, "unimatch", replace(PIPELINES["unimatch"], prepare=broken))
    words = ["--pipelines", "unimatch", "--workers", "0"]
    assert main(["data", "--quick", "--threads", "1", *words]) == 0
    printed = capsys.readouterr().out
    assert "2 rows: RuntimeError: no JPEG here" in printed
    assert "memory of unimatch: RuntimeError: no JPEG here" in printed


def test_a_gpu_has_no_part_in_it() -> None:
    arguments = argparse.Namespace(device="cuda:1")
    with pytest.raises(UsageError, match="leave out --device cuda:1"):
        data_run.DataRun(arguments, Results.start("data", {}, torch.device("cpu")))


@pytest.mark.parametrize("scale", [1.0, 1.32, 0.5])
def test_all_pipelines_show_the_same_pixels(scale: float, tmp_path: Path, seed: int) -> None:
    """Without randomness: a crop that is the whole scaled picture, no mirroring, no colors."""
    side = round(100 * scale)
    case = PictureCase(100, 100, crop_size=side, base_size=None, batch=1)
    files = write_files(case, tmp_path, seed % 2**31)
    off = {"flip": 0.0, "jitter": 0.0, "gray": 0.0, "blur": 0.0}
    augment = replace(augment_config(case, scale), **off)

    def samples(task: str) -> dict[str, tuple]:
        return {
            name: pipeline.prepare(Work(files, task, augment, 1, seed % 2**31)).samples[0]
            for name, pipeline in PIPELINES.items()
            if task in pipeline.tasks
        }

    found = samples("labelled")
    image, mask = found["ours"]
    level = 1 / 255 / 0.224  # a gray level, normalized
    assert image.shape == (3, side, side)
    for name in ("torchvision", "unimatch"):
        other, other_mask = found[name]
        assert (image - other).abs().max() < 2.01 * level, name
        assert other_mask.dtype == mask.dtype
        # Pillow takes another nearest pixel.
        assert (mask == other_mask).float().mean() > (0.9 if name == "unimatch" else 0.9999), name
    assert (mask != IGNORE).all()
    for name, sample in samples("strong").items():
        versions = [sample.weak, *sample.strong] if name == "ours" else sample
        assert len(versions) == 3, name
        assert all((image - version).abs().max() < 2.01 * level for version in versions), name
    for name, sample in samples("pair").items():
        views = [sample.view1.image, sample.view2.image] if name == "ours" else sample
        assert len(views) == 2, name
        assert all(view.shape == image.shape for view in views), name


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_changes_colors_and_blurs(name: str, tmp_path: Path, seed: int) -> None:
    case = PictureCase(60, 60, crop_size=60, base_size=None, batch=1)
    files = write_files(case, tmp_path, seed % 2**31)
    off = {"flip": 0.0, "jitter": 0.0, "gray": 0.0, "blur": 0.0}
    for key in ("flip", "jitter", "gray", "blur"):
        augment = replace(augment_config(case, 1.0), **{**off, key: 1.0})
        work = Work(files, "strong", augment, 1, seed % 2**31)
        samples = PIPELINES[name].prepare(work).samples
        changes = []
        for index in range(8):  # a blur may be as good as none
            sample = samples[index]
            weak, strong = (sample.weak, sample.strong[0]) if name == "ours" else sample[:2]
            changes.append(float((weak - strong).abs().max()))
        assert max(changes) > 0.3 if key != "flip" else max(changes) == 0, key
