"""One whole training step, encoder included, with the loss exchanged for a rival's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cac_ext.train.methods.step import TrainingModel, build_model, compute_losses
from torch import Tensor

from benchmarks.cases import CONFIDENCE_THRESHOLD, TEMPERATURE, Case, Inputs
from benchmarks.contenders import NO_LOSS
from benchmarks.errors import UsageError
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.loss_exchange import training_with
from cac_ext.train.config import Config, load
from cac_ext.train.methods.memory_bank import MemoryBank
from cac_ext.train.networks import build_network
from cac_ext.train.optimizer import build_optimizer

#: Shares of classes and of active anchors, as in the paper-sized case of `benchmarks loss`.
TYPICAL = Case("typical")
IGNORE_INDEX = 255


def step_config(name_or_path: str, overrides: list[str]) -> Config:
    """A training configuration, normalised by active anchors as every implementation is."""
    return load(name_or_path, [*overrides, "method.normalizer=active"])


#: What the implementations of `benchmarks.implementations` compute, as the trainer asks for it.
COMPUTED = {
    "temperature": TEMPERATURE,
    "confidence_threshold": CONFIDENCE_THRESHOLD,
    "weights": None,
    "reduction": "active_mean",
    "normalize": False,  # unit features come in, and a second normalisation changes nothing
    "eps": 0.0,
}


def check_comparable(config: Config, losses: list[str]) -> None:
    """Refuse a configuration whose loss is not the one that all implementations compute.

    Raises:
        UsageError: names the settings that differ.
    """
    if set(losses) <= {"ours"}:
        return
    method = config.method
    needed = {
        "loss": "contrastive",
        "directional": True,
        "positive_filtering": True,
        "temperature": TEMPERATURE,
        "confidence_threshold": CONFIDENCE_THRESHOLD,
    }
    wrong = [
        f"method.{key}={value} (is {getattr(method, key)})"
        for key, value in needed.items()
        if getattr(method, key) != value
    ]
    if wrong:
        raise UsageError(
            f"beside another loss, ours must be configured alike: set {' '.join(wrong)}, "
            "or measure --losses ours alone"
        )


def _loss_for_training(name: str) -> Callable[..., Tensor] | None:
    """An implementation under the signature of `cac_ext.directional_contrastive_loss`."""
    if name == "ours":
        return None
    implementation = None if name == NO_LOSS else IMPLEMENTATIONS[name]()

    def loss(features1: Tensor, features2: Tensor, *arguments: Tensor, **options) -> Tensor:
        for option, value in options.items():
            if value is not COMPUTED[option] and value != COMPUTED[option]:
                raise ValueError(f"{name} computes {option}={COMPUTED[option]}, not {value}")
        if implementation is None:
            return 0.0 * (features1.sum() + features2.sum())
        return implementation.loss(Inputs(features1, features2, *arguments))

    return loss


class _TypicalOutputs(TrainingModel):
    """An untrained network is sure of nothing: its outputs are kept, but its labels and
    confidences are replaced by typical ones, so that as many anchors are active as in training."""

    def view_outputs(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projections, confidences, pseudo_labels = super().view_outputs(views)
        generator = torch.Generator().manual_seed(0)
        count = pseudo_labels.numel()
        labels = torch.multinomial(
            TYPICAL.class_shares(), count, replacement=True, generator=generator
        )
        # Both views sure with probability q: 2 q - q^2 of the anchors are active in a direction.
        sure = torch.rand(count, generator=generator) < 1 - (1 - 2 * TYPICAL.active_share) ** 0.5
        values = torch.rand(count, generator=generator)
        values = torch.where(sure, 0.8 + 0.2 * values, 0.7 * values)
        return (
            projections,
            values.view_as(confidences).to(confidences),
            labels.view_as(pseudo_labels).to(pseudo_labels),
        )


class TrainingStep:
    """A model, a batch and ``negatives`` features; `run` is one optimiser step."""

    def __init__(
        self, config: Config, loss: str, negatives: int, batch: int, device: torch.device, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.config, self.device = config, device
        self._loss = _loss_for_training(loss)
        # Random weights cost the same, and nothing is downloaded.
        network = build_network(config.network, TYPICAL.K, pretrained=False)
        built = build_model(config, network)
        self.model = _TypicalOutputs(built.network, built.projector).to(device).train()
        self.optimizer = build_optimizer(config.optimizer, self.model)

        size = config.augment.crop_size
        side = network.pooled_grid.size(size)
        shift = side // 4  # the views overlap in 9/16 of their positions
        grid = torch.arange(side * side).view(side, side)
        overlap1, overlap2 = grid[shift:, shift:].flatten(), grid[: side - shift, : side - shift]
        offsets = torch.arange(batch)[:, None] * side * side

        def images() -> Tensor:
            return torch.randn(batch, 3, size, size)

        self.labelled = self._to_device(
            {"image": images(), "mask": torch.randint(TYPICAL.K, (batch, size, size))}
        )
        self.pairs = self._to_device(
            {
                "view1": images(),
                "view2": images(),
                "valid1": torch.ones(batch, side, side, dtype=torch.bool),
                "valid2": torch.ones(batch, side, side, dtype=torch.bool),
                "overlap1": (offsets + overlap1).flatten(),
                "overlap2": (offsets + overlap2.flatten()).flatten(),
                "image_index": torch.arange(batch).repeat_interleave(len(overlap1)),
            }
        )
        # What this step does not select itself stands in the bank from earlier steps.
        selected = max(1, min(negatives // 2, batch * side * side))
        self.bank = MemoryBank(selected, step_save=1)
        older = max(negatives - 2 * selected, 0)
        channels = config.method.projector_channels
        features = torch.nn.functional.normalize(torch.randn(older, channels), dim=1)
        labels = torch.multinomial(TYPICAL.class_shares(), max(older, 1), replacement=True)[:older]
        self._older = features.to(device), labels.to(device)
        self.anchors = len(self.pairs["overlap1"])

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device) for key, value in batch.items()}

    def warm_up(self) -> None:
        """A step without the consistency loss, which may take minutes. The next has the peak memory
        of all later ones: gradients, momentum and the allocator's spare room are there."""
        self._run(_loss_for_training(NO_LOSS))

    def run(self) -> None:
        """Forward, both losses, backward, update."""
        self._run(self._loss)

    def _run(self, loss: Callable[..., Tensor] | None) -> None:
        self.bank.enqueue(*self._older)
        with training_with(loss):
            losses = compute_losses(
                self.config, self.model, self.bank, self.labelled, self.pairs, 0, IGNORE_INDEX
            )
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        self.optimizer.step()
