"""``python -m cac_ext`` says what is installed, finds what is wrong, and says what to do."""

from __future__ import annotations

import re
import runpy
from importlib import metadata

import pytest
import torch

import cac_ext
from cac_ext import diagnosis


def diagnose(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        runpy.run_module("cac_ext", run_name="__main__", alter_sys=True)
    return end.value.code, capsys.readouterr().out


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_EXTRAS", ())


def test_an_installation_in_order_is_described_and_ends_with_zero(capsys) -> None:
    code, text = diagnose(capsys)
    info = cac_ext.build_info()
    for part in (info["version"], torch.__version__, info["cpu_capability"], "no fault found"):
        assert part in text
    checked = re.findall(r"^  (\w+) +(cpu|cuda:\d) +(\w+) +\S+e-\d+ +\S+e-\d+$", text, re.M)
    types = ("float64", "float32", "bfloat16", "float16")
    on_cpu = {(name, dtype) for name, device, dtype in checked if device == "cpu"}
    operators = ("masked_logsumexp", "masked_contrastive_loss", "directional_contrastive_loss")
    assert on_cpu == {(name, dtype) for name in operators for dtype in types}
    assert code == 0


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize("part", ["value", "gradient"])
def test_an_operator_that_is_wrong_is_found(part: str, capsys, monkeypatch) -> None:
    right = cac_ext.masked_contrastive_loss

    def wrong(anchors, *arguments, **options):
        value = right(anchors, *arguments, **options)
        off = 1 + torch.rand(()).item()
        return value * off if part == "value" else value.detach() + off * (value - value.detach())

    monkeypatch.setattr(cac_ext, "masked_contrastive_loss", wrong)
    code, text = diagnose(capsys)
    assert code == 1
    named = set(re.findall(r"^WRONG:   (\w+)", text, re.M))
    assert named == {"masked_contrastive_loss"}
    assert "4 fault(s) found" in text
    assert "-> reinstall cac_ext" in text


@pytest.mark.usefixtures("without_packages")
def test_an_operator_that_fails_is_named_with_its_reason(capsys, monkeypatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nand a long story")

    monkeypatch.setattr(cac_ext, "masked_logsumexp", failing)
    code, text = diagnose(capsys)
    assert code == 1
    assert text.count("RuntimeError: no kernel image is available\n") == 4


def test_packages_that_are_missing_or_broken_are_told_apart(capsys, monkeypatch) -> None:
    requires = [
        "numpy",
        "tqdm; extra == 'train'",
        'broken>=2; extra == "train"',
        "gone; extra == 'timm'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: requires)
    known = {"tqdm": "4.0", "broken": "2.1"}

    def version(name: str) -> str:
        if name not in known:
            raise metadata.PackageNotFoundError(name)
        return known[name]

    def load(name: str) -> None:
        if name == "broken":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(diagnosis, "import_module", load)
    monkeypatch.setattr(diagnosis, "_devices", lambda: [])
    code, text = diagnose(capsys)
    assert "  tqdm 4.0" in text
    assert "WRONG:   broken 2.1 does not load: RuntimeError: operator torchvision::nms" in text
    assert 'missing: gone\n  -> pip install "cac_ext[timm]"' in text
    assert code == 1

    known["broken"] = "2.2"
    monkeypatch.setattr(diagnosis, "import_module", lambda name: None)
    requires.remove("gone; extra == 'timm'")
    code, text = diagnose(capsys)
    assert code == 0  # a missing extra is no fault
    assert "extra timm\n  unknown to the installed cac_ext" in text


def test_gpus_without_kernels_are_a_fault(monkeypatch) -> None:
    info = cac_ext.build_info() | {"cuda": False}
    monkeypatch.setattr(cac_ext, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    (line,) = [line for line in diagnosis._versions() if line.text.startswith("CUDA")]
    assert line.wrong
    assert "a GPU" in line.text
    assert "reinstall cac_ext" in line.remedy
