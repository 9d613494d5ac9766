"""Guided Collaborative Training: its losses written out, and where gradient goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_steps import random_labelled
from test_train_no_waits import take_steps_without_values
from torch import Tensor, nn

from cac_ext.train.config import load
from cac_ext.train.data.batches import LabelledBatch, WholeCropBatch
from cac_ext.train.experiments.methods import method_overrides
from cac_ext.train.methods import MethodContext, Phase, Step
from cac_ext.train.methods.gct.flaw_maps import guidance, handled_flaws, true_flaws
from cac_ext.train.methods.gct.method import Gct
from cac_ext.train.methods.ramp import sigmoid_ramp
from cac_ext.train.networks import build_network
from cac_ext.train.optimizer import set_learning_rates
from cac_ext.train.runtime.distributed import ALONE, Processes

CLASSES, SIZE, IMAGES, IGNORED = 4, 33, 2, 255
SMALL = ["network.width=16", "network.dropout=0", f"augment.crop_size={SIZE}"]

pytestmark = pytest.mark.usefixtures("one_thread")


def make_method(seed: int, *overrides: str, processes: Processes = ALONE) -> Gct:
    torch.manual_seed(seed)
    settings = [*SMALL, *method_overrides("gct"), f"seed={seed}", *overrides]
    config = load("synthetic", settings)
    splits = SimpleNamespace(num_classes=CLASSES, ignore_index=IGNORED)
    network = build_network(config.network, CLASSES)
    method = Gct(MethodContext(config, splits, network, processes))
    for module in method.trained.values():
        module.train()
    return method


def make_batches() -> tuple[LabelledBatch, WholeCropBatch]:
    """Random images; a quarter of the labelled pixels is ignored, a fifth of the crops padding."""
    labelled = random_labelled(IMAGES, SIZE, CLASSES)
    labelled.masks[torch.rand(labelled.masks.shape) < 0.25] = IGNORED
    valid = torch.ones(IMAGES, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, -7:] = False
    none = torch.zeros(0, IMAGES, 3, SIZE, SIZE)
    crops = WholeCropBatch(
        torch.randn(IMAGES, 3, SIZE, SIZE) * valid[:, None], none, valid, none[:, :, 0].bool()
    )
    return labelled, crops


@pytest.fixture
def flaws_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handled flaws are random. With a detector of random weights some images have none."""
    monkeypatch.setattr(
        "cac_ext.train.methods.gct.method.handled_flaws",
        lambda raw, counted: torch.rand_like(raw).masked_fill(~counted, 0),
    )


class PixelDetector(nn.Module):
    """Flaws in the same places for both networks, changed a little by their predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.rand(SIZE, SIZE))
        self.classes = nn.Parameter(torch.randn(CLASSES, 1, 1))

    def forward(self, images: Tensor, *predictions: Tensor) -> list[Tensor]:
        return [self.places + 0.5 * (x * self.classes).sum(dim=1) for x in predictions]


class Kept(nn.Module):
    """A network whose latest logits are kept with their gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        self.logits = self.network(images)
        self.logits.retain_grad()
        return self.logits


def phases_of(
    method: Gct, batches: tuple, iteration: int = 0, modules: dict | None = None
) -> list[Phase]:
    """The phases of a step whose optimizers do nothing; gradients add up."""
    named = dict(zip(("labelled", "unlabelled"), batches, strict=False))
    step = Step(iteration, named, modules or method.trained, lambda finite: bool(finite))
    return list(method.step(step))


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_every_loss_is_the_one_written_out(seed: int) -> None:
    method = make_method(
        seed,
        "gct.flaw_threshold=0.3",
        "gct.correction_weight=2",
        "gct.consistency_weight=50",
        "gct.detector_weight=7",
        "gct.rampup=0.5",
    )
    method.detector = method.trained["detector"] = PixelDetector()
    labelled, crops = make_batches()
    iteration = method.context.config.warmup_iterations + 100  # of 1000
    images = torch.cat([labelled.images, crops.weak])
    counted = torch.cat([labelled.masks != IGNORED, crops.valid])
    with torch.no_grad():
        logits = [method.trained[name](images) for name in ("first", "second")]
        known = [x.softmax(dim=1) for x in logits]
        raw = [method.detector(images, x)[0] for x in known]
    handled = [handled_flaws(x, counted) for x in raw]
    both = (handled[0] > 0.3) & (handled[1] > 0.3)
    assert both.any()
    phases = phases_of(method, (labelled, crops), iteration)
    assert [phase.optimizer for phase in phases] == ["first", "second", "detector"]
    ramp = float(np.exp(-5 * (1 - 100 / 500) ** 2))
    targets = guidance((known[0], known[1]), (handled[0], handled[1]), 0.3).targets
    pixels = int(counted.sum())
    for index, (phase, prefix) in enumerate(zip(phases, ("", "second_"), strict=False)):
        ours = logits[index][:IMAGES].double().log_softmax(dim=1)
        supervised = correction = consistency = 0.0
        for image, y, x in counted.nonzero().tolist():
            if image < IMAGES:
                supervised -= ours[image, labelled.masks[image, y, x], y, x].item()
            if both[image, y, x]:
                correction += raw[index][image, y, x].item() ** 2
            distance = (known[index] - targets[index])[image, :, y, x].double()
            consistency += distance.square().sum().item() / CLASSES
        supervised /= int((labelled.masks != IGNORED).sum())
        correction, consistency = correction / pixels, consistency / pixels
        expected = {
            f"{prefix}supervised": supervised,
            f"{prefix}correction": correction,
            f"{prefix}consistency": consistency,
        }
        assert {k: v.item() for k, v in phase.losses.items()} == pytest.approx(expected, rel=1e-3)
        total = supervised + 2 * correction + ramp * 50 * consistency
        assert phase.total.item() == pytest.approx(total, rel=1e-3)
    assert phases[0].metrics["both_flawed"].item() == pytest.approx(
        int((both & counted).sum()) / pixels
    )

    on, detector = counted[:IMAGES], 0.0
    for x, flaws in zip(known, raw, strict=True):
        target = true_flaws(x[:IMAGES], labelled.masks, on)
        detector += (flaws[:IMAGES] - target)[on].double().square().mean().item() / 2
    assert phases[2].losses["detector"].item() == pytest.approx(detector, rel=1e-3)
    assert phases[2].total.item() == pytest.approx(7 * detector, rel=1e-3)
    assert ramp == pytest.approx(sigmoid_ramp(100, 500))


