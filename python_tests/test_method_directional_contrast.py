"""The directional contrastive loss of CAC on top of another method, by one setting."""

from __future__ import annotations

from pathlib import Path

import processes
import pytest
import torch
from crop_steps import SIZE, VERSIONS, gradients, make_method, phase_of, random_batches
from dying_run import assert_resumes_bit_for_bit, train_until
from method_steps import balance_classes
from tiny_run import TINY_RUN

from cac_ext.train.config import load
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods import MethodContext, check_method
from cac_ext.train.methods.cac import Cac
from cac_ext.train.runs.log import read_metrics

ADDED = ["method.directional_contrast=true", "method.confidence_threshold=0.05"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("method", VERSIONS)
def test_it_is_the_loss_of_cac_added_with_its_weight(method: str, seed: int) -> None:
    torch.manual_seed(seed)
    built = make_method(method, *ADDED, "method.unsupervised_weight=0.3", f"seed={seed}")
    batches = random_batches(VERSIONS[method], pairs=True)
    balance_classes(built.student.model, batches["crop_pairs"])
    cac = Cac(MethodContext(built.context.config, built.context.splits, built.context.network))
    cac.model.projector.load_state_dict(built.student.model.projector.state_dict())
    own, whole = phase_of(built, batches, 7), phase_of(cac, batches, 7)
    torch.testing.assert_close(own.losses["directional_contrast"], whole.losses["unsupervised"])
    assert own.losses["directional_contrast"] > 0
    assert own.metrics["active_share"] == whole.metrics["active_share"]
    assert own.metrics["negatives"] == 2 * 2 * SIZE * SIZE

    torch.manual_seed(seed)
    plain = phase_of(make_method(method, f"seed={seed}"), random_batches(VERSIONS[method]), 7)
    added = own.total - sum(
        weight * own.losses[name]
        for name, weight in {
            "supervised": 1.0,
            "consistency": own.metrics.get("consistency_weight", 0.0),
            "strong": 1.0,
            "features": 0.5,
            "strong1": 0.25,
            "strong2": 0.25,
        }.items()
        if name in own.losses
    )
    torch.testing.assert_close(added, 0.3 * own.losses["directional_contrast"])
    assert set(own.losses) - set(plain.losses) == {"directional_contrast"}


@pytest.mark.parametrize("method", VERSIONS)
def test_it_trains_encoder_and_projector_but_not_the_classifier(method: str, seed: int) -> None:
    torch.manual_seed(seed)
    built = make_method(method, *ADDED)
    batches = random_batches(VERSIONS[method], pairs=True)
    balance_classes(built.student.model, batches["crop_pairs"])
    phase_of(built, batches).losses["directional_contrast"].backward()
    reached = gradients(built.student.model)
    for name, found in reached.items():
        if "classifier" in name:
            assert not found
        elif not (name.startswith("network.encoder") and name.endswith("0.bias")):
            assert found, name
    optimized = {id(p) for group in built.parameter_groups() for p in group["params"]}
    assert optimized == {id(p) for p in built.student.parameters()}


@pytest.mark.parametrize("method", VERSIONS)
def test_the_switches_of_cac_hold(method: str, seed: int) -> None:
    for switches in (
        ["method.loss=l2", "method.directional=false"],
        ["method.projector=false", "method.positive_filtering=false"],
        ["method.selected_num=5", "method.step_save=2", "method.normalizer=active"],
    ):
        torch.manual_seed(seed)
        built = make_method(method, *ADDED, *switches)
        batches = random_batches(VERSIONS[method], pairs=True)
        balance_classes(built.student.model, batches["crop_pairs"])
        phase = phase_of(built, batches)
        assert phase.losses["directional_contrast"] > 0
        projector = list(built.student.model.projector.parameters())
        assert bool(projector) == built.context.config.method.projector
        if built.context.config.method.selected_num is not None:
            assert phase.metrics["negatives"] == 2 * 5
            assert phase_of(built, batches, 1).metrics["negatives"] == 4 * 5


@pytest.mark.parametrize("method", VERSIONS)
def test_a_view_that_is_not_finite_makes_the_step_void(method: str, seed: int) -> None:
    torch.manual_seed(seed)
    built = make_method(method, *ADDED)
    batches = random_batches(VERSIONS[method], pairs=True)
    batches["crop_pairs"].view2.images[0, 0, 0, 0] = torch.nan
    assert phase_of(built, batches) is None
    assert not built.state_dict()["bank"]["features"]


@pytest.mark.parametrize("method", VERSIONS)
def test_without_the_setting_or_weight_there_is_no_projector_and_no_crop_pair(method: str) -> None:
    for overrides in ([], [*ADDED, "method.unsupervised_weight=0"]):
        built = make_method(method, *overrides)
        assert "crop_pairs" not in built.streams()
        assert not list(built.student.model.projector.parameters())
        assert built.state_dict() == {}
    built = make_method(method, *ADDED)
    assert "crop_pairs" in built.streams()


def test_methods_that_cannot_have_it_say_so(tmp_path: Path, monkeypatch) -> None:
    given = "method.directional_contrast=true"
    for method in ("cac", *VERSIONS):
        check_method(load("synthetic", [given, f"method.name={method}"]))
    message = (
        r"method\.directional_contrast: {} does not take .*fixmatch, mean_teacher and unimatch"
    )
    with pytest.raises(ConfigError, match=message.format("sup_only")):
        check_method(load("synthetic", [given, "method.name=sup_only"]))
    monkeypatch.chdir(Path(__file__).resolve().parent.parent / "examples")
    with pytest.raises(ConfigError, match=message.format("mean_teacher:MeanTeacher")):
        check_method(load("synthetic", [given, "method.name=mean_teacher:MeanTeacher"]))


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("method", VERSIONS)
def test_it_resumes_bit_for_bit_with_its_memory_bank(
    method: str, tmp_path: Path, seed: int
) -> None:
    overrides = [*TINY_RUN, *ADDED, "schedule.epochs=3", f"method.name={method}", f"seed={seed}"]
    overrides += ["network.dropout=0.5", "method.step_save=2", "method.negative_sampling=false"]
    assert_resumes_bit_for_bit(overrides, tmp_path)
    steps = [x for x in read_metrics(tmp_path / "whole/metrics.jsonl") if x["split"] == "train"]
    assert all(step["loss_directional_contrast"] > 0 for step in steps[2:])
    processes.run_together(2, train_until, overrides, tmp_path / "two")
