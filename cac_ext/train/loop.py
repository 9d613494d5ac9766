"""The training loop, top to bottom: what happens in a run, in the order in which it happens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cac_ext.train.checkpoint import read_checkpoint, restore, save_checkpoint
from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.augment import CropPairAugment, LabelledAugment, collate_pairs
from cac_ext.train.data.classes import save_classes
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.data.truth import WithTruth
from cac_ext.train.distributed import (
    Processes,
    current,
    distribute,
    find_device,
    synchronise_batch_norm,
)
from cac_ext.train.evaluate import evaluate
from cac_ext.train.files import naming
from cac_ext.train.loss_check import require_fused_loss
from cac_ext.train.memory_bank import MemoryBank
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.nonfinite import NonFiniteGuard, gradients_are_finite, step_scaled
from cac_ext.train.optimizer import build_optimizer, set_learning_rate
from cac_ext.train.picture import save_panel
from cac_ext.train.precision import autocast
from cac_ext.train.preflight import require_batch_statistics, require_labels, warn_of_small_images
from cac_ext.train.pseudo_label_folders import PseudoLabelFolders
from cac_ext.train.run_folder import run_exists, write_config
from cac_ext.train.run_log import NoLog, RunLog, peak_memory
from cac_ext.train.seeding import derive_seed
from cac_ext.train.self_training import concatenate
from cac_ext.train.signals import StopRequest, TrainingStopped
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

    Within `distributed.process_group` all processes call it, with the same arguments. Pseudo labels
    that are ``auto`` must be in the folder already, see `prepare.py`.

    Raises:
        UserError: something given cannot be used; a step is not finite.
        TrainingStopped: SIGTERM or Ctrl-C came; the step was finished and a checkpoint written.
        KeyboardInterrupt: a second Ctrl-C came, or one in the last step.
    """
    processes = current()
    progress = progress and processes.is_main
    device = find_device(config.device)
    require_fused_loss(config)
    written = config  # with `auto`, which is right wherever the folder is moved to
    config = PseudoLabelFolders.of_run(folder).fill_in(config)
    torch.manual_seed(config.seed)  # initial weights and dropout; all else is seeded by position

    # What is trained, on what.
    splits = build_datasets(config.data)
    checkpoint = folder / "checkpoint.pt"
    has_checkpoint = processes.first(checkpoint.exists())
    if not has_checkpoint:
        require_labels(config, splits, processes=processes, progress=progress)
    network = build_network(config.network, splits.num_classes, pretrained=not has_checkpoint)
    if processes.size == 1 and config.self_training.pseudo_labels is None:
        batch, crop_size = config.schedule.labelled_batch, config.augment.crop_size
        require_batch_statistics(network, batch, crop_size, "schedule.labelled_batch")
    model = build_model(config, network).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # earlier runs of this process do not count
    synchronise_batch_norm(model, processes, device)
    if config.run.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16")
    bank = _build_bank(config, processes)
    if processes.rank:  # other dropout in each process
        torch.manual_seed(derive_seed(config.seed, "process", processes.rank))

    # From the start, or from a checkpoint.
    iteration, results = 0, {}
    if has_checkpoint:
        if not resume:
            raise run_exists(folder)
        state = read_checkpoint(checkpoint)
        iteration, results = restore(
            state, checkpoint, config, model, optimizer, scaler, bank, device, processes
        )
    if processes.is_main:
        write_config(folder, written)
        save_classes(folder, splits)

    # Batches, from this iteration on. SupOnly and the warm-up know no crop pairs.
    schedule = config.schedule
    first_pairs = config.iterations
    if config.method.unsupervised_weight > 0 or config.weak.pseudo_labels:
        first_pairs = schedule.warmup_epochs * schedule.iterations_per_epoch
        if first_pairs >= config.iterations and processes.is_main:
            warnings.warn(
                f"all of the run is warm-up (schedule.warmup_epochs is {schedule.warmup_epochs}, "
                f"schedule.epochs {schedule.epochs}): it trains the supervised loss alone and "
                "never looks at a crop pair. Set schedule.warmup_epochs below schedule.epochs, "
                "e.g. to 0, or method.unsupervised_weight=0 where that is meant",
                stacklevel=2,
            )
    labelled_batches = _labelled_batches(config, splits, device, iteration, processes)
    if first_pairs < config.iterations:
        start = max(iteration, first_pairs)
        pair_batches = iter(_pair_loader(config, splits, network, device, start, processes))
        if processes.is_main and not has_checkpoint:
            warn_of_small_images(config, splits, network.pooled_grid)

    if progress:
        print(_summary(config, splits, model, device, folder, processes))
    model.train()
    if config.run.compile:
        model.compile()
    trained = distribute(model, processes, device)
    guard = NonFiniteGuard(config.run, folder, model, processes)
    log = NoLog()
    if processes.is_main:
        log = RunLog(folder, label, iteration, config.iterations, progress=progress)
    with StopRequest() as stop, log:
        while iteration < config.iterations:
            labelled = _to_device(next(labelled_batches), device, config.run.channels_last)
            pairs = None
            if iteration >= first_pairs:
                pairs = _to_device(next(pair_batches), device, config.run.channels_last)

            set_learning_rate(optimizer, config.optimizer, iteration, config.iterations)
            guard.before()
            with autocast(config.run, device):
                losses = compute_losses(
                    config,
                    trained,
                    bank,
                    labelled,
                    pairs,
                    iteration,
                    splits.ignore_index,
                    processes,
                )
            optimizer.zero_grad(set_to_none=True)
            finite = losses.finite
            if finite:
                scaler.scale(losses.total).backward()
                if scaler.is_enabled():
                    finite = step_scaled(scaler, optimizer)
                else:
                    finite = gradients_are_finite(model)
                    if finite:
                        optimizer.step()
            if finite:
                guard.passed()
            else:
                guard.failed(iteration, labelled, pairs)
            iteration += 1

            log.step()
            if iteration % schedule.log_every == 0 and losses.finite:
                both = pairs or config.self_training.pseudo_labels
                images = schedule.labelled_batch + (schedule.unlabelled_batch if both else 0)
                scalars = processes.mean_scalars(losses.scalars())
                log.train(iteration, {**scalars, "memory_mib": peak_memory(device)}, images)
            ends_epoch = iteration % schedule.iterations_per_epoch == 0
            if ends_epoch:
                epoch = iteration // schedule.iterations_per_epoch
                if epoch % schedule.evaluate_every == 0 or epoch == schedule.epochs:
                    evaluation = evaluate(
                        network,
                        splits.validation,
                        splits.num_classes,
                        splits.ignore_index,
                        num_workers=config.data.num_workers,
                        progress=progress,
                        processes=processes,
                    )
                    class_iou = dict(zip(splits.class_names, evaluation.class_iou, strict=True))
                    results = {"miou": evaluation.miou, "class_iou": class_iou}
                    log.evaluation(iteration, **results)
                    log.pictures(iteration, splits, network, pairs, losses)
            stopping = processes.any(stop.requested) and iteration < config.iterations
            if ends_epoch or stopping:
                save_checkpoint(
                    checkpoint,
                    config,
                    model,
                    optimizer,
                    scaler,
                    bank,
                    iteration,
                    results,
                    processes,
                )
            if stopping:
                raise TrainingStopped(f"stopped after iteration {iteration} of {config.iterations}")
    if processes.is_main:
        picture = folder / "picture.png"
        with naming(picture):
            save_panel(picture, splits, {"prediction": network})
    processes.any(False)  # nobody leaves before the picture is there
    return TrainResult(folder, network, splits, **results)


