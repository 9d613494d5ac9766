"""What limits a trained network: its steps, its labels, or its confidence on unlabelled images?

A network that does not know its own labelled images much better than new ones has taken too few
steps: unlabelled images cannot show their value yet. One that does lacks labels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.trainings.records import CONFIDENCES, Limits
from cac_ext.train.data import build_datasets
from cac_ext.train.data.contract import known_mask
from cac_ext.train.evaluate import evaluate
from cac_ext.train.inference import class_probabilities, configured_inference
from cac_ext.train.runs.folder import load_run
from cac_ext.train.runtime.progress import Progress


def find_limits(folder: Path) -> Limits:
    """Measures the last network of a run on its labelled and unlabelled images.

    Args:
        folder: of a finished run whose data set knows the masks of its unlabelled images.
    """
    run = load_run(folder)
    splits = build_datasets(run.config.data)
    if splits.unlabelled is None:
        raise ValueError(f"the data of {folder} has no unlabelled images")
    inference = configured_inference(run.config)
    labelled = evaluate(
        run.network, splits.labelled, splits.num_classes, splits.ignore_index, inference=inference
    )
    pixels = torch.zeros(len(CONFIDENCES), dtype=torch.int64)  # [confidence]
    hits = torch.zeros_like(pixels)
    bounds = torch.tensor(CONFIDENCES[1:])
    run.network.eval()
    images = splits.unlabelled
    for index in Progress(range(len(images)), f"limits of {folder.name}", unit="image"):
        mask = known_mask(images, index)  # [H, W]
        if mask is None:
            continue
        with torch.no_grad():
            found = class_probabilities(run.network, images[index]["image"], inference).float()
        confidences, classes = (x.cpu() for x in found.max(0))  # [H, W]
        interval = torch.bucketize(confidences, bounds, right=True)
        counted = (mask >= 0) & (mask != splits.ignore_index)
        pixels += _histogram(interval[counted])
        hits += _histogram(interval[counted & (classes == mask)])
    shares = pixels.double() / pixels.sum()
    return {
        "labelled_miou": labelled.miou,
        "confident": shares.tolist(),
        "correct": [
            h / n if n else None for h, n in zip(hits.tolist(), pixels.tolist(), strict=True)
        ],
    }


def _histogram(interval: Tensor) -> Tensor:
    return torch.bincount(interval, minlength=len(CONFIDENCES))
