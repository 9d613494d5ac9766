"""S4GAN: each loss term by hand, what learns in which phase, and the traps of its discriminator."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
import torch.nn.functional as F
from method_steps import random_labelled
from test_train_no_waits import take_steps_without_values
from tiny_run import TINY_RUN
from torch import Tensor, nn
from torch.optim import SGD

from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.augment import denormalize, normalize
from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.data.stream import Stream
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.methods import MethodContext, Step, check_method
from cac_ext.train.methods.s4gan import Discriminator, S4gan, discriminator_loss
from cac_ext.train.networks import build_network
from cac_ext.train.runs.checkpoint import read_checkpoint, weights_of_network
from cac_ext.train.runs.folder import load_run
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runtime.distributed import process_group

SIZE, CLASSES, IMAGES, IGNORED = 33, 3, 3, 255
SMALL = [
    "network.width=16",
    "network.dropout=0",
    f"augment.crop_size={SIZE}",
    "method.name=s4gan",
    "s4gan.feature_matching_weight=0.3",
    "s4gan.self_training_weight=0.7",
]

pytestmark = pytest.mark.usefixtures("one_thread")


def set_dropout(module: nn.Module, probability: float) -> None:
    for inner in module.modules():
        if isinstance(inner, nn.Dropout2d):
            inner.p = probability


def make_method(
    *overrides: str,
    kind: type[S4gan] = S4gan,
    dropout: float = 0.0,
    splits: object = None,
    ignore_index: int = IGNORED,
) -> S4gan:
    """The method in training mode; ``dropout`` is the discriminator's."""
    config = load("synthetic", [*SMALL, *overrides])
    splits = splits or SimpleNamespace(num_classes=CLASSES, ignore_index=ignore_index)
    method = kind(MethodContext(config, splits, build_network(config.network, CLASSES)))
    set_dropout(method.discriminator, dropout)
    for module in method.trained.values():
        module.train()
    return method


def make_batches() -> dict[str, object]:
    """Random crops; the last rows of unlabelled crops are padding, some labels are ignored."""
    images, masks = random_labelled(IMAGES, SIZE, CLASSES)
    true = random_labelled(IMAGES + 1, SIZE, CLASSES)
    true.masks[:, :5] = IGNORED
    contrast = torch.tensor([0.3, 1.0, 3.0])
    weak = torch.randn(IMAGES, 3, SIZE, SIZE) * contrast[:, None, None, None]
    valid = torch.ones(IMAGES, SIZE, SIZE, dtype=torch.bool)
    weak[..., -4:, :], valid[:, -4:] = 0, False
    none = torch.zeros(0, IMAGES, SIZE, SIZE, dtype=torch.bool)
    unlabelled = WholeCropBatch(weak, torch.zeros(0, IMAGES, 3, SIZE, SIZE), valid, none)
    labelled = type(true)(images, masks)
    return {"labelled": labelled, "unlabelled": unlabelled, "true": true}


def phases_of(method: S4gan, batches: dict[str, object], iteration: int = 0):
    """The phases of a step, without optimizer steps between them."""
    return method.step(Step(iteration, batches, method.trained, lambda finite: bool(finite)))


# The terms.


def test_feature_matching_is_the_mean_distance_of_the_mean_features() -> None:
    true = torch.tensor([[1.0, 2.0, 0.0], [3.0, 6.0, 0.0]])  # means 2, 4, 0
    predicted = torch.tensor([[0.0, 8.0, 4.0], [2.0, 2.0, 0.0], [1.0, 2.0, 2.0]])  # 1, 4, 2
    predicted.requires_grad_()
    loss = make_method().feature_matching(true, predicted)
    assert loss.item() == pytest.approx((1 + 0 + 2) / 3)
    (gradient,) = torch.autograd.grad(loss, predicted)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.0, 1.0]] * 3) / (3 * 3))


def test_self_training_is_cross_entropy_with_the_own_classes_of_selected_crops() -> None:
    logits = torch.zeros(2, CLASSES, 1, 3)
    logits[0, 1, 0, 0] = math.log(4)  # 4 / 6
    logits[0, 2, 0, 1] = math.log(8)  # 8 / 10
    logits[0, 0, 0, 2] = math.log(98)  # on padding
    logits[1, 0] = 5.0  # not selected
    logits.requires_grad_()
    valid = torch.tensor([[[True, True, False]], [[True, True, True]]])
    method = make_method()
    loss = method.self_training(logits, valid, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(-(math.log(4 / 6) + math.log(8 / 10)) / 2, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[0, :, 0, :2] != 0).all()
    assert gradient[0, :, 0, 2].abs().sum() == gradient[1].abs().sum() == 0


def test_self_training_without_a_selected_crop_is_zero() -> None:
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    loss = make_method().self_training(logits, valid, torch.tensor([False, False]))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient == 0).all()


