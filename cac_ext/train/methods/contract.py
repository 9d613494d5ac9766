"""The contract of training methods: the loop serves any of them and knows none.

A method owns its modules, requests streams of batches, turns the batches of a step into named
losses, and says which network is evaluated. The loop does the rest: devices, several processes,
mixed precision, backward and optimizer steps, checkpoints, exact resume, logging.

    class SupOnly(Method):
        def __init__(self, context):
            super().__init__(context)
            self.trained["network"] = context.network

        def streams(self):
            return self.supervised_streams()

        def step(self, step):
            batch = self.supervised_batch(step.batches)
            logits = step.modules["network"](batch.images)
            loss, finite = self.supervised_loss(logits, batch.masks)
            if step.proceeds(finite):
                yield Phase(loss, {"supervised": loss})

**Phases.** `Method.step` is a generator. Each `Phase` it yields is one backward and one optimizer
step; the code behind the ``yield`` sees the updated weights. Most methods yield once; a GAN yields
for the network and then for the discriminator.

**Several processes.** ``step.modules`` are the modules of `Method.trained`, wrapped in
DistributedDataParallel if there are several processes. Call each of them once a phase, on all
images of the phase together: DDP averages the gradients in the backward of that call. Draw random
numbers from a generator seeded by `derive_seed` with `Step.draw`, or from torch's global generator,
whose state is in the checkpoint.

**Parts.** With ``schedule.accumulation`` the batches of a step are divided into parts.
`Method.step` is called for each, and its generators advance together: the first phase of every
part, one optimizer step with the mean of their gradients, then the second phase of every part.

**Resume.** The checkpoint holds the state of `trained`, of `kept` and of the optimizers, and what
`state_dict` returns. A resumed run continues bit for bit if the method has no other state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits, Sample, SegmentationDataset
from cac_ext.train.data.augment import LabelledAugment
from cac_ext.train.data.batches import (
    LabelledBatch,
    collate_labelled,
    collate_whole_crops,
    concatenate,
)
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.data.whole_crops import WholeCropAugment
from cac_ext.train.methods.supervised_loss import SupervisedLoss, cross_entropy
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.optimizer import build_optimizer
from cac_ext.train.runtime.distributed import ALONE, Processes
from cac_ext.train.runtime.seeding import seeded


@dataclass(frozen=True)
class MethodContext:
    """The arguments of a method.

    Attributes:
        config: of the run; ``config.method.options`` are a custom method's own settings.
        splits: the data.
        network: built and initialized, on the CPU.
        processes: this process among those of the run.
        pretrained: False where a checkpoint's weights follow.
    """

    config: Config
    splits: DatasetSplits
    network: SegmentationNetwork
    processes: Processes = ALONE
    pretrained: bool = True

    @property
    def normalizing(self) -> Processes:
        """The processes whose pixels and anchors a mean covers: all, or this one alone."""
        return self.processes if self.config.run.normalize_over_ranks else ALONE

    @property
    def unlabelled_images(self) -> SegmentationDataset:
        """The unlabelled images; the labelled ones if there are none (full data, section 4.1)."""
        splits = self.splits
        return splits.labelled if splits.unlabelled is None else splits.unlabelled

    def mean_over(self, values: Tensor, counted: Tensor) -> Tensor:
        """The mean of the counted pixels of ``[B, S, S]``, a scalar; 0 if there are none.

        Averaged over the processes it is the mean over all their pixels.
        """
        total = torch.where(counted, values, 0.0).sum()
        return total / self.normalizing.mean_count(counted.sum())

    def another_network(self, name: str) -> SegmentationNetwork:
        """A second network of the same kind with initial weights from a separate seed.

        Args:
            name: gives the seed, together with the seed of the run.
        """
        with seeded(self.config.seed, name, 0):
            return build_network(
                self.config.network,
                self.splits.num_classes,
                pretrained=self.pretrained,
                normalization=self.network.normalization,
            )


@dataclass(frozen=True)
class StreamRequest:
    """An endless stream of batches that a method requests (`data/stream.py`).

    Attributes:
        images: the data set.
        augment: turns a sample into a named tuple of tensors; draws from torch's CPU generator.
        collate: turns a list of those into a batch.
        batch_size: images a step, of all processes together.
        batch_key: the configuration key of the batch size, for errors.
        name: gives the seed, together with the position in the stream. Two streams with the same
            name see the same images in the same order with the same augmentation.
        first_iteration: the first step whose batches include the stream.
    """

    images: SegmentationDataset
    augment: Callable[[Sample], Any]
    collate: Callable[[list[Any]], Any]
    batch_size: int
    batch_key: str
    name: str
    first_iteration: int = 0


@dataclass(frozen=True)
class Step:
    """The argument of `Method.step`.

    Attributes:
        iteration: 0 for the first step of the run.
        batches: the batch of each stream that has begun, by its name in `Method.streams`.
        modules: the modules to call in training, by their names in `Method.trained`.
        proceeds: call it with a scalar bool tensor, whether the outputs of this process are finite.
            If it returns False, the step is void in some process: return without yielding, and
            change nothing.
        part, parts: which part of the step this is, from 0, and their number.
    """

    iteration: int
    batches: Mapping[str, Any]
    modules: Mapping[str, nn.Module]
    proceeds: Callable[[Tensor], bool]
    part: int = 0
    parts: int = 1

    @property
    def draw(self) -> int:
        """The number of this part in the run, for seeds; the iteration if steps have one part."""
        return self.iteration * self.parts + self.part


@dataclass
class Phase:
    """One backward and one optimizer step.

    Attributes:
        total: the scalar to differentiate.
        losses: its parts by name; scalars, logged as ``loss_NAME``.
        metrics: other scalars to log, by their names in the log.
        optimizer: the name of the optimizer that steps.
    """

    total: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    optimizer: str = "network"

    def scalars(self) -> dict[str, float]:
        """All losses and metrics as numbers. It waits for the device."""
        values = {f"loss_{name}": loss for name, loss in self.losses.items()} | dict(self.metrics)
        return {
            name: value.item() if isinstance(value, Tensor) else float(value)
            for name, value in values.items()
        }


class Method(ABC):
    """A training method; see the module's docstring.

    A custom method is a subclass, named by ``method.name: my_module:MyMethod`` and built by
    ``MyMethod(context)``.

    Attributes:
        context: the argument of ``__init__``.
        trained: the modules that optimizers change, by name. Fill it in ``__init__``.
        kept: modules in the checkpoint that no optimizer changes, e.g. a mean teacher.
    """

    #: Whether ``method.directional_contrast`` adds CAC's loss; without it, asking is an error.
    takes_directional_contrast: ClassVar[bool] = False
    #: Whether the method learns from ``weak.pseudo_labels``; without it, giving them is an error.
    takes_image_labels: ClassVar[bool] = False

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.trained: dict[str, nn.Module] = {}
        self.kept: dict[str, nn.Module] = {}
        self._supervised = SupervisedLoss(
            context.config.supervised, context.splits, context.normalizing
        )

    @classmethod
    def check(cls, config: Config) -> None:
        """Find early what would fail hours later, e.g. missing kernels. It draws nothing at random.

        Called before data or network are built.

        Raises:
            ConfigError: the run cannot work.
        """
        return

    @abstractmethod
    def streams(self) -> dict[str, StreamRequest]:
        """The streams of batches that a step needs, by name."""

    @abstractmethod
    def step(self, step: Step) -> Iterator[Phase]:
        """Yield the phases of one step. Autocast is on if the run uses mixed precision."""

    def after_step(self, iteration: int) -> None:
        """Called after the last phase of a step, e.g. to update a mean teacher.

        Not called after a step that was skipped because it was not finite.
        """
        return

    @property
    def evaluated(self) -> SegmentationNetwork:
        """The network that is evaluated, drawn in pictures and kept for inference.

        It must be one of the modules in `trained` and `kept`, or inside one of them.
        """
        return self.context.network

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups with ``params`` and a ``learning_rate`` for the optimizer ``network``."""
        return self.groups_of(self.trained)

    def build_optimizers(self) -> dict[str, Optimizer]:
        """The optimizers by name. Each parameter group has a ``learning_rate``, which decays.

        ``network`` is the one that ``optimizer.name`` configures.
        """
        return {"network": build_optimizer(self.context.config.optimizer, self.parameter_groups())}

    def state_dict(self) -> dict[str, Any]:
        """State outside modules and optimizers, e.g. a memory bank: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        return

    def pictures(self) -> dict[str, Figure]:
        """Figures of the latest step for TensorBoard, by tag. Drawn after an evaluation."""
        return {}

    # What most methods need.

    def groups_of(self, modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
        """Parameter groups at the configured learning rate; backbones have their factor of it."""
        optimizer = self.context.config.optimizer
        rate = optimizer.learning_rate
        groups = []
        for name, module in modules.items():
            if isinstance(module, SegmentationNetwork):
                groups += module.parameter_groups(rate, optimizer.backbone_factor)
            elif params := list(module.parameters()):
                groups.append({"name": name, "params": params, "learning_rate": rate})
        return groups

    def supervised_streams(self) -> dict[str, StreamRequest]:
        """``labelled``, and with ``self_training.pseudo_labels`` also ``pseudo_labelled``."""
        streams = {"labelled": self._supervised_stream(self.context.splits.labelled, "labelled")}
        folder = self.context.config.self_training.pseudo_labels
        if folder is not None:
            images = pseudo_labelled(self.context.splits, folder, "self_training.pseudo_labels")
            streams["pseudo_labelled"] = self._supervised_stream(images, "unlabelled")
        return streams

    def supervised_batch(self, batches: Mapping[str, Any]) -> LabelledBatch:
        """The batches of `supervised_streams`, joined."""
        labelled, more = batches["labelled"], batches.get("pseudo_labelled")
        return labelled if more is None else concatenate(labelled, more)

    def whole_crop_stream(
        self, *, strong: int = 1, cutmix: float = 0.0, name: str = "unlabelled"
    ) -> StreamRequest:
        """`WholeCropBatch`es of the unlabelled images; see `WholeCropAugment`.

        Streams of different names draw independently.
        """
        config = self.context.config
        return StreamRequest(
            self.context.unlabelled_images,
            WholeCropAugment(
                config.augment,
                strong=strong,
                cutmix=cutmix,
                normalization=self.context.network.normalization,
            ),
            collate_whole_crops,
            config.schedule.unlabelled_batch,
            "schedule.unlabelled_batch",
            name,
            config.warmup_iterations,
        )

    def _supervised_stream(self, images: SegmentationDataset, part: str) -> StreamRequest:
        config = self.context.config
        return StreamRequest(
            images,
            LabelledAugment(
                config.augment,
                self.context.splits.ignore_index,
                self.context.network.normalization,
            ),
            collate_labelled,
            getattr(config.schedule, f"{part}_batch"),
            f"schedule.{part}_batch",
            part,
        )

    def supervised_loss(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The loss on true masks that ``supervised`` configures, and whether it is finite.

        ``[B, K, H, W]`` and ``[B, H, W]`` to two scalars. By default `cross_entropy`.
        """
        loss = self._supervised(logits, masks)
        return loss, loss.detach().isfinite()

    def cross_entropy(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over all pixels that are not ignored (0 if none), and whether it is finite.

        ``[B, K, H, W]`` and ``[B, H, W]`` to two scalars. Averaged over the processes it is the
        mean over all their pixels.
        """
        ignore_index = self.context.splits.ignore_index
        loss = cross_entropy(logits, masks, ignore_index, self.context.normalizing)
        return loss, loss.detach().isfinite()
