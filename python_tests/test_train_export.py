"""A network in one file gives the predictions of its run, without the run folder."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cac_ext.train import export, load_exported, load_run, predict
from cac_ext.train.cli.main import main
from cac_ext.train.errors import CheckpointError, ConfigError
from cac_ext.train.inference import predict_logits
from cac_ext.train.runs import export as exporting

pytestmark = pytest.mark.usefixtures("one_thread")

#: On the network's grid, beside it, and so narrow that it cannot be padded by reflection.
SIZES = [(33, 49), (30, 47), (2, 40)]


def test_safetensors_rebuild_the_run_s_network(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    path = tmp_path / "folder/net.safetensors"
    assert main(["export", str(run_folder), str(path)]) == 0
    assert str(path) in capsys.readouterr().out
    run, exported = load_run(run_folder), load_exported(path, "cpu")
    assert exported.classes == run.classes
    assert exported.config.network == run.config.network
    assert exported.iteration == run.iteration
    for size in SIZES:
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        np.testing.assert_array_equal(predict(exported, image), predict(run, image))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_program_of_torch_needs_no_network_of_ours(
    size: tuple[int, int], run_folder: Path, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "net.pt2"
    assert main(["export", str(run_folder), str(path), "--size", f"{size[0]},{size[1]}"]) == 0
    program = torch.export.load(path).module()
    assert_program(lambda images: program(images), run_folder, size, seed)


@pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="no ONNX packages"
)
@pytest.mark.parametrize("size", SIZES[1:], ids=str)
def test_a_program_of_onnx_runs_without_torch(
    size: tuple[int, int], run_folder: Path, tmp_path: Path, seed: int
) -> None:
    import onnxruntime

    path = tmp_path / "net.onnx"
    export(load_run(run_folder), path, size)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    assert_program(logits, run_folder, size, seed)


def assert_program(logits, run_folder: Path, size: tuple[int, int], seed: int) -> None:
    """The logits of any number of images are those that the run predicts."""
    torch.manual_seed(seed)
    network = load_run(run_folder).network
    for count in (1, 3):
        images = torch.randint(256, (count, 3, *size), dtype=torch.uint8)
        expected = torch.cat([predict_logits(network, image) for image in images])
        found = logits(images)
        assert found.shape == (count, 3, *size)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_exported_is_refused(run_folder: Path, tmp_path: Path, capsys) -> None:
    run = load_run(run_folder)
    with pytest.raises(ConfigError, match=r"ends in \.safetensors, \.pt2, \.onnx"):
        export(run, tmp_path / "net.pth")
    with pytest.raises(ConfigError, match="give it by --size"):
        export(run, tmp_path / "net.pt2")
    command = ["export", str(run_folder), str(tmp_path / "net.pt2"), "--size"]
    assert main([*command, "33"]) == 2
    assert "--size takes H,W" in capsys.readouterr().err
    assert main(["export", str(run_folder), str(tmp_path / "net.pt2"), "--best"]) == 2
    assert "holds no best.pt" in capsys.readouterr().err


def test_a_file_that_gives_other_logits_is_reported(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(run_folder)

    def wrong(*arguments) -> torch.Tensor:
        return exporting._write_safetensors(*arguments) * 1.01

    monkeypatch.setitem(exporting._WRITERS, ".safetensors", wrong)
    with pytest.raises(CheckpointError, match="differ from those of the network by"):
        export(run, tmp_path / "net.safetensors")


def test_files_that_are_no_export_are_refused(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    export(load_run(run_folder), path)
    save_file(load_file(path), tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="is not a network written by this version"):
        load_exported(tmp_path / "foreign.safetensors")
    shutil.copy(run_folder / "checkpoint.pt", tmp_path / "other.safetensors")
    for name in ("other.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="cannot read the network"):
            load_exported(tmp_path / name)
