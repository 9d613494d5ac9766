"""The training loop, top to bottom: the order of this file is the order of a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from cac_ext.train.batch_streams import BatchStreams
from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.classes import save_classes
from cac_ext.train.errors import CheckpointError, NonFiniteError, ProcessError
from cac_ext.train.evaluate import evaluate
from cac_ext.train.figures.panels import save_panel
from cac_ext.train.inference import configured_inference
from cac_ext.train.methods import build_method, check_method
from cac_ext.train.methods.contract import Method, MethodContext, Phase
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.networks.normalization import Normalization
from cac_ext.train.preflight import require_batch_statistics, require_labels, warn_of_small_images
from cac_ext.train.pseudo_labels.folders import PseudoLabelFolders
from cac_ext.train.runs.checkpoint import (
    Best,
    TrainingState,
    read_checkpoint,
    restore,
    save_checkpoint,
    save_network,
)
from cac_ext.train.runs.environment import save_session
from cac_ext.train.runs.evaluation import VALIDATION_FILE, save_evaluation
from cac_ext.train.runs.folder import (
    BEST_FILE,
    CHECKPOINT_FILE,
    run_exists,
    start_from,
    write_config,
)
from cac_ext.train.runs.log import NoLog, RunLog, peak_memory
from cac_ext.train.runs.nonfinite import NonFiniteGuard
from cac_ext.train.runs.trackers import open_trackers
from cac_ext.train.runtime.distributed import (
    Processes,
    current,
    distribute,
    find_device,
    synchronize_batch_norm,
)
from cac_ext.train.runtime.seeding import derive_seed
from cac_ext.train.runtime.signals import StopRequest, TrainingStopped
from cac_ext.train.runtime.whole_files import naming
from cac_ext.train.step import take_step

T = TypeVar("T")


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: of the run.
        network: the evaluated one, as it is after the last iteration.
        splits: the data.
        best: the evaluation with the highest mIoU.
        miou: of the last evaluation, in [0, 1].
        class_iou: the same for each class; nan for an absent one.
    """

    folder: Path
    network: SegmentationNetwork
    splits: DatasetSplits
    best: Best | None
    miou: float
    class_iou: dict[str, float]