def test_the_discriminator_s_loss_asks_for_0_on_predictions_and_1_on_true_masks() -> None:
    logits = torch.tensor([0.0, math.log(3), -math.log(3)])  # scores 1/2, 3/4 and 1/4
    expected = ((-math.log(1 / 2) - math.log(1 / 4)) / 2 - math.log(1 / 4)) / 2
    assert discriminator_loss(logits, predictions=2).item() == pytest.approx(expected)


def test_ignored_pixels_are_zero_in_every_class() -> None:
    masks = torch.tensor([[[0, 2], [IGNORED, 1]]])
    expected = [[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [0, 0]]]  # class by class
    assert make_method().one_hot(masks).tolist() == [expected]
    without_0 = make_method(ignore_index=0).one_hot(masks)
    assert without_0.tolist() == [[[[0, 0], [0, 0]], *expected[1:]]]


def test_the_discriminator_is_its_layers_written_out(seed: int) -> None:
    torch.manual_seed(seed)
    discriminator = Discriminator(CLASSES).eval().double()
    maps = torch.rand(2, CLASSES, SIZE, SIZE).double()
    images = torch.rand(2, 3, SIZE, SIZE).double()  # in [0, 1]
    shown = (images - discriminator.mean) / discriminator.std
    weights = [p for name, p in discriminator.named_parameters() if name.startswith("conv")]
    x = torch.cat([maps, images], dim=1)
    for weight, bias, channels in zip(
        weights[::2], weights[1::2], (64, 128, 256, 512), strict=True
    ):
        x = F.conv2d(x, weight, bias, stride=2, padding=1)
        x = torch.where(x > 0, x, 0.2 * x)
        assert x.shape[1] == channels
        assert weight.shape[2:] == (4, 4)
    features = x.flatten(2).sum(dim=2) / (x.shape[2] * x.shape[3])
    judged = Discriminator.forward(discriminator.float(), maps.float(), shown.float())
    torch.testing.assert_close(judged.features, features.float(), rtol=1e-4, atol=1e-5)
    score = judged.features @ discriminator.score.weight[0] + discriminator.score.bias
    torch.testing.assert_close(judged.scores, 1 / (1 + torch.exp(-score)))


@pytest.mark.parametrize("passing", [0, 1, IMAGES])
def test_the_phases_are_the_sums_written_out(passing: int, seed: int) -> None:
    """Self-training uses the crops whose score passes, and no other, from the first step on."""
    torch.manual_seed(seed)
    method, batches = make_method(f"seed={seed}"), make_batches()
    network, judge = method.context.network, method.discriminator
    nn.init.constant_(judge.score.weight, 0.2)  # more contrast, a higher score
    labelled, crops, true = batches.values()
    with torch.no_grad():
        supervised = F.cross_entropy(network(labelled.images), labelled.masks)
        logits = network(crops.weak)
        probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
        predicted = judge(torch.where(crops.valid[:, None], probabilities, 0), crops.weak)
        known = (true.masks != IGNORED)[:, None]
        one_hot = F.one_hot(true.masks.clamp(max=CLASSES - 1), CLASSES).movedim(-1, 1) * known
        real = judge(one_hot.float(), true.images)
    scores = predicted.scores.sort(descending=True).values
    limits = [1.0, *((scores[1:] + scores[:-1]) / 2).tolist(), 0.0]
    method.settings = replace(method.settings, score_threshold=limits[passing])
    first, second = phases_of(method, batches, iteration=0)

    best = probabilities.max(dim=1).values.log()  # [U, S, S]
    used = [i for i in range(IMAGES) if predicted.scores[i] > limits[passing]]
    assert len(used) == passing
    terms = [best[i][crops.valid[i]] for i in used]
    self_training = -torch.cat(terms).mean() if terms else torch.tensor(0.0)
    matching = (real.features.mean(0) - predicted.features.mean(0)).abs().sum() / 512
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(first.losses["supervised"].detach(), supervised, **close)
    torch.testing.assert_close(first.losses["feature_matching"].detach(), matching, **close)
    torch.testing.assert_close(first.losses["self_training"].detach(), self_training, **close)
    total = supervised + 0.3 * matching + 0.7 * self_training
    torch.testing.assert_close(first.total.detach(), total, **close)
    assert first.scalars()["self_training_share"] == pytest.approx(passing / IMAGES)
    loss = -((1 - predicted.scores).log().mean() + real.scores.log().mean()) / 2
    torch.testing.assert_close(second.total.detach(), loss, **close)
    assert (first.optimizer, second.optimizer) == ("network", "adam")
    assert second.scalars()["score_true"] == pytest.approx(real.scores.mean().item(), rel=1e-4)


