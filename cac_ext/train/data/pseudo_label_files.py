"""Pseudo labels of unlabelled images in files: a folder of masks, written once, then trained on.

``FOLDER/NAME.png`` is the mask of the image whose sample is called NAME: class ids in 8 bits, 255
where there is no label, whatever ``data.ignore_index`` is. `self_training` and `weak` write such
folders; one of your own making will do as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision import tv_tensors
from tqdm import tqdm

from cac_ext.train.data import DatasetSplits
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.files import write_whole

#: In place of a folder: pseudo labels that are made before training (`prepare.py`).
AUTO = "auto"

_NO_LABEL = 255


class PseudoLabelled(Dataset):
    """A data set's images with the masks of a folder.

    Args:
        dataset: see `cac_ext.train.data`.
        folder: of masks, see the module's docstring.
        num_classes: ids must be below.
        ignore_index: what samples hold where there is no label.

    Raises:
        DataError: when a sample is read: the mask is missing, broken, of another size than its
            image, or holds an id out of range.
    """

    def __init__(self, dataset: Dataset, folder: Path, num_classes: int, ignore_index: int) -> None:
        self.dataset = dataset
        self.folder = folder
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        sample = self.dataset[index]
        path = mask_path(self.folder, sample["name"])
        try:
            with Image.open(path) as picture:
                ids = torch.from_numpy(np.array(picture)).long()  # [H, W]
        except OSError as error:
            raise DataError(
                f"cannot read the pseudo label {path} of the image {sample['name']}: {error}"
            ) from error
        if ids.shape != sample["image"].shape[1:]:
            raise DataError(
                f"the pseudo label {path} has the shape {list(ids.shape)}, but its image "
                f"{sample['name']} is {list(sample['image'].shape[1:])}"
            )
        wrong = ids[(ids >= self.num_classes) & (ids != _NO_LABEL)]
        if len(wrong):
            raise DataError(
                f"the pseudo label {path} holds the id {int(wrong[0])}, but there are "
                f"{self.num_classes} classes"
            )
        ids[ids == _NO_LABEL] = self.ignore_index
        return {**sample, "mask": tv_tensors.Mask(ids)}


def pseudo_labelled(splits: DatasetSplits, folder: str, key: str) -> PseudoLabelled:
    """The unlabelled images with the masks of ``folder``, which configuration key ``key`` names.

    Raises:
        ConfigError: there are no unlabelled images, or no such folder.
        DataError: the first image has no mask, or a faulty one.
    """
    images = unlabelled_images(splits, key)
    if folder == AUTO:
        raise ConfigError(
            f"{key} is {AUTO}: `cac-ext compare` and `cac-ext ablate` make the pseudo labels "
            "themselves; for one run, make them by `cac-ext weak` or `cac-ext self-training` and "
            "give their folder"
        )
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(f"{key}: there is no folder {folder}")
    dataset = PseudoLabelled(images, path, splits.num_classes, splits.ignore_index)
    dataset[0]
    return dataset


def unlabelled_images(splits: DatasetSplits, key: str) -> Dataset:
    """The unlabelled images; ConfigError where there are none, or too many classes for 8 bits."""
    if splits.unlabelled is None:
        raise ConfigError(f"{key}: there are no unlabelled images to which labels could be given")
    if splits.num_classes > _NO_LABEL:
        raise ConfigError(
            f"{key}: pseudo labels are kept in 8 bits and know up to {_NO_LABEL} classes, but the "
            f"data set has {splits.num_classes}"
        )
    return splits.unlabelled


@dataclass(frozen=True)
class PseudoLabelReport:
    """What `write_pseudo_labels` wrote.

    Attributes:
        images: their number.
        labelled: share of the pixels that got a label.
        accuracy: share of these that are right, where the true masks are known; else None.
        miou: of these, in [0, 1]; else None.
    """

    images: int
    labelled: float
    accuracy: float | None
    miou: float | None

    def __str__(self) -> str:
        text = f"{self.images} images, {100 * self.labelled:.1f} % of the pixels labelled"
        if self.accuracy is None:
            return text
        return f"{text}, {100 * self.accuracy:.1f} % of these rightly (mIoU {100 * self.miou:.2f})"


@torch.no_grad()
def write_pseudo_labels(
    splits: DatasetSplits,
    label: Callable[[int, dict], Tensor],
    folder: Path,
    description: str,
    *,
    progress: bool = True,
) -> PseudoLabelReport:
    """Writes a mask of each unlabelled image into ``folder``; those that are there are kept.

    Args:
        splits: where the images come from.
        label: index and sample to ``[H, W]`` class ids, ``splits.ignore_index`` for "no label".
        folder: where the masks go.
        description: stands in front of the progress bar.
        progress: whether to show it.
    """
    images = unlabelled_images(splits, "pseudo labels")
    written = PseudoLabelled(images, folder, splits.num_classes, splits.ignore_index)
    confusion = MulticlassConfusionMatrix(
        splits.num_classes, ignore_index=splits.ignore_index, validate_args=False
    )
    known_mask = getattr(images, "known_mask", lambda index: None)
    pixels = labelled = 0
    for index in tqdm(range(len(images)), description, unit="image", disable=not progress):
        sample = images[index]
        path = mask_path(folder, sample["name"])
        if not path.is_file():
            _write(path, label(index, sample), splits.ignore_index)
        mask = written[index]["mask"].as_subclass(Tensor)
        counted = mask != splits.ignore_index
        pixels += mask.numel()
        labelled += int(counted.sum())
        truth = known_mask(index)
        if truth is not None:
            confusion.update(mask[counted], truth.long()[counted])
    table = confusion.compute().double()  # [K, K] true class, pseudo label
    if not table.any():
        return PseudoLabelReport(len(images), labelled / pixels, None, None)
    right = table.diagonal()
    iou = right / (table.sum(0) + table.sum(1) - right)
    accuracy = (right.sum() / table.sum()).item()
    return PseudoLabelReport(len(images), labelled / pixels, accuracy, iou.nanmean().item())


def mask_path(folder: Path, name: str) -> Path:
    """Where the mask of the image called ``name`` lies; folders in the name are kept."""
    return folder / f"{name.lstrip('/')}.png"


def _write(path: Path, mask: Tensor, ignore_index: int) -> None:
    ids = mask.cpu().numpy()
    ids = np.where(ids == ignore_index, _NO_LABEL, ids).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: Image.fromarray(ids).save(file, format="PNG"))