def _build_bank(config: Config, processes: Processes) -> MemoryBank:
    """The bank of this process, which selects its share, rounded up, of ``selected_num``."""
    selected_num = config.method.selected_num
    if selected_num is not None:
        selected_num = -(-selected_num // processes.size)
    return MemoryBank(selected_num, config.method.step_save)


def _labelled_batches(
    config: Config,
    splits: DatasetSplits,
    device: torch.device,
    start: int,
    processes: Processes,
) -> Iterator[dict[str, Tensor]]:
    """Batches of images with masks; with self-training, those with a teacher's masks are added."""
    augment = LabelledAugment(config.augment, splits.ignore_index)

    def batches(images: Dataset, part: str, batch: int) -> Iterator[dict[str, Tensor]]:
        processes.share(batch, f"schedule.{part}_batch")
        sampler = IterationSampler(start, config.iterations, batch, processes.rank, processes.size)
        loader = stream_loader(
            Stream(images, augment, config.seed, part),
            sampler,
            num_workers=config.data.num_workers,
            pin_memory=device.type == "cuda",
        )
        return iter(loader)

    labelled = batches(splits.labelled, "labelled", config.schedule.labelled_batch)
    folder = config.self_training.pseudo_labels
    if folder is None:
        return labelled
    images = pseudo_labelled(splits, folder, "self_training.pseudo_labels")
    return map(
        concatenate, labelled, batches(images, "unlabelled", config.schedule.unlabelled_batch)
    )


def _pair_loader(
    config: Config,
    splits: DatasetSplits,
    network: SegmentationNetwork,
    device: torch.device,
    start: int,
    processes: Processes,
) -> DataLoader:
    # In the paper's full-data setting the unlabelled branch takes the labelled images (4.1).
    images = splits.labelled if splits.unlabelled is None else splits.unlabelled
    ignore_index = None
    if config.weak.pseudo_labels:
        images = pseudo_labelled(splits, config.weak.pseudo_labels, "weak.pseudo_labels")
        ignore_index = splits.ignore_index
    if config.run.negative_precision and config.method.loss == "contrastive":
        images = WithTruth(images, splits, "run.negative_precision")
    sampler = CropPairSampler(
        config.augment.crop_size, network.pooled_grid, config.method.iou_range, config.augment.flip
    )
    augment = CropPairAugment(config.augment, sampler, ignore_index)
    stream = Stream(images, augment, config.seed, "unlabelled")
    batch = config.schedule.unlabelled_batch
    processes.share(batch, "schedule.unlabelled_batch")
    batches = IterationSampler(start, config.iterations, batch, processes.rank, processes.size)
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
    processes: Processes,
) -> str:
    """One line on what is about to be trained."""
    together = f" and {processes.size - 1} more" if processes.size > 1 else ""
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    unlabelled = "the labelled" if splits.unlabelled is None else len(splits.unlabelled)
    return (
        f"{config.data.name}: {splits.num_classes} classes, {len(splits.labelled)} labelled, "
        f"{unlabelled} unlabelled, {len(splits.validation)} validation images; "
        f"{config.network.name} network, {parameters / 1e6:.2f} M parameters, "
        f"{model.network.initial_weights}; "
        f"{config.iterations} iterations on {device}{together}; writes to {folder}"
    )


def _to_device(
    batch: dict[str, Tensor], device: torch.device, channels_last: bool
) -> dict[str, Tensor]:
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
    if channels_last:
        images = {key: value for key, value in moved.items() if value.ndim == 4}
        moved |= {k: v.contiguous(memory_format=torch.channels_last) for k, v in images.items()}
    return moved