# What learns.


def _has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_each_phase_reaches_its_own_module_alone(seed: int) -> None:
    torch.manual_seed(seed)
    method, batches = make_method("s4gan.score_threshold=0"), make_batches()
    network, judge = method.context.network, method.discriminator
    steps = phases_of(method, batches)
    first = next(steps)
    for name in ("feature_matching", "self_training"):
        network.zero_grad(set_to_none=True)
        first.losses[name].backward(retain_graph=True)
        assert _has_gradient(network), name
        assert all(p.grad is None for p in judge.parameters())
    first.total.backward()
    assert all(p.grad is None for p in judge.parameters())
    network.zero_grad(set_to_none=True)
    second = next(steps)
    second.total.backward()
    assert all(p.grad is None for p in network.parameters())
    assert all(p.grad.abs().sum() > 0 for p in judge.parameters())
    assert next(steps, None) is None


def test_the_discriminator_has_its_gradients_off_in_the_first_phase_alone(seed: int) -> None:
    torch.manual_seed(seed)
    method, batches = make_method(), make_batches()
    judge, seen = method.discriminator, []
    judge.register_forward_pre_hook(
        lambda module, _: seen.append({p.requires_grad for p in module.parameters()})
    )
    list(phases_of(method, batches))
    assert seen == [{False}, {False}, {True}]  # predictions and true masks; both together
    void = method.step(Step(0, batches, method.trained, lambda finite: False))
    assert next(void, None) is None
    assert all(p.requires_grad for p in judge.parameters())


def test_the_second_phase_judges_the_predictions_before_the_step_of_the_network(seed: int) -> None:
    torch.manual_seed(seed)
    method, batches = make_method(), make_batches()
    seen: list[Tensor] = []
    method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    steps = phases_of(method, batches)
    next(steps)
    with torch.no_grad():
        method.context.network.classifier.bias += torch.arange(float(CLASSES))
    next(steps)
    predicted, true, both = seen
    assert predicted.requires_grad
    assert not both.requires_grad
    assert torch.equal(both, torch.cat([predicted.detach(), true]))


def test_each_optimizer_has_its_own_weights_and_decays(tmp_path: Path) -> None:
    method = make_method("s4gan.discriminator_learning_rate=0.002")
    optimizers = method.build_optimizers()
    for name, module in (("network", method.context.network), ("adam", method.discriminator)):
        groups = optimizers[name].param_groups
        held = {id(p) for group in groups for p in group["params"]}
        assert held == {id(p) for p in module.parameters()}
    (group,) = optimizers["adam"].param_groups
    assert (group["learning_rate"], group["betas"]) == (0.002, (0.9, 0.99))
    settings = [*TINY_RUN, "method.name=s4gan", "schedule.warmup_epochs=0"]
    train(load("synthetic", settings), tmp_path, progress=False)
    (saved,) = read_checkpoint(tmp_path / "checkpoint.pt")["optimizers"]["adam"]["param_groups"]
    assert saved["lr"] == pytest.approx(1e-4 * (1 - 3 / 4) ** 0.9)


# Traps.


def test_what_the_discriminator_sees_of_an_image_does_not_depend_on_its_batch(seed: int) -> None:
    torch.manual_seed(seed)
    judge = Discriminator(CLASSES).eval()
    seen: list[Tensor] = []
    judge.convolutions.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = 0, 255
    image, other = normalize(pixels), normalize(torch.full_like(pixels, 97))
    maps = torch.rand(2, CLASSES, SIZE, SIZE)
    alone = judge(maps[:1], image[None])
    together = judge(maps, torch.stack([image, 40 * other]))
    torch.testing.assert_close(alone.logits[0], together.logits[0])
    for inputs in seen:
        torch.testing.assert_close(inputs[0, CLASSES:], pixels / 255)
        torch.testing.assert_close(inputs[0, CLASSES:], denormalize(image))


def test_padding_of_predictions_looks_as_that_of_true_masks(seed: int) -> None:
    torch.manual_seed(seed)
    method, batches = make_method(), make_batches()
    seen: list[Tensor] = []
    method.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    next(phases_of(method, batches))
    predicted, true = seen
    padding = ~batches["unlabelled"].valid[:, None].expand_as(predicted)
    assert (predicted[padding] == 0).all()
    assert (predicted[~padding] > 0).all()
    assert (true[:, :, :5] == 0).all()  # ignored