def test_cross_entropy_is_a_mean_of_the_pixels_that_are_not_ignored(seed: int) -> None:
    method = make_method(seed)
    labelled, _ = make_batches()
    phases = phases_of(method, (labelled,))
    for phase, name in zip(phases, ("first", "second"), strict=False):
        logits = method.trained[name](labelled.images)
        over_all = F.cross_entropy(logits, labelled.masks, ignore_index=IGNORED, reduction="sum")
        on = labelled.masks != IGNORED
        torch.testing.assert_close(phase.total, over_all / on.sum())
        assert not torch.isclose(phase.total, over_all / on.numel())


def test_each_phase_teaches_its_own_module_alone(flaws_everywhere: None, seed: int) -> None:
    method = make_method(seed, "gct.rampup=0")
    phases = phases_of(method, make_batches())
    assert all(p.requires_grad for module in method.trained.values() for p in module.parameters())
    for phase in phases:
        phase.total.backward()
        for name, module in method.trained.items():
            assert bool(gradients(module)) == (name == phase.optimizer)
        taught = method.trained[phase.optimizer]
        assert sum(gradient.abs().sum() for gradient in gradients(taught)) > 0
        method.trained[phase.optimizer].zero_grad(set_to_none=True)


@pytest.mark.parametrize("term", ["correction", "consistency"])
def test_each_term_reaches_the_network_that_it_teaches(
    term: str, flaws_everywhere: None, seed: int
) -> None:
    method = make_method(seed)
    phases = phases_of(method, make_batches())
    for phase, prefix in zip(phases, ("", "second_"), strict=False):
        loss = phase.losses[f"{prefix}{term}"]
        assert loss > 0
        loss.backward()
        assert gradients(method.trained[phase.optimizer])
        assert not gradients(method.detector)
        method.trained[phase.optimizer].zero_grad(set_to_none=True)


def test_the_consistency_moves_the_prediction_towards_its_target_alone(
    flaws_everywhere: None, seed: int
) -> None:
    """A target with gradient would give another one: that of the distance to itself."""
    method = make_method(seed)
    batches = make_batches()
    networks = {name: Kept(method.trained[name]) for name in ("first", "second")}
    phases = phases_of(method, batches, modules={**networks, "detector": method.detector})
    kept = [network.logits for network in networks.values()]
    phases[0].losses["consistency"].backward()
    assert kept[0].grad.abs().sum() > 0
    assert kept[1].grad is None
    phases[1].losses["second_consistency"].backward()
    assert kept[1].grad.abs().sum() > 0


def test_no_gradient_reaches_predictions_on_padding_or_ignored_pixels(
    flaws_everywhere: None, seed: int
) -> None:
    method = make_method(seed, "gct.rampup=0")
    labelled, crops = make_batches()
    networks = {name: Kept(method.trained[name]) for name in ("first", "second")}
    modules = {**networks, "detector": method.detector}
    counted = torch.cat([labelled.masks != IGNORED, crops.valid])
    phases = phases_of(method, (labelled, crops), modules=modules)
    for phase, network in zip(phases, networks.values(), strict=False):
        phase.total.backward()
        size = network.logits.grad.abs().sum(dim=1)
        assert (size[~counted] == 0).all()
        assert (size[counted] > 0).float().mean() > 0.5


