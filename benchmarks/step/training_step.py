"""One whole training step, encoder included, with the loss of a rival in place of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.cases import CONFIDENCE_THRESHOLD, TEMPERATURE, Case, Inputs
from benchmarks.errors import UsageError
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.implementations.contenders import NO_LOSS
from cac_ext.reference import direction_masks
from cac_ext.train.config import Config, load
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.batches import CropPairBatch, LabelledBatch, ViewBatch, to_device
from cac_ext.train.methods import MethodContext, Step
from cac_ext.train.methods.cac import Cac
from cac_ext.train.methods.memory_bank import MemoryBank
from cac_ext.train.methods.projecting_network import ProjectingNetwork, ViewOutputs
from cac_ext.train.networks import build_network

#: Shares of classes and of active anchors, as in the paper-sized case of `benchmarks loss`.
TYPICAL = Case("typical")


def step_config(name_or_path: str, overrides: list[str]) -> Config:
    """A training configuration whose loss is a mean over active anchors, as in every rival."""
    return load(name_or_path, [*overrides, "method.normalizer=active"])


#: The options of the trainer that all implementations compute.
COMPUTED = {
    "temperature": TEMPERATURE,
    "confidence_threshold": CONFIDENCE_THRESHOLD,
    "weights": None,
    "reduction": "active_mean",
    "normalize": False,  # features are unit vectors; normalizing again changes nothing
    "eps": 0.0,
    "return_direction": True,
}


def check_comparable(config: Config, losses: list[str]) -> None:
    """Refuse a configuration whose loss the implementations do not compute.

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


def _loss_for_training(name: str) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """An implementation under the signature of `cac_ext.directional_contrastive_loss`."""
    if name == "ours":
        return None
    implementation = None if name == NO_LOSS else IMPLEMENTATIONS[name]()

    def loss(
        features1: Tensor, features2: Tensor, *arguments: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        for option, value in options.items():
            if value is not COMPUTED[option] and value != COMPUTED[option]:
                raise ValueError(f"{name} computes {option}={COMPUTED[option]}, not {value}")
        masks = direction_masks(arguments[0], arguments[1], CONFIDENCE_THRESHOLD)  # [2, A]
        if implementation is None:
            value = 0.0 * (features1.sum() + features2.sum())
        else:
            value = implementation.loss(Inputs(features1, features2, *arguments))
        return value, masks[0] + 2 * masks[1]

    return loss


class _TypicalOutputs(ProjectingNetwork):
    """Typical labels and confidences in place of those of an untrained network.

    That one is sure of nothing; so as many anchors are active as in training.
    """

    def view_outputs(self, views: Tensor) -> ViewOutputs:
        projections, confidences, pseudo_labels, _ = super().view_outputs(views)
        generator = torch.Generator().manual_seed(0)
        count = pseudo_labels.numel()
        labels = torch.multinomial(
            TYPICAL.class_shares(), count, replacement=True, generator=generator
        )
        # Both views sure with probability q: 2 q - q^2 of the anchors are active in a direction.
        sure = torch.rand(count, generator=generator) < 1 - (1 - 2 * TYPICAL.active_share) ** 0.5
        values = torch.rand(count, generator=generator)
        values = torch.where(sure, 0.8 + 0.2 * values, 0.7 * values)
        return ViewOutputs(
            projections,
            values.view_as(confidences).to(confidences),
            labels.view_as(pseudo_labels).to(pseudo_labels),
            None,
        )


class _NoImages(Dataset[Any]):
    """Stands where no image is read: the step makes its own batch."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> NoReturn:
        raise IndexError(index)


class TrainingStep:
    """A model, a batch and ``negatives`` features; `run` is one optimizer step."""

    def __init__(
        self, config: Config, loss: str, negatives: int, batch: int, device: torch.device, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self._loss = _loss_for_training(loss)
        # Random weights cost the same, and nothing is downloaded.
        network = build_network(config.network, TYPICAL.K, pretrained=False)
        class_names = [str(number) for number in range(TYPICAL.K)]
        splits = DatasetSplits(_NoImages(), _NoImages(), _NoImages(), class_names)
        self.method = Cac(MethodContext(config, splits, network))
        model = self.method.model
        typical = _TypicalOutputs(model.network, model.projector).to(device).train()
        self.method.model = self.method.trained["model"] = typical
        if config.run.compile:
            typical.compile()
        (self.optimizer,) = self.method.build_optimizers().values()

        size = config.augment.crop_size
        side = network.pooled_grid.size(size)
        shift = side // 4  # the views overlap in 9/16 of their positions
        grid = torch.arange(side * side).view(side, side)
        overlap1 = grid[shift:, shift:].flatten()
        overlap2 = grid[: side - shift, : side - shift].flatten()
        offsets = torch.arange(batch)[:, None] * side * side

        def images() -> Tensor:
            return torch.randn(batch, 3, size, size)

        labelled = LabelledBatch(images(), torch.randint(TYPICAL.K, (batch, size, size)))
        valid = torch.ones(batch, side, side, dtype=torch.bool)

        def view(overlap: Tensor) -> ViewBatch:  # [A]
            positions = (offsets + overlap).flatten()
            return ViewBatch(images(), valid, torch.arange(valid.numel()), positions)

        view1, view2 = view(overlap1), view(overlap2)
        image_index = torch.arange(batch).repeat_interleave(len(overlap1))
        weights = torch.full((len(image_index),), 1.0 / (batch * len(overlap1)))
        pairs = CropPairBatch(view1, view2, image_index, weights)
        self.batches = to_device({"labelled": labelled, "crop_pairs": pairs}, device)
        # Negatives that this step does not select are in the bank, from earlier steps.
        selected = max(1, min(negatives // 2, batch * side * side))
        self.method.contrast.bank = MemoryBank(selected, step_save=1)
        older = max(negatives - 2 * selected, 0)
        channels = config.method.projector_channels
        features = torch.nn.functional.normalize(torch.randn(older, channels), dim=1)
        labels = torch.multinomial(TYPICAL.class_shares(), max(older, 1), replacement=True)[:older]
        self._older = features.to(device), labels.to(device)
        self.anchors = len(image_index)

    def warm_up(self) -> None:
        """A step without the consistency loss, which may take minutes.

        The next one has the peak memory of all later ones: gradients, momentum and the spare memory
        of the allocator exist.
        """
        self._run(_loss_for_training(NO_LOSS))

    def run(self) -> None:
        """Forward, both losses, backward, update."""
        self._run(self._loss)

    def _run(self, loss: Callable[..., tuple[Tensor, Tensor]] | None) -> None:
        self.method.contrast.bank.enqueue(*self._older)
        self.method.contrast.loss = loss
        step = Step(0, self.batches, self.method.trained, bool)
        for phase in self.method.step(step):
            self.optimizer.zero_grad(set_to_none=True)
            phase.total.backward()
            self.optimizer.step()
