"""The training loop, top to bottom: what happens in a run, in the order in which it happens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cac_ext.train.checkpoint import read_checkpoint, restore, save_checkpoint
from cac_ext.train.config import Config, to_yaml
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.augment import CropPairAugment, LabelledAugment, collate_pairs
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.errors import CheckpointError, ConfigError
from cac_ext.train.evaluate import evaluate
from cac_ext.train.memory_bank import MemoryBank
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.optimizer import build_optimizer, set_learning_rate
from cac_ext.train.picture import save_panel
from cac_ext.train.run_log import RunLog
from cac_ext.train.step import TrainingModel, build_model, compute_losses


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    folder: Path
    network: SegmentationNetwork
    splits: DatasetSplits
    miou: float  # in [0, 1], of the last iteration
    class_iou: dict[str, float]


def train(
    config: Config,
    folder: Path,
    *,
    label: str = "train",
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Trains what the configuration says and writes everything into ``folder``.

    Args:
        config: the run.
        folder: of the run: config.yaml, checkpoint.pt, metrics.jsonl, tensorboard/, picture.png.
        label: stands in front of the progress bar.
        resume: go on from the folder's checkpoint, if there is one; otherwise a checkpoint there
            is an error, so that no run is overwritten.
        progress: progress bars on the terminal.
    """
    device = find_device(config.device)
    torch.manual_seed(config.seed)  # initial weights and dropout; all else is seeded by position

    # What is trained, on what.
    splits = build_datasets(config.data)
    checkpoint = folder / "checkpoint.pt"
    network = build_network(config.network, splits.num_classes, pretrained=not checkpoint.exists())
    model = build_model(config, network).to(device)
    optimizer = build_optimizer(config.optimizer, model)
    bank = MemoryBank(config.method.selected_num, config.method.step_save)

    # From the start, or from a checkpoint.
    folder.mkdir(parents=True, exist_ok=True)
    iteration, results = 0, {}
    if checkpoint.exists():
        if not resume:
            raise CheckpointError(
                f"{folder} already holds a run: take another folder, or go on with "
                f"`cac-ext resume {folder}`"
            )
        state = read_checkpoint(checkpoint)
        iteration, results = restore(state, checkpoint, config, model, optimizer, bank, device)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")

    # Batches, from this iteration on. SupOnly and the warm-up know no crop pairs.
    schedule = config.schedule
    first_pairs = config.iterations
    if config.method.unsupervised_weight > 0:
        first_pairs = schedule.warmup_epochs * schedule.iterations_per_epoch
    labelled_batches = iter(_labelled_loader(config, splits, device, iteration))
    if first_pairs < config.iterations:
        start = max(iteration, first_pairs)
        pair_batches = iter(_pair_loader(config, splits, network, device, start))

    if progress:
        print(_summary(config, splits, model, device, folder))
    model.train()
    with RunLog(folder, label, iteration, config.iterations, progress=progress) as log:
        while iteration < config.iterations:
            labelled = _to_device(next(labelled_batches), device)
            pairs = None
            if iteration >= first_pairs:
                pairs = _to_device(next(pair_batches), device)

            set_learning_rate(optimizer, config.optimizer, iteration, config.iterations)
            losses = compute_losses(
                config, model, bank, labelled, pairs, iteration, splits.ignore_index
            )
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            optimizer.step()
            iteration += 1

            log.step()
            if iteration % schedule.log_every == 0:
                images = schedule.labelled_batch + (schedule.unlabelled_batch if pairs else 0)
                log.train(iteration, losses.scalars(), images)
            if iteration % schedule.iterations_per_epoch == 0:
                epoch = iteration // schedule.iterations_per_epoch
                if epoch % schedule.evaluate_every == 0 or epoch == schedule.epochs:
                    evaluation = evaluate(
                        network,
                        splits.validation,
                        splits.num_classes,
                        splits.ignore_index,
                        num_workers=config.data.num_workers,
                        progress=progress,
                    )
                    class_iou = dict(zip(splits.class_names, evaluation.class_iou, strict=True))
                    results = {"miou": evaluation.miou, "class_iou": class_iou}
                    log.evaluation(iteration, **results)
                save_checkpoint(checkpoint, config, model, optimizer, bank, iteration, results)
    save_panel(folder / "picture.png", splits, {"prediction": network})
    return TrainResult(folder, network, splits, **results)


def find_device(name: str) -> torch.device:
    """The device of ``config.device``; "auto" is the first GPU, or the CPU where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device: {name!r} is no device: give auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name}, but there is no CUDA device here: use cpu or auto")
    return device


def _labelled_loader(
    config: Config, splits: DatasetSplits, device: torch.device, start: int
) -> DataLoader:
    augment = LabelledAugment(config.augment, splits.ignore_index)
    stream = Stream(splits.labelled, augment, config.seed, "labelled")
    sampler = IterationSampler(start, config.iterations, config.schedule.labelled_batch)
    return stream_loader(
        stream,
        sampler,
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
    )


def _pair_loader(
    config: Config,
    splits: DatasetSplits,
    network: SegmentationNetwork,
    device: torch.device,
    start: int,
) -> DataLoader:
    # In the paper's full-data setting the unlabelled branch takes the labelled images (4.1).
    images = splits.labelled if splits.unlabelled is None else splits.unlabelled
    sampler = CropPairSampler(
        config.augment.crop_size, network.pooled_grid, config.method.iou_range, config.augment.flip
    )
    stream = Stream(images, CropPairAugment(config.augment, sampler), config.seed, "unlabelled")
    batches = IterationSampler(start, config.iterations, config.schedule.unlabelled_batch)
    return stream_loader(
        stream,
        batches,
        num_workers=config.data.num_workers,
        collate=collate_pairs,
        pin_memory=device.type == "cuda",
    )


def _summary(
    config: Config,
    splits: DatasetSplits,
    model: TrainingModel,
    device: torch.device,
    folder: Path,
) -> str:
    """One line on what is about to be trained."""
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    unlabelled = "the labelled" if splits.unlabelled is None else len(splits.unlabelled)
    return (
        f"{config.data.name}: {splits.num_classes} classes, {len(splits.labelled)} labelled, "
        f"{unlabelled} unlabelled, {len(splits.validation)} validation images; "
        f"{config.network.name} network, {parameters / 1e6:.2f} M parameters, "
        f"{model.network.initial_weights}; "
        f"{config.iterations} iterations on {device}; writes to {folder}"
    )


def _to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}