class Answers(nn.Module):
    """A detector that gives the same answer to everything; its parameter is that answer."""

    def __init__(self, flaws: Tensor) -> None:
        super().__init__()
        self.flaws = nn.Parameter(flaws)

    def forward(self, images: Tensor, *predictions: Tensor) -> list[Tensor]:
        return [0.0 * x.sum(dim=1) + self.flaws for x in predictions]


def test_the_detector_learns_from_its_raw_negative_answers(seed: int) -> None:
    """As a square's: clamped answers would have the loss of 0."""
    method = make_method(seed)
    labelled, crops = make_batches()
    values = []
    for answer in (-3.0, 0.0):
        method.detector = Answers(torch.full((SIZE, SIZE), answer))
        modules = {**method.trained, "detector": method.detector}
        phase = phases_of(method, (labelled, crops), modules=modules)[2]
        phase.losses["detector"].backward()
        values.append(phase.losses["detector"].item())
        assert (method.detector.flaws.grad < 0).sum() > SIZE**2 // 2  # towards a higher answer
    assert values[0] > values[1] + 8


def test_in_the_warm_up_networks_learn_from_labels_alone(seed: int) -> None:
    method = make_method(seed)
    labelled, _ = make_batches()
    phases = phases_of(method, (labelled,))
    assert [sorted(phase.losses) for phase in phases] == [
        ["supervised"],
        ["second_supervised"],
        ["detector"],
    ]
    assert torch.equal(phases[0].total, phases[0].losses["supervised"])


def test_a_batch_of_ignored_pixels_has_the_loss_zero(seed: int) -> None:
    method = make_method(seed)
    labelled, _ = make_batches()
    labelled.masks.fill_(IGNORED)
    for phase in phases_of(method, (labelled,)):
        phase.total.backward()
        assert phase.total.item() == 0
    assert all(x.isfinite().all() for m in method.trained.values() for x in gradients(m))


def test_a_step_that_is_not_finite_has_no_phase(seed: int) -> None:
    method = make_method(seed)
    labelled, crops = make_batches()
    crops.weak[0, 0, 0, 0] = torch.nan
    assert phases_of(method, (labelled, crops)) == []


def test_a_step_asks_for_no_value(tmp_path: Path, seed: int) -> None:
    labelled, crops = make_batches()
    batches = {"labelled": labelled, "unlabelled": crops}
    take_steps_without_values(make_method(seed), tmp_path, batches=batches, phases=3)


def test_both_networks_begin_differently_and_the_first_is_evaluated(seed: int) -> None:
    method, again = make_method(seed), make_method(seed)
    first, second = (method.trained[name].state_dict() for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert not all(torch.equal(first[name], second[name]) for name in first)
    assert method.evaluated is method.trained["first"]
    for name, module in method.trained.items():  # the same seed, the same weights
        for one, other in zip(module.parameters(), again.trained[name].parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 4])
def test_learning_rates_do_not_grow_with_the_number_of_processes(size: int, seed: int) -> None:
    method = make_method(seed, processes=Processes(0, size))
    optimizers = method.build_optimizers()
    kinds = {name: type(optimizer).__name__ for name, optimizer in optimizers.items()}
    assert kinds == {"first": "SGD", "second": "SGD", "detector": "Adam"}
    assert optimizers["detector"].param_groups[0]["betas"] == (0.9, 0.99)
    config = method.context.config
    set_learning_rates(optimizers.values(), config.optimizer, 400, 1000)
    decay = (1 - 0.4) ** 0.9
    for name, optimizer in optimizers.items():
        expected = 1e-4 if name == "detector" else config.optimizer.learning_rate
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(decay * expected)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in method.trained[name].parameters()}


def test_a_mean_covers_the_pixels_of_all_processes(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over two processes of each one's value, with 3 and 9 pixels, is that of all 12."""
    pixels = {0: 3, 1: 9}
    values, total = [], torch.zeros(())
    for rank, count in pixels.items():
        method = make_method(seed, processes=Processes(rank, 2))
        monkeypatch.setattr(Processes, "sum", lambda self, x: torch.full_like(x, 12.0))
        counted = torch.arange(16).view(1, 4, 4) < count
        losses = torch.rand(1, 4, 4)
        total = total + losses[counted].sum()
        values.append(method.context.mean_over(losses, counted))
    torch.testing.assert_close(sum(values) / 2, total / 12)


def test_the_method_is_named_in_the_paper_s_table_1(tmp_path: Path) -> None:
    from cac_ext.train.experiments.ablate import load_row
    from cac_ext.train.experiments.tables import find_table

    table = find_table("table1")
    rows = table.select(["deeplabv3plus-resnet101-gct-*"])
    assert [row.paper for row in rows] == [67.2, 72.5, 75.1, 77.5]
    configs = [load_row(table, row) for row in rows]
    assert [config.data.labelled_ratio for config in configs] == ["1/16", "1/8", "1/4", "full"]
    assert {config.method.name for config in configs} == {"gct"}
    assert {config.network.backbone for config in configs} == {"resnet101"}