def test_the_discriminator_scores_in_training_mode(seed: int) -> None:
    torch.manual_seed(seed)
    method, batches = make_method(dropout=0.5), make_batches()
    first, again = (next(phases_of(method, batches)) for _ in range(2))
    assert torch.equal(first.losses["supervised"], again.losses["supervised"])
    assert first.losses["feature_matching"] != again.losses["feature_matching"]
    fresh = Discriminator(CLASSES)
    assert [m.p for m in fresh.modules() if isinstance(m, nn.Dropout2d)] == [0.5] * 3


def test_true_masks_come_from_a_stream_of_their_own() -> None:
    warm = ["schedule.warmup_epochs=1", "schedule.iterations_per_epoch=7"]
    overrides = [*TINY_RUN, *warm, "augment.unlabelled_scale=[0.5,0.6]"]
    splits = build_datasets(load("synthetic", overrides).data)
    streams = make_method(*overrides, splits=splits).streams()
    assert len({request.name for request in streams.values()}) == len(streams) == 3
    labelled, true = streams["labelled"], streams["true"]
    assert true.images is labelled.images is splits.labelled
    assert (labelled.first_iteration, true.first_iteration) == (0, 7)
    drawn = [Stream(x.images, x.augment, 0, x.name) for x in (labelled, true)]
    orders = [[stream.index(position) for position in range(60)] for stream in drawn]
    assert orders[0] != orders[1]
    # True crops are scaled as unlabelled ones: from 48 pixels to at most 29 of 33.
    assert all((drawn[1][p].mask[29:] == IGNORED).all() for p in range(5))
    assert any((drawn[0][p].mask[29:] != IGNORED).any() for p in range(5))


@pytest.mark.usefixtures("without_pictures")
def test_the_discriminator_is_no_part_of_the_network_that_is_kept(tmp_path: Path) -> None:
    config = load("synthetic", [*TINY_RUN, "method.name=s4gan"])
    result = train(config, tmp_path, progress=False)
    state = read_checkpoint(tmp_path / "checkpoint.pt")
    assert state["modules"].keys() == {"network", "discriminator"}
    assert weights_of_network(state).keys() == result.network.state_dict().keys()
    assert load_run(tmp_path).network.state_dict().keys() == result.network.state_dict().keys()
    assert not any(isinstance(module, Discriminator) for module in result.network.modules())
    steps = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "train"]
    assert ["loss_discriminator" in step for step in steps] == [False] * 2 + [True] * 2


def test_crops_that_the_discriminator_cannot_halve_are_refused() -> None:
    settings = ["method.name=s4gan", "augment.crop_size=15"]
    with pytest.raises(ConfigError, match=r"crop_size is 15, but .* at least 16 pixels"):
        check_method(load("synthetic", settings))
    judged = Discriminator(CLASSES)(torch.rand(1, CLASSES, 16, 16), torch.rand(1, 3, 16, 16))
    assert judged.logits.shape == (1,)


def test_nan_makes_the_step_void_before_its_first_phase() -> None:
    method, batches = make_method(), make_batches()
    batches["true"].images[0, 0, 0, 0] = math.nan
    assert list(phases_of(method, batches)) == []


# Several processes; no waits.


class WithSgd(S4gan):
    """SGD for the discriminator: Adam hides the size of gradients."""

    def build_optimizers(self):
        params = list(self.discriminator.parameters())
        judge = SGD([{"params": params, "learning_rate": 1.0}], lr=1.0)
        return {**super().build_optimizers(), "adam": judge}


class WithoutDropout(WithSgd):
    """Different processes draw different dropout."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        set_dropout(self.discriminator, 0.0)


def _train_without_dropout(overrides: list[str], folder: Path) -> None:
    with process_group("cpu"):
        train(load("synthetic", overrides), folder, progress=False, build=WithoutDropout)


@pytest.mark.usefixtures("without_pictures")
def test_two_processes_train_as_one_does(tmp_path: Path, seed: int) -> None:
    overrides = [
        *TINY_RUN,
        "method.name=s4gan",
        "network.dropout=0",
        f"seed={seed}",
        "schedule.warmup_epochs=0",
        "s4gan.score_threshold=0.1",
        "s4gan.feature_matching_weight=20",
    ]
    _train_without_dropout(overrides, tmp_path / "one")
    processes.run_together(2, _train_without_dropout, overrides, tmp_path / "two")
    one, two = (read_checkpoint(tmp_path / x / "checkpoint.pt")["modules"] for x in ("one", "two"))
    for name, module in one.items():
        for key, weight in module.items():
            torch.testing.assert_close(two[name][key], weight, rtol=1e-3, atol=1e-4)


def test_a_step_asks_for_no_value(tmp_path: Path) -> None:
    # Without Adam, which asks for its own count of steps; that one lies on the CPU.
    method = make_method(kind=WithSgd, dropout=0.5)
    take_steps_without_values(method, tmp_path, batches=make_batches(), phases=2)
