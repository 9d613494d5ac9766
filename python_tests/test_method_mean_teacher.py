"""Mean Teacher: the loss by hand, what each network sees, and how the teacher follows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from crop_steps import CLASSES, gradients, make_method, phase_of, random_batches

RAMP = ["schedule.epochs=10", "schedule.iterations_per_epoch=10", "mean_teacher.rampup=0.2"]
RAMP += ["schedule.warmup_epochs=3"]  # the ramp is from iteration 30 to 50
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_distance_is_a_mean_over_classes_and_pixels_outside_padding() -> None:
    method = make_method("mean_teacher")
    student = torch.tensor([[1.0, 0.0, 5.0], [0.0, 0.0, 0.0]])[None, :, None]  # [1, 2, 1, 3]
    target = torch.tensor([[0.5, 0.9, 0.0], [0.5, 0.1, 1.0]])[None, :, None]
    valid = torch.tensor([[[True, True, False]]])
    first = math.e / (math.e + 1)
    squared = 2 * (first - 0.5) ** 2 + 2 * (0.5 - 0.9) ** 2
    found = method.distance(student, target, valid)
    assert found.item() == pytest.approx(squared / (2 * 2))
    assert method.distance(student, target, torch.zeros_like(valid)).item() == 0


@pytest.mark.parametrize("iteration", [30, 37, 50, 90])
def test_the_total_is_cross_entropy_plus_ramped_weight_times_distance(
    iteration: int, seed: int
) -> None:
    """The student sees the strong crop and the teacher the weak one, without dropout."""
    torch.manual_seed(seed)
    method = make_method("mean_teacher", "mean_teacher.weight=12", *RAMP)
    batches = random_batches(1)
    labelled, crops = batches["labelled"], batches["unlabelled"]
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    student = copy.deepcopy(method.context.network)
    phase = phase_of(method, batches, iteration)
    with torch.no_grad():
        target = method.teacher(crops.weak).softmax(dim=1)
        supervised = F.cross_entropy(student(labelled.images), labelled.masks)
        probabilities = student(crops.strong[0]).softmax(dim=1)
    total, pixels = 0.0, 0
    for image, row, column in crops.valid.nonzero().tolist():
        pixels += 1
        for k in range(CLASSES):
            place = (image, k, row, column)
            total += (probabilities[place].item() - target[place].item()) ** 2
    distance = total / (pixels * CLASSES)
    weight = 12 * math.exp(-5 * (1 - min((iteration - 30) / 20, 1)) ** 2)
    assert phase.losses["consistency"].item() == pytest.approx(distance, rel=1e-4)
    expected = supervised.item() + weight * distance
    assert phase.total.item() == pytest.approx(expected, rel=1e-4)
    assert phase.metrics["consistency_weight"] == pytest.approx(weight)


def test_the_teacher_predicts_in_evaluation_mode_and_the_step_leaves_it_alone(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("mean_teacher", "network.dropout=0.5")
    method.teacher.train()  # whatever happened to it
    before = {name: x.clone() for name, x in method.teacher.state_dict().items()}
    phase_of(method, random_batches(1)).total.backward()
    assert not any(module.training for module in method.teacher.modules())
    for name, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


def test_the_consistency_trains_the_student_alone(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("mean_teacher")
    phase_of(method, random_batches(1), 900).losses["consistency"].backward()
    reached = gradients(method.student.model.network)
    biases = [name for name in reached if name.startswith("encoder.") and name.endswith("0.bias")]
    assert all(found for name, found in reached.items() if name not in biases), reached
    optimized = [p for group in method.parameter_groups() for p in group["params"]]
    teacher = {id(p) for p in method.teacher.parameters()}
    assert {id(p) for p in optimized} == {id(p) for p in method.context.network.parameters()}
    assert not teacher & {id(p) for p in optimized}


def test_the_teacher_averages_weights_and_batch_statistics(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_method("mean_teacher", "mean_teacher.ema_decay=0.9")
    network, teacher = method.context.network, method.teacher
    mean = {name: x.clone() for name, x in teacher.state_dict().items()}
    for iteration, decay in ((0, 0.0), (1, 0.5), (2, 2 / 3), (50, 0.9)):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        phase_of(method, random_batches(1), iteration)  # moves the batch statistics
        method.after_step(iteration)
        for name, latest in network.state_dict().items():
            if latest.is_floating_point():
                mean[name] = decay * mean[name] + (1 - decay) * latest
            else:
                mean[name] = latest.clone()  # counts of batches
    assert any("running_mean" in name for name in mean)
    for name, value in teacher.state_dict().items():
        torch.testing.assert_close(value, mean[name])


def test_without_a_ramp_the_weight_is_full_at_once() -> None:
    method = make_method("mean_teacher", "mean_teacher.rampup=0", "mean_teacher.weight=3")
    assert method.weight(method.context.config.warmup_iterations) == 3


def test_the_teacher_is_evaluated_and_kept() -> None:
    method = make_method("mean_teacher")
    assert method.evaluated is method.teacher is method.kept["teacher"]
    assert "teacher" not in method.trained
