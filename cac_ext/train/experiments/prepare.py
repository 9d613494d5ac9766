"""Pseudo labels that a run needs before it starts, made if its configuration says ``auto``."""

from __future__ import annotations

from pathlib import Path

from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.pseudo_label_files import (
    PseudoLabelReport,
    unlabelled_images,
    warn_of_no_labels,
)
from cac_ext.train.loop import TrainResult, train
from cac_ext.train.methods import check_method
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.preflight import require_labels
from cac_ext.train.pseudo_labels.activation_maps import write_cam_labels
from cac_ext.train.pseudo_labels.folders import AUTO, PseudoLabelFolders
from cac_ext.train.pseudo_labels.image_classifier import (
    SUP_ONLY,
    ImageClassifier,
    load_classifier,
    require_classifier_batch,
    train_classifier,
)
from cac_ext.train.pseudo_labels.image_labels import check_image_labels
from cac_ext.train.pseudo_labels.self_training import teacher_config, write_teacher_labels
from cac_ext.train.runs.folder import CHECKPOINT_FILE, run_exists, write_config
from cac_ext.train.runtime.distributed import current, find_device


def prepare_run(config: Config, folder: Path, *, resume: bool, progress: bool = True) -> None:
    """`prepare` inside the folder of a single run, if it needs pseudo labels.

    config.yaml is written first, so that `cac-ext resume` can continue from any point.

    Raises:
        CheckpointError: the folder holds a run, and ``resume`` is not set.
    """
    if not _wanted(config):
        return
    processes = current()
    if resume and processes.first(_is_prepared(config, folder)):
        return
    _check(config)

    def begin() -> None:
        if not processes.is_main:
            return
        if not resume and (folder / CHECKPOINT_FILE).exists():
            raise run_exists(folder)
        write_config(folder, config)

    processes.together(begin)
    prepare(config, PseudoLabelFolders.of_run(folder), progress=progress)


def prepare(
    config: Config, folders: PseudoLabelFolders, *, label: str = "", progress: bool = True
) -> Config:
    """Makes the pseudo labels; returns the configuration with folders in place of ``auto``.

    Finished parts are kept, interrupted ones resume. Within `distributed.process_group` all
    processes call this: all of them train the teacher, rank 0 trains the image classifier, and all
    share in labelling the images.

    Raises:
        UserError: a setting or a file cannot be used.
        TrainingStopped: SIGTERM or Ctrl-C came; the work so far is kept.
    """
    if not _wanted(config):
        return config
    _check(config)
    processes = current()
    progress = progress and processes.is_main
    if config.self_training.pseudo_labels == AUTO:
        teacher = train_teacher(config, folders.teacher, label=label, progress=progress)
        label_by_teacher(
            config, teacher.network, teacher.splits, folders.teacher_labels, progress=progress
        )
    if config.weak.pseudo_labels == AUTO:
        if not processes.first((folders.classifier / "classifier.pt").exists()):
            require_labels(config, processes=processes, progress=progress)
        classifier = prepare_classifier(
            config, folders.classifier, folders.teacher, label=label, progress=progress
        )
        splits = build_datasets(config.data)
        label_by_classifier(
            config, classifier, splits, folders.activation_labels, progress=progress
        )
    return folders.fill_in(config)


def train_teacher(
    config: Config, folder: Path, *, label: str = "", progress: bool = True
) -> TrainResult:
    """The supervised run of the same data and seed, trained into ``folder`` or read from it."""
    label = f"{label} teacher".strip()
    return train(teacher_config(config), folder, label=label, resume=True, progress=progress)


def prepare_classifier(
    config: Config, folder: Path, teacher: Path, *, label: str = "", progress: bool = True
) -> ImageClassifier:
    """The image classifier, trained into ``folder`` by rank 0 or read; all processes call this.

    ``teacher`` is the folder of the supervised run from which ``image_classifier.weights=sup_only``
    starts.
    """
    processes = current()
    progress = progress and processes.is_main
    device = find_device(config.device)
    check_image_labels(config.weak, config.data, build_datasets(config.data))
    if config.image_classifier.weights == SUP_ONLY:
        train_teacher(config, teacher, label=label, progress=progress)

    def train_it() -> None:
        if processes.is_main:
            train_classifier(
                config,
                folder,
                device,
                sup_only=teacher,
                label=f"{label} image classifier".strip(),
                progress=progress,
            )

    processes.together(train_it)
    return load_classifier(config, build_datasets(config.data).num_classes, folder, device)


def label_by_teacher(
    config: Config,
    network: SegmentationNetwork,
    splits: DatasetSplits,
    folder: Path,
    *,
    progress: bool = True,
) -> None:
    """Writes the teacher's masks into ``folder`` and prints how much they label and how well."""
    processes = current()
    progress = progress and processes.is_main
    report = write_teacher_labels(
        config, network, splits, folder, processes=processes, progress=progress
    )
    _report(folder, report, "lower self_training.confidence_threshold", progress=progress)


def label_by_classifier(
    config: Config,
    classifier: ImageClassifier,
    splits: DatasetSplits,
    folder: Path,
    *,
    progress: bool = True,
) -> None:
    """Writes masks of activation maps into ``folder``; prints how much they label and how well."""
    processes = current()
    progress = progress and processes.is_main
    report = write_cam_labels(
        config, classifier, splits, folder, processes=processes, progress=progress
    )
    _report(folder, report, "lower image_classifier.foreground", progress=progress)


def _report(folder: Path, report: PseudoLabelReport, advice: str, *, progress: bool) -> None:
    """Prints how much the masks in ``folder`` label; warns, with advice, if that is nothing."""
    if progress:
        print(f"{folder}: {report}")
    if current().is_main:
        warn_of_no_labels(report, advice)


def _wanted(config: Config) -> bool:
    return AUTO in (config.self_training.pseudo_labels, config.weak.pseudo_labels)


def _is_prepared(config: Config, folder: Path) -> bool:
    """Whether the run has begun to train with labels that are still there.

    They then are as they were, also if the run itself has been given more epochs.
    """
    filled = PseudoLabelFolders.of_run(folder).fill_in(config)
    parts = (config.self_training, filled.self_training), (config.weak, filled.weak)
    made = [Path(str(after.pseudo_labels)) for before, after in parts if before != after]
    return (folder / CHECKPOINT_FILE).exists() and all(labels.is_dir() for labels in made)


def _check(config: Config) -> None:
    """Finds faults of the build and of image-level labels before the training, not hours later."""
    check_method(config)
    splits = build_datasets(config.data)
    if config.self_training.pseudo_labels == AUTO:
        unlabelled_images(splits, "self_training.pseudo_labels")
    if config.weak.pseudo_labels == AUTO:
        check_image_labels(config.weak, config.data, splits)
        require_classifier_batch(config, splits.num_classes)
