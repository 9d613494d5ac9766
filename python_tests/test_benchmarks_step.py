"""Training steps with our loss and with that of a rival differ in cost, not in weights."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("omegaconf")

import cac_ext
from benchmarks.__main__ import main
from benchmarks.implementations.contenders import NO_LOSS
from benchmarks.measure.results import Results
from benchmarks.step import probe as step_probe
from benchmarks.step import run as step_run
from benchmarks.step.training_step import TrainingStep, step_config

SMALL = ["augment.crop_size=33", "network.width=16", "method.projector_channels=16"]


def weights_after(loss: str, seed: int, negatives: int = 200, steps: int = 2) -> torch.Tensor:
    config = step_config("synthetic", SMALL)
    step = TrainingStep(config, loss, negatives, batch=2, device=torch.device("cpu"), seed=seed)
    for _ in range(steps):
        step.run()
    return torch.cat([parameter.detach().flatten() for parameter in step.method.model.parameters()])


def test_a_step_learns_the_same_with_the_naive_loss(seed: int) -> None:
    ours, naive = weights_after("ours", seed), weights_after("naive", seed)
    start, without = weights_after("ours", seed, steps=0), weights_after(NO_LOSS, seed)
    moved = (ours - start).norm()
    assert (ours - naive).norm() < 1e-4 * moved
    assert (ours - without).norm() > 1e-2 * moved  # the loss does matter


def test_a_step_meets_exactly_the_negatives_asked_for(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = []
    right = cac_ext.directional_contrastive_loss

    def watched(*arguments, **options):
        met.append(len(arguments[6]))
        return right(*arguments, **options)

    monkeypatch.setattr(cac_ext, "directional_contrastive_loss", watched)
    for negatives in (10, 100, 3_000):
        weights_after("ours", seed, negatives, steps=1)
    assert met == [10, 100, 3_000]


def test_the_command_reports_rows_and_the_papers_own_figures_apart(
    tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_probe, asked = step_run.run_probe, []

    def probe(module, request, limit_bytes, timeout):
        asked.append(timeout)
        if len(asked) == 1:
            return run_probe(module, request, limit_bytes, timeout)
        # The same in this process, without the seconds that a child needs to start.
        return step_probe.probe({**request, "limit_bytes": 0, "threads": torch.get_num_threads()})

    monkeypatch.setattr(step_run, "run_probe", probe)
    output = tmp_path / "step.json"
    sizes = ["--negatives", "500", "19200", "--batch", "2", "--repeats", "1"]
    arguments = ["--losses", "ours", "--threads", "2", "--set", *SMALL, "--output", str(output)]
    assert main(["step", *sizes, *arguments]) == 0
    results = Results.load(output)
    assert [row.status for row in results.rows] == ["ok", "ok"]
    assert [len(row.samples) for row in results.rows] == [1, 1]
    assert all(row.warmed_up for row in results.rows)
    assert max(asked) < 600 / 2  # half of the time budget is for the steps themselves
    # Two batches of 2 images, once more as crop pairs, and the activations of a step.
    images = 3 * 2 * 3 * 33 * 33 * 4
    assert all(images < row.extra_memory < 2**28 for row in results.rows)
    printed = capsys.readouterr().out
    assert "measured here, ours" in printed
    assert "the paper's own, on its GPUs" in printed


def test_a_warm_up_leaves_what_a_step_leaves_in_memory_and_never_meets_the_loss(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the peak memory of one step with the loss is that of all steps."""

    def kept(step: TrainingStep) -> list[tuple]:
        parameters = [p for group in step.optimizer.param_groups for p in group["params"]]
        states = [step.optimizer.state[parameter] for parameter in parameters]
        return [
            (parameter.grad.shape, {key: value.shape for key, value in state.items()})
            for parameter, state in zip(parameters, states, strict=True)
        ]

    config = step_config("synthetic", SMALL)
    warm, used = (TrainingStep(config, "ours", 200, 2, torch.device("cpu"), seed) for _ in range(2))
    used.run()
    monkeypatch.setattr(cac_ext, "directional_contrastive_loss", None)
    warm.warm_up()
    assert kept(warm) == kept(used)


@pytest.mark.parametrize(
    "override",
    [
        "method.temperature=0.2",
        "method.confidence_threshold=0.5",
        "method.positive_filtering=false",
        "method.directional=false",
        "method.loss=l2",
    ],
)
def test_a_loss_that_rivals_do_not_compute_is_refused(override: str, capsys) -> None:
    assert main(["step", "--negatives", "500", "--set", *SMALL, override]) == 2
    error = capsys.readouterr().err
    assert "ours must be configured alike" in error
    assert override.partition("=")[0] in error


def test_a_rival_refuses_an_option_that_it_would_ignore(seed: int) -> None:
    config = step_config("synthetic", [*SMALL, "method.temperature=0.2"])
    TrainingStep(config, "ours", 200, 2, torch.device("cpu"), seed).run()
    step = TrainingStep(config, "naive", 200, 2, torch.device("cpu"), seed)
    with pytest.raises(ValueError, match=r"naive computes temperature=0\.1, not 0\.2"):
        step.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--negatives", "1"], "--negatives must be at least 2, one of each view, but got 1"),
        (["--config", "sinthetic"], "there is no configuration 'sinthetic'"),
        (["--set", "augment.crop=33"], "crop_size"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    arguments: list[str], message: str, capsys
) -> None:
    assert main(["step", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--negatives", "--batch", "--repeats", "--memory-budget"])
def test_a_size_of_zero_is_refused(option: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["step", option, "0"])
    assert "but got '0'" in capsys.readouterr().err
