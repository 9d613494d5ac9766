"""A device on which the fused loss does not run is an error before training, not after hours."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tiny_run import TINY_RUN

import cac_ext
from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods.fused_loss import require_fused_loss

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch, no_step: None) -> None:
    """As a build without kernels for the device: the dispatcher finds none."""

    def not_there(*_: object, **__: object) -> None:
        raise NotImplementedError(
            "Could not run 'cac_ext::directional_contrastive_loss' with arguments from the 'CUDA' "
            "backend.\nSee below"
        )

    monkeypatch.setattr(cac_ext, "directional_contrastive_loss", not_there)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(
    "command",
    [
        ["train", "synthetic"],
        ["train", "synthetic", "weak.pseudo_labels=auto"],
        ["compare", "synthetic"],
        ["ablate", "table3", "--config", "synthetic"],
    ],
    ids=lambda c: " ".join(c),
)
def test_a_loss_that_does_not_run_is_reported_before_the_first_step(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([*command, *TINY_RUN, "--folder", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "from the 'CUDA' backend" in message
    assert f"cac_ext {cac_ext.__version__} was built for" in message
    assert "device=cpu" in message


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("other", ["method.unsupervised_weight=0", "method.loss=l2"])
def test_runs_without_the_fused_loss_do_not_need_it(other: str) -> None:
    overrides = [*TINY_RUN, other] + ["method.directional=false"] * ("l2" in other)
    require_fused_loss(load("synthetic", overrides))


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="the message differs if there is one")
def test_a_device_that_torch_does_not_have_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["train", "synthetic", *TINY_RUN, "device=mps", "--folder", str(tmp_path / "run")]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "mps" in message
    assert "device=cpu" in message


def test_a_loss_that_is_not_finite_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cac_ext.directional_contrastive_loss

    def broken(*arguments, **options):
        loss, direction = original(*arguments, **options)
        return loss * torch.nan, direction

    monkeypatch.setattr(cac_ext, "directional_contrastive_loss", broken)
    with pytest.raises(ConfigError, match="gives nan"):
        require_fused_loss(load("synthetic", TINY_RUN))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "method", [(), ("directional=false",), ("normalizer=active",), ("projector=false",)]
)
def test_the_check_passes_and_draws_nothing(
    method: tuple[str, ...], precision: str, device: str, seed: int
) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    states = torch.get_rng_state(), random.getstate()
    overrides = [*TINY_RUN, f"run.precision={precision}", f"device={device}"]
    require_fused_loss(load("synthetic", [*overrides, *(f"method.{m}" for m in method)]))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
