"""Pseudo labels that a run needs before it can start, made where it asks for ``auto``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cac_ext.train.config import Config
from cac_ext.train.data import build_datasets
from cac_ext.train.data.pseudo_label_files import AUTO
from cac_ext.train.distributed import current, find_device
from cac_ext.train.errors import ConfigError
from cac_ext.train.loop import train
from cac_ext.train.self_training import teacher_config, write_teacher_labels
from cac_ext.train.weak.cam import write_cam_labels
from cac_ext.train.weak.classifier import train_classifier


def prepare(config: Config, folder: Path, *, label: str = "", progress: bool = True) -> Config:
    """The configuration with folders in place of ``auto``, and the pseudo labels in these folders.

    Several runs of one seed in one ``folder`` share what they need: the teacher is the run
    ``sup_only-seedN``, the image classifier lies in ``classifier-seedN``. What is there already is
    kept, what was interrupted goes on.

    Raises:
        ConfigError: pseudo labels are to be made by several processes.
    """
    wanted = [
        key
        for key, value in (
            ("self_training.pseudo_labels", config.self_training.pseudo_labels),
            ("weak.pseudo_labels", config.weak.pseudo_labels),
        )
        if value == AUTO
    ]
    if wanted and current().size > 1:
        raise ConfigError(
            f"{wanted[0]}: pseudo labels are made by one process: run the command once without "
            "torchrun, or give the folder that `cac-ext weak make-labels` or "
            "`cac-ext self-training make-labels` wrote"
        )
    if "self_training.pseudo_labels" in wanted:
        masks = folder / f"teacher-labels-seed{config.seed}"
        run_folder = folder / f"sup_only-seed{config.seed}"
        teacher = train(
            teacher_config(config),
            run_folder,
            label=f"{label} teacher",
            resume=True,
            progress=progress,
        )
        report = write_teacher_labels(
            teacher.network,
            teacher.splits,
            config.self_training.confidence_threshold,
            masks,
            progress=progress,
        )
        if progress:
            print(f"{masks}: {report}")
        section = replace(config.self_training, pseudo_labels=str(masks))
        config = replace(config, self_training=section)
    if "weak.pseudo_labels" in wanted:
        masks = folder / f"activation-labels-seed{config.seed}"
        classifier = train_classifier(
            config,
            folder / f"classifier-seed{config.seed}",
            find_device(config.device),
            label=f"{label} image classifier",
            progress=progress,
        )
        splits = build_datasets(config.data)
        report = write_cam_labels(config, classifier, splits, masks, progress=progress)
        if progress:
            print(f"{masks}: {report}")
        config = replace(config, weak=replace(config.weak, pseudo_labels=str(masks)))
    return config
