"""Self-training ("ST" of the paper's Table 3, after its [64]): a student learns a teacher's labels.

The teacher is a network trained with the supervised loss alone. It labels the unlabelled images
once, except pixels of which it is unsure. The student starts from scratch. Each of its steps sees a
labelled batch and a batch of pseudo-labelled images (``schedule.unlabelled_batch``) with the same
augmentation, and computes one cross entropy over the pixels of both.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits, Sample
from cac_ext.train.data.pseudo_label_files import PseudoLabelReport, write_pseudo_labels
from cac_ext.train.inference import predict_logits
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.weights import weights_digest
from cac_ext.train.runtime.distributed import ALONE, Processes


def teacher_config(config: Config) -> Config:
    """The configuration of the teacher: `sup_only` with the student's data, network and seed.

    Without its consistency loss, `cac` is that; other methods have no such switch.
    """
    method = replace(config.method, unsupervised_weight=0.0)
    if method.name not in ("cac", "sup_only"):
        method = replace(method, name="cac", options={})
    return replace(
        config,
        method=method,
        self_training=replace(config.self_training, pseudo_labels=None),
        weak=replace(config.weak, pseudo_labels=None),
    )


def write_teacher_labels(
    config: Config,
    teacher: SegmentationNetwork,
    splits: DatasetSplits,
    folder: Path,
    *,
    processes: Processes = ALONE,
    progress: bool = True,
) -> PseudoLabelReport:
    """Writes the teacher's labels of the unlabelled images (`data/pseudo_label_files.py`).

    Pixels get no label if their largest class probability is at most
    ``self_training.confidence_threshold``.
    """
    confidence_threshold = config.self_training.confidence_threshold

    def label(index: int, sample: Sample) -> Tensor:
        probabilities = predict_logits(teacher, sample["image"]).softmax(dim=1)  # [1, K, H, W]
        confidences, mask = probabilities.max(dim=1)
        return torch.where(confidences > confidence_threshold, mask, splits.ignore_index)[0]

    was_training = teacher.training
    teacher.eval()
    report = write_pseudo_labels(
        splits,
        label,
        folder,
        "teacher's labels",
        made_by={
            "teacher": weights_digest(teacher),
            "confidence_threshold": confidence_threshold,
        },
        processes=processes,
        progress=progress,
    )
    teacher.train(was_training)
    return report
