"""Evaluation: mean intersection over union at the original size of the images, each image once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from cac_ext.train.data import SegmentationDataset
from cac_ext.train.data.stream import SampleLoader
from cac_ext.train.errors import DataError, ProcessError, listed
from cac_ext.train.inference import SINGLE_SCALE, Inference, predict, smallest_dtype
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runtime.bands import bands
from cac_ext.train.runtime.distributed import ALONE, Processes
from cac_ext.train.runtime.progress import Progress
from cac_ext.train.runtime.signals import leave_signals_to_the_main_process


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a validation set."""

    confusion: Tensor  # [K, K] int64 pixels: true class, predicted class

    @property
    def class_iou(self) -> list[float]:
        """Intersection over union of each class; nan for an absent class."""
        intersection = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        return (intersection / union).tolist()

    @property
    def absent_classes(self) -> list[int]:
        """Ids of the classes that neither occur nor are predicted: the mIoU leaves them out."""
        present = (self.confusion.sum(0) + self.confusion.sum(1)) > 0
        return (~present).nonzero().flatten().tolist()

    @property
    def class_accuracy(self) -> list[float]:
        """Share of a class's pixels that are predicted as this class; nan without such pixels."""
        return (self.confusion.diagonal().double() / self.confusion.sum(1)).tolist()

    @property
    def class_precision(self) -> list[float]:
        """Share of the pixels predicted as a class that belong to it; nan without such pixels."""
        return (self.confusion.diagonal().double() / self.confusion.sum(0)).tolist()

    @property
    def pixel_accuracy(self) -> float:
        """Share of the counted pixels that are predicted correctly, in [0, 1]."""
        return (self.confusion.diagonal().sum().double() / self.confusion.sum()).item()

    @property
    def miou(self) -> float:
        """Mean IoU over all but the `absent_classes`, in [0, 1], unrounded."""
        return torch.tensor(self.class_iou, dtype=torch.float64).nanmean().item()


def absent_names(class_iou: Mapping[str, float | None]) -> list[str]:
    """Names of the classes whose IoU is nan, or None (in JSON)."""
    return [name for name, iou in class_iou.items() if iou is None or math.isnan(iou)]


def absence_note(class_iou: Mapping[str, float | None]) -> str:
    """The note beside an mIoU that leaves out absent classes; empty if it covers all classes.

    ``class_iou`` is the IoU of each class by name, nan or None for an absent class.
    """
    absent = absent_names(class_iou)
    if not absent:
        return ""
    return (
        f"mean of {len(class_iou) - len(absent)} of {len(class_iou)} classes, without "
        f"{listed(absent)}: not in the images, not predicted"
    )


def evaluate(
    network: SegmentationNetwork,
    dataset: SegmentationDataset,
    num_classes: int,
    ignore_index: int,
    *,
    num_workers: int = 0,
    progress: bool = True,
    processes: Processes = ALONE,
    inference: Inference = SINGLE_SCALE,
) -> Evaluation:
    """Evaluates a network on all images of a data set with masks. Restores the network's mode.

    Several processes share the images: each image counts once, and all processes get the same
    result.

    Raises:
        DataError: the data set is empty, or an image cannot be read or is too large to be seen at
            once.
        ProcessError: another process has failed.
    """
    if len(dataset) == 0:
        raise DataError(
            "there are no images to evaluate on: the validation set is empty. Add images to it"
        )
    device = next(network.parameters()).device
    confusion = MulticlassConfusionMatrix(
        num_classes, ignore_index=ignore_index, validate_args=False, sync_on_compute=False
    ).to(device)
    was_training = network.training
    network.eval()
    loader = SampleLoader(
        dataset,
        batch_size=None,
        sampler=range(processes.rank, len(dataset), processes.size),
        num_workers=num_workers,
        worker_init_fn=leave_signals_to_the_main_process,
        generator=torch.Generator(),
    )
    dtype = smallest_dtype(num_classes)
    failure: Exception | None = None
    try:
        for sample in Progress(loader, "evaluate", unit="image", leave=False, disable=not progress):
            mask = sample["mask"].as_subclass(Tensor)  # [H, W]
            ids = predict(network, sample["image"], inference, dtype=dtype, progress=progress)
            for rows in bands(mask.shape[0], mask.shape[1]):  # ids of eight bytes, several times
                confusion.update(ids[rows].long(), mask[rows].to(device).long())
    except Exception as error:  # the other processes must not wait for this one
        failure = error
    network.train(was_training)
    if processes.any(failure is not None):
        raise failure or ProcessError("another process has failed; its own message says why")
    return Evaluation(processes.sum(confusion.compute().long()).cpu())
