"""SGD and AdamW: groups, decay, and steps written out; the poly decay of both."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from run_folders import assert_identical, assert_same_run
from tiny_run import TINY_RUN
from torch import nn

from cac_ext.train.batch_streams import BatchStreams
from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.methods import MethodContext, build_method
from cac_ext.train.methods.sup_only import SupOnly
from cac_ext.train.networks import build_network
from cac_ext.train.optimizer import build_optimizer, set_learning_rates
from cac_ext.train.runs.checkpoint import read_checkpoint

SPLITS = SimpleNamespace(num_classes=4, ignore_index=255)  # data that nothing reads

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def make_layer(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2).double()


def one_step(layer: nn.Linear, *overrides: str) -> tuple[torch.optim.Optimizer, torch.Tensor]:
    """A step with random gradients at the iteration 3 of 10, and the learning rate there."""
    config = load("synthetic", ["optimizer.learning_rate=0.02", *overrides]).optimizer
    group = {"name": "x", "params": list(layer.parameters()), "learning_rate": 0.004}
    optimizer = build_optimizer(config, [group])
    set_learning_rates([optimizer], config, 3, 10)
    for parameter in layer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer, 0.004 * 0.7**0.9


def test_adamw_steps_as_written_out(seed: int) -> None:
    """The first step: ``w (1 - lr decay) - lr g / (|g| + eps)``, as both means are corrected."""
    layer = make_layer(seed)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    more = ("optimizer.name=adamw", "optimizer.weight_decay=0.05", "optimizer.betas=[0.8,0.9]")
    optimizer, rate = one_step(layer, *more)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    for old, new in zip(before, layer.parameters(), strict=True):
        expected = old * (1 - rate * 0.05) - rate * new.grad / (new.grad.abs() + 1e-8)
        torch.testing.assert_close(new.detach(), expected)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_and_biases_may_be_left_out_of_the_decay(name: str, seed: int) -> None:
    found = []
    for flag in ("true", "false"):
        layer = make_layer(seed)
        optimizer, _ = one_step(
            layer,
            f"optimizer.name={name}",
            "optimizer.weight_decay=0.5",
            f"optimizer.decay_norms_and_biases={flag}",
        )
        found.append(layer)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == ([0.5] if flag == "true" else [0.5, 0.0])
        assert {group["learning_rate"] for group in optimizer.param_groups} == {0.004}
    assert torch.equal(found[0].weight, found[1].weight)
    assert not torch.equal(found[0].bias, found[1].bias)


def test_the_groups_are_those_of_the_method(seed: int) -> None:
    torch.manual_seed(seed)
    config = load("synthetic", ["network.name=pspnet", "optimizer.decay_norms_and_biases=false"])
    network = build_network(config.network, 4)
    optimizer = SupOnly(MethodContext(config, SPLITS, network)).build_optimizers()["network"]
    assert [group["name"] for group in optimizer.param_groups] == ["head"] * 2 + ["backbone"] * 2
    rates = [group["learning_rate"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.005])
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_the_bounds_of_the_settings_are_held() -> None:
    for wrong in ("optimizer.name=adam", "optimizer.betas=[0.9]", "optimizer.betas=[0.9,1]"):
        with pytest.raises(ConfigError, match=r"optimizer\.(name|betas)"):
            load("synthetic", [wrong])
    with pytest.raises(ConfigError, match=r"run\.ema_decay"):
        load("synthetic", ["run.ema_decay=1"])


def test_the_evaluated_mean_is_the_running_mean_of_the_network(seed: int) -> None:
    """The first step counts fully, the second by half, until the decay is reached."""
    torch.manual_seed(seed)
    config = load("synthetic", ["network.width=16", "run.ema_decay=0.6"])
    network = build_network(config.network, 4)
    method = build_method(MethodContext(config, SPLITS, network), SupOnly)
    (weight, *_) = network.parameters()
    values = [torch.randn_like(weight) for _ in range(4)]
    for iteration, value in enumerate(values):
        weight.data.copy_(value)
        method.after_step(iteration)
    mean = values[0]
    for value, decay in zip(values[1:], (1 / 2, 0.6, 0.6), strict=True):
        mean = decay * mean + (1 - decay) * value
    (averaged, *_) = method.evaluated.parameters()
    torch.testing.assert_close(averaged, mean)
    assert not averaged.requires_grad
    assert list(method.trained) == ["network"]
    assert list(method.kept) == ["evaluated_mean"]


LIVELY = [*TINY_RUN, "schedule.epochs=3", "method.confidence_threshold=0.1", "network.dropout=0.5"]


def break_and_resume(overrides: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in two parts: no batch can be read at iteration 3."""
    config = load("synthetic", overrides)
    next_batches = BatchStreams.next

    def failing(streams: BatchStreams, iteration: int) -> object:
        if iteration == 3:
            raise OSError("a disk is gone")
        return next_batches(streams, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(BatchStreams, "next", failing)
        with pytest.raises(OSError, match="a disk"):
            train(config, folder, progress=False)
    train(config, folder, progress=False, resume=True)


@pytest.mark.parametrize("method", ["cac", "sup_only"])
def test_adamw_and_the_evaluated_mean_resume_bit_for_bit(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    adamw = ["optimizer.name=adamw", "optimizer.learning_rate=1e-3", "run.ema_decay=0.6"]
    overrides = [*LIVELY, *adamw, f"method.name={method}", f"seed={seed}"]
    train(load("synthetic", overrides), tmp_path / "whole", progress=False)
    break_and_resume(overrides, tmp_path / "broken", monkeypatch)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    state = read_checkpoint(tmp_path / "whole/checkpoint.pt")["optimizers"]
    assert list(state) == ["network"]
    assert all("exp_avg_sq" in moments for moments in state["network"]["state"].values())


@pytest.mark.parametrize("method", ["cac", "sup_only"])
def test_the_mean_is_evaluated_and_leaves_the_training_as_it_is(
    method: str, tmp_path: Path, seed: int
) -> None:
    overrides = [*LIVELY, f"method.name={method}", f"seed={seed}"]
    plain = train(load("synthetic", overrides), tmp_path / "plain", progress=False)
    config = load("synthetic", [*overrides, "run.ema_decay=0.6"])
    meant = train(config, tmp_path / "mean", progress=False)
    states = [read_checkpoint(tmp_path / x / "checkpoint.pt") for x in ("plain", "mean")]
    modules = dict(states[1]["modules"])
    mean = modules.pop("evaluated_mean")
    assert_identical(states[0]["modules"], modules, "modules")
    assert_identical(states[0]["optimizers"], states[1]["optimizers"], "optimizers")
    assert_identical(dict(meant.network.state_dict()), dict(mean), "evaluated")
    weights = plain.network.state_dict()
    assert any(not torch.equal(x, weights[name]) for name, x in mean.items())
    assert states[1]["network"] == "evaluated_mean."
