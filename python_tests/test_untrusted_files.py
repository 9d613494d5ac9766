"""What SECURITY.md promises: no file of weights, images or settings is run as a program."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from image_trees import SIZE
from PIL import EpsImagePlugin, Image

import cac_ext
from cac_ext.train.config import NetworkConfig, load
from cac_ext.train.data.files.pictures import read_ids, read_image, read_size
from cac_ext.train.errors import ConfigError, DataError, UserError
from cac_ext.train.networks import build_network
from cac_ext.train.networks.weights import load_backbone_weights
from cac_ext.train.runs.export import load_exported
from cac_ext.train.runs.folder import load_run, start_from

ROOT = Path(__file__).resolve().parent.parent


class Planted:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder that must not come to be."""
    return tmp_path / "was-run"


def plant(file: Path, trap: Path) -> None:
    torch.save({"format": "cac_ext checkpoint 3", "weights": Planted(trap)}, file)


def test_the_trap_works(tmp_path: Path, trap: Path) -> None:
    plant(tmp_path / "file.pt", trap)
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert trap.exists()


@pytest.mark.parametrize("best", [False, True])
def test_a_checkpoint_runs_nothing(
    best: bool, run_folder: Path, tmp_path: Path, trap: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    plant(folder / ("best.pt" if best else "checkpoint.pt"), trap)
    with pytest.raises(UserError, match="cannot read"):
        load_run(folder, best=best)
    with pytest.raises(UserError, match="cannot read"):
        start_from(build_network(NetworkConfig(), 3), folder / ("best.pt" if best else ""))
    assert not trap.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin"])
def test_a_file_of_weights_runs_nothing(suffix: str, tmp_path: Path, trap: Path) -> None:
    file = tmp_path / f"weights{suffix}"
    plant(file, trap)
    with pytest.raises(ConfigError, match=r"network\.weights"):
        load_backbone_weights(torch.nn.Linear(1, 1), "resnet50", str(file))
    with pytest.raises(UserError, match="cannot read"):
        load_exported(file)
    assert not trap.exists()


def test_a_file_in_the_cache_of_downloads_runs_nothing(
    tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    url = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
    (tmp_path / "checkpoints").mkdir()
    plant(tmp_path / "checkpoints" / Path(url).name, trap)
    with pytest.raises(ConfigError, match=r"more than tensors: remove .*resnet50"):
        load_backbone_weights(torch.nn.Linear(1, 1), "resnet50", "IMAGENET1K_V1")
    assert not trap.exists()


def test_prepared_negatives_are_no_weights(tmp_path: Path) -> None:
    """They are read by pickle alone, which the owner of the file must be trusted for."""
    prepared = cac_ext.prepare_negatives(torch.randn(5, 4), torch.arange(5))
    torch.save(prepared, tmp_path / "negatives.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "negatives.pt", weights_only=True)


@pytest.mark.parametrize("read", [read_image, read_size, lambda path: read_ids(path, SIZE, "x")])
def test_a_picture_that_is_a_program_is_not_given_to_ghostscript(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*_: object, **__: object) -> None:
        raise AssertionError("another program was started")

    for name in ("check_call", "call", "run", "Popen"):
        monkeypatch.setattr(subprocess, name, ran)
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ran)
    file = tmp_path / "image.png"
    Image.new("RGB", SIZE[::-1]).save(file, format="EPS")
    with pytest.raises(DataError, match="in the format EPS, which holds no pixels"):
        read(file)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [{trap}]",
        "output: !!python/object/apply:os.mkdir [{trap}]",
        "network: {{options: {{a: !!python/object/apply:os.mkdir [{trap}]}}}}",
        "network: {{options: {{a: !!python/name:os.mkdir }}}}",
    ],
)
def test_a_configuration_constructs_no_object(text: str, tmp_path: Path, trap: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text.format(trap=trap))
    with pytest.raises(ConfigError):
        load(str(file))
    assert not trap.exists()


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(x.func), x) for x in ast.walk(tree) if isinstance(x, ast.Call)]


@pytest.mark.parametrize("folder", ["cac_ext", "benchmarks", "examples"])
def test_nothing_unpickles_or_evaluates(folder: str) -> None:
    """Pickles are read as weights alone, by whichever function reads them."""
    readers = ("torch.load", "load_state_dict_from_url", "get_state_dict")
    forbidden = ("pickle.load", "pickle.loads", "eval", "exec", "yaml.load", "os.system")
    for path in (ROOT / folder).rglob("*.py"):
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            assert name not in forbidden, f"{path}:{call.lineno} calls {name}"
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if name.endswith(readers):
                assert given.get("weights_only") == "True", f"{path}:{call.lineno}"
            assert given.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
