"""Pseudo labels from class activation maps (paper section 3.5, [62]; recipe of CCT, its [41])."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits, Sample
from cac_ext.train.data.augment import normalize
from cac_ext.train.data.pseudo_label_files import PseudoLabelReport, write_pseudo_labels
from cac_ext.train.data.rescale import resize
from cac_ext.train.networks.layers import upsample
from cac_ext.train.networks.weights import weights_digest
from cac_ext.train.pseudo_labels.image_classifier import ImageClassifier
from cac_ext.train.pseudo_labels.image_labels import foreground_classes, read_image_labels
from cac_ext.train.runtime.distributed import ALONE, Processes


@torch.no_grad()
def class_activation_maps(
    classifier: ImageClassifier, image: Tensor, scales: list[float]
) -> Tensor:
    """Class activations of an image, summed over scales and mirroring, scaled to maximum 1.

    Args:
        classifier: in evaluation mode.
        image: ``[C, H, W]`` uint8.
        scales: factors of the image size.

    Returns:
        ``[K - 1, H, W]`` in [0, 1].
    """
    device = next(classifier.parameters()).device
    height, width = image.shape[-2:]
    total = torch.zeros(())
    for scale in scales:
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        resized = resize(image, *size).to(device)
        scaled = normalize(resized, classifier.normalization)[None]  # [1, C, h, w]
        both = torch.cat([scaled, scaled.flip(-1)])
        maps = upsample(classifier.activations(both).relu(), classifier.stride, 0, both.shape[-2:])
        maps = F.interpolate(
            torch.stack([maps[0], maps[1].flip(-1)]),
            (height, width),
            mode="bilinear",
            align_corners=False,
        )
        total = total + maps.sum(dim=0)  # [K - 1, H, W]
    return total / total.amax(dim=(1, 2), keepdim=True).clamp(min=1e-5)


def labels_of_maps(
    maps: Tensor,
    classes: Tensor,
    class_ids: Sequence[int],
    foreground: float,
    background: float,
    background_class: int,
    ignore_index: int,
) -> Tensor:
    """Activation maps -> class ids ``[H, W]``.

    Args:
        maps: ``[K - 1, H, W]`` in [0, 1].
        classes: ``[K - 1]`` 0 or 1, the image-level label; maps of the classes with 0 are not used.
        class_ids: of the K - 1 maps.
        foreground: a pixel whose largest activation is above this gets the class of that map.
        background: a pixel whose activations are all below this becomes background.
        background_class: id of the background.
        ignore_index: id of all other pixels.
    """
    strength, strongest = (maps * classes.to(maps)[:, None, None]).max(dim=0)  # [H, W]
    labels = torch.full_like(strongest, ignore_index)
    labels[strength < background] = background_class
    ids = torch.tensor(class_ids, device=maps.device)
    return torch.where(strength > foreground, ids[strongest], labels)


def write_cam_labels(
    config: Config,
    classifier: ImageClassifier,
    splits: DatasetSplits,
    folder: Path,
    *,
    processes: Processes = ALONE,
    progress: bool = True,
) -> PseudoLabelReport:
    """Writes the classifier's labels of the unlabelled images (`data/pseudo_label_files.py`)."""
    options = config.image_classifier
    class_ids = foreground_classes(splits, config.data)
    background_class = splits.background_class
    assert background_class is not None  # as `foreground_classes` makes sure

    @cache  # not read if all masks exist
    def classes() -> Tensor:
        return read_image_labels(config.weak, config.data, splits, progress=progress)  # [M, K - 1]

    def label(index: int, sample: Sample) -> Tensor:
        return labels_of_maps(
            class_activation_maps(classifier, sample["image"], options.scales),
            classes()[index],
            class_ids,
            options.foreground,
            options.background,
            background_class,
            splits.ignore_index,
        )

    return write_pseudo_labels(
        splits,
        label,
        folder,
        "activation maps",
        made_by={
            "classifier": weights_digest(classifier),
            "scales": list(options.scales),
            "foreground": options.foreground,
            "background": options.background,
        },
        processes=processes,
        progress=progress,
    )
