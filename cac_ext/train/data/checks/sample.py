"""Whether a sample keeps the contract of a data set (`cac_ext.train.data`)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.errors import DataError


def inspect_sample(sample: object, splits: DatasetSplits, name: str, index: int) -> None:
    """Raises DataError unless a sample of the part called ``name`` keeps the contract."""
    keys = ["image", "name"] if name == "unlabelled" else ["image", "name", "mask"]
    if not isinstance(sample, dict) or any(key not in sample for key in keys):
        kind = type(sample).__name__
        got = f"{kind} of {', '.join(map(str, sample))}" if isinstance(sample, dict) else kind
        raise DataError(
            f"sample {index} of the {name} images must be a dict of {', '.join(keys)}, but is {got}"
        )
    image, title = sample["image"], f"sample {index} of the {name} images ({sample['name']})"
    wanted = splits.channels
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        raise DataError(
            f"{title}: image must be uint8 [{wanted}, H, W], but is {_described(image)}"
        )
    if len(image) != wanted:
        raise DataError(
            f"{title}: image must be uint8 [{wanted}, H, W], but is {_described(image)}: set "
            f"data.channels={len(image)}, or give images of {wanted}"
        )
    if name == "unlabelled":
        return
    mask = sample["mask"]
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.shape != image.shape[-2:]:
        raise DataError(
            f"{title}: mask must be integers {list(image.shape[-2:])} like its image, but is "
            f"{_described(mask)}"
        )
    ids = mask.numpy()
    wrong = ids[((ids < 0) | (ids >= splits.num_classes)) & (ids != splits.ignore_index)]
    if len(wrong):
        raise DataError(
            f"{title}: the mask holds the ids {np.unique(wrong)[:8].tolist()}, but there are "
            f"{splits.num_classes} classes and {splits.ignore_index} is ignored"
        )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