def train(
    config: Config,
    folder: Path,
    *,
    label: str = "train",
    resume: bool = False,
    extend: bool = False,
    progress: bool = True,
    build: Callable[[MethodContext], Method] | None = None,
) -> TrainResult:
    """Train the configured run and write everything into ``folder``.

    Args:
        config: the run.
        folder: receives config.yaml, classes.json, environment.json, checkpoint.pt, metrics.jsonl,
            validation.json, tensorboard/, picture.png.
        label: text in front of the progress bar.
        resume: continue from the checkpoint in the folder, if it holds one. Without ``resume`` a
            checkpoint there is an error, so that no run is overwritten.
        extend: when resuming, a run that has taken all its epochs may have more of them now.
        progress: show progress bars on the terminal.
        build: builds the method instead of ``config.method.name``.

    Within `distributed.process_group` all processes call it with the same arguments. Pseudo labels
    that are ``auto`` must be in the folder already; see `experiments/prepare.py`.

    Raises:
        UserError: a setting or a file cannot be used, or a step is not finite. If anything fails
            between two steps, e.g. a file cannot be read, the steps so far are saved.
        TrainingStopped: SIGTERM or Ctrl-C came. The step was finished and a checkpoint written.
        KeyboardInterrupt: a second Ctrl-C came, or one during the last step.
    """
    processes = current()
    progress = progress and processes.is_main
    device = find_device(config.device)
    if build is None:
        check_method(config)
    written = config  # keeps `auto`, which stays right if the folder is moved
    config = PseudoLabelFolders.of_run(folder).fill_in(config)
    torch.manual_seed(config.seed)  # initial weights and dropout; the rest is seeded by position

    # Data, network and method.
    splits = build_datasets(config.data)
    checkpoint = folder / CHECKPOINT_FILE
    has_checkpoint = processes.first(checkpoint.exists())
    if not has_checkpoint:
        require_labels(config, splits, processes=processes, progress=progress)
    trained = config.network.start_from
    pretrained = not has_checkpoint and trained is None
    network = build_network(
        config.network,
        splits.num_classes,
        pretrained=pretrained,
        normalization=Normalization.of(config.data),
    )
    if trained is not None and not has_checkpoint:
        start_from(network, Path(trained).expanduser())
    if processes.size == 1 and config.self_training.pseudo_labels is None:
        parts, key = config.schedule.accumulation, "schedule.labelled_batch"
        batch = max(1, config.schedule.labelled_batch // parts)
        key = key if parts == 1 else f"{key} / schedule.accumulation"
        require_batch_statistics(
            network, batch, config.augment.crop_size, key, config.data.channels
        )
    context = MethodContext(config, splits, network, processes, pretrained=not has_checkpoint)
    method = build_method(context, build)
    everything = {**method.trained, **method.kept}
    for module in everything.values():
        module.to(device)
        synchronize_batch_norm(module, processes, device)
        if config.run.channels_last:
            module.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # earlier runs of this process do not count
    optimizers = method.build_optimizers()
    use_scaler = config.run.precision == "fp16"
    scalers = {name: torch.amp.GradScaler(device.type, enabled=use_scaler) for name in optimizers}
    state = TrainingState(config, everything, optimizers, scalers, method)
    if processes.rank:  # each process has different dropout
        torch.manual_seed(derive_seed(config.seed, "process", processes.rank))

    # The start, or the checkpoint.
    if has_checkpoint:
        if not resume:
            raise run_exists(folder)
        saved = read_checkpoint(checkpoint)
        restore(saved, checkpoint, state, device, processes, extend=extend)
    if processes.is_main:
        write_config(folder, written)
        save_classes(folder, splits)
        if state.iteration < config.iterations:
            save_session(folder, state.iteration, device, processes.size)

    schedule = config.schedule
    requests = method.streams()
    streams = BatchStreams(requests, config, device, state.iteration, processes)
    if processes.is_main and not has_checkpoint and "crop_pairs" in requests:
        warn_of_small_images(config, splits, network.pooled_grid)
    if progress:
        print(_summary(config, splits, network, device, folder, processes))
    for module in method.trained.values():
        module.train()
        if config.run.compile:
            module.compile()
    modules = {
        name: distribute(module, processes, device) for name, module in method.trained.items()
    }
    guard = NonFiniteGuard(config.run, folder, everything, processes, late=device.type == "cuda")
    log: RunLog | NoLog = NoLog()
    if processes.is_main:
        log = RunLog(
            folder,
            label,
            state.iteration,
            config.iterations,
            progress=progress,
            trackers=open_trackers(config.run.trackers, folder, config),
        )

    inference = configured_inference(config)

    def evaluate_now() -> None:
        evaluation = evaluate(
            method.evaluated,
            splits.validation,
            splits.num_classes,
            splits.ignore_index,
            num_workers=config.data.num_workers,
            progress=progress,
            processes=processes,
            inference=inference,
        )
        class_iou = dict(zip(splits.class_names, evaluation.class_iou, strict=True))
        state.results = {"miou": evaluation.miou, "class_iou": class_iou}
        state.evaluated_at = state.iteration
        state.best = Best.after(state.best, state.iteration, evaluation.miou)
        log.evaluation(state.iteration, **state.results)
        if processes.is_main:
            path = folder / VALIDATION_FILE
            save_evaluation(path, evaluation, splits, state.iteration, inference)
        log.pictures(state.iteration, splits, method.evaluated, inference, method.pictures)

    def save() -> None:
        # The best network first: a run that is killed in between comes here again.
        is_best = state.best is not None and state.best.iteration == state.iteration
        if config.run.keep_best and is_best and processes.is_main:
            save_network(folder / BEST_FILE, state, method.evaluated)
        save_checkpoint(checkpoint, state, method.evaluated, processes)

    def together(work: Callable[[], T]) -> T:
        """Run ``work`` between two steps. If it fails in any process, the steps taken are saved."""
        try:
            result = work()
            failure: Exception | None = None
        except NonFiniteError:  # the weights are not worth saving
            raise
        except Exception as error:  # a file, a worker, a disk: anything may fail after days
            failure = error
        if processes.any(failure is not None):
            with suppress(CheckpointError):  # the failure itself is the news
                save()
            raise failure or ProcessError("another process has failed; its own message says why")
        return result

    with StopRequest() as stop, log:
        if _evaluation_is_due(state):  # it failed before the run was interrupted
            together(evaluate_now)
            save()
        while state.iteration < config.iterations and not _stops_early(state):
            batches = together(partial(streams.next, state.iteration))
            phases = take_step(method, state, batches, modules, guard, device)

            log.step()
            if state.iteration % schedule.log_every == 0 and phases:
                scalars = processes.mean_scalars(_scalars(phases))
                scalars["memory_mib"] = peak_memory(device)
                together(partial(log.train, state.iteration, scalars, streams.images(batches)))
            ends_epoch = state.iteration % schedule.iterations_per_epoch == 0
            stopping = processes.any(stop.requested) and state.iteration < config.iterations
            if ends_epoch or stopping:
                guard.settle()
            if _evaluation_is_due(state):
                together(evaluate_now)
            if ends_epoch or stopping:
                save()
            if stopping:
                raise TrainingStopped(
                    f"stopped after iteration {state.iteration} of {config.iterations}"
                )
    if progress and state.iteration < config.iterations and state.best is not None:
        print(
            f"stopped early, after iteration {state.iteration} of {config.iterations}: no better "
            f"mIoU in {state.best.worse_since} evaluations (schedule.patience)"
        )
    if processes.is_main:
        picture = folder / "picture.png"
        with naming(picture):
            save_panel(picture, splits, {"prediction": method.evaluated}, inference=inference)
    processes.any(False)  # every process waits until the picture is written
    return TrainResult(folder, method.evaluated, splits, state.best, **state.results)


def _evaluation_is_due(state: TrainingState) -> bool:
    """Whether the current iteration ends an epoch that must still be evaluated."""
    schedule = state.config.schedule
    epoch, rest = divmod(state.iteration, schedule.iterations_per_epoch)
    due = epoch > 0 and (epoch % schedule.evaluate_every == 0 or epoch == schedule.epochs)
    return due and rest == 0 and state.evaluated_at != state.iteration


def _stops_early(state: TrainingState) -> bool:
    """Whether the last ``schedule.patience`` evaluations were no better than one before them."""
    patience, best = state.config.schedule.patience, state.best
    return patience is not None and best is not None and best.worse_since >= patience


def _scalars(phases: list[Phase]) -> dict[str, float]:
    """The scalars of a step's phases for the log; ``loss`` is the total of the first."""
    values = {"loss": phases[0].total.item()}
    for phase in phases:
        values |= phase.scalars()
    return values


def _summary(
    config: Config,
    splits: DatasetSplits,
    network: SegmentationNetwork,
    device: torch.device,
    folder: Path,
    processes: Processes,
) -> str:
    """One line that describes the run before it starts."""
    together = f" and {processes.size - 1} more" if processes.size > 1 else ""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    unlabelled = "the labelled" if splits.unlabelled is None else len(splits.unlabelled)
    return (
        f"{config.data.name}: {splits.num_classes} classes, {len(splits.labelled)} labelled, "
        f"{unlabelled} unlabelled, {len(splits.validation)} validation images; "
        f"{config.network.name} network, {parameters / 1e6:.2f} M parameters, "
        f"{network.initial_weights}; "
        f"{config.iterations} iterations on {device}{together}; writes to {folder}"
    )
