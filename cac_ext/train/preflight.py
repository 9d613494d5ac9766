"""Checks before a training: is there something to learn, and can a step run?

No check draws from the random state of the run or changes the training.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cac_ext.train.config import Config, DataConfig
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.augment import CropPairAugment
from cac_ext.train.data.checks.class_findings import (
    absent_classes,
    absent_remark,
    ignored_class_remark,
    worthless,
)
from cac_ext.train.data.checks.mask_scan import MaskScan, scan_masks
from cac_ext.train.data.checks.split_search import split_advice
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.inference import SMALLER_WINDOWS
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.normalization import Normalization
from cac_ext.train.runtime.distributed import ALONE, Processes, current, find_device
from cac_ext.train.runtime.memory import total_memory
from cac_ext.train.runtime.seeding import seeded

_PAIRS = 16  # crop pairs drawn to see whether views overlap


def require_labels(
    config: Config,
    splits: DatasetSplits | None = None,
    *,
    processes: Processes = ALONE,
    progress: bool = True,
) -> None:
    """Checks the masks of labelled and validation images, as many as `scan_masks` reads.

    Args:
        config: of the run.
        splits: its data, if already built.
        processes: all call this; rank 0 reads the masks.
        progress: whether to show a progress bar.

    Raises:
        DataError: no labelled pixel, labels of a single class, no validation pixel, or a
            validation image that is too large to be seen at once.

    Warns:
        UserWarning: classes without a pixel, and advice.
    """

    def look() -> None:
        if processes.is_main:
            _look_at_labels(config, splits or build_datasets(config.data), progress)

    processes.together(look)


def require_labels_of_runs(runs: Mapping[Path, Config], *, progress: bool = True) -> None:
    """`require_labels` for several runs before the first one takes hours; once for the same data.

    ``runs`` holds configurations by run folder; runs that have begun are left out.
    """
    processes = current()
    seen: list[DataConfig] = []
    for folder, config in runs.items():
        begun = processes.first((folder / "checkpoint.pt").exists())
        if not begun and config.data not in seen:
            seen.append(config.data)
            require_labels(config, processes=processes, progress=progress)


def _look_at_labels(config: Config, splits: DatasetSplits, progress: bool) -> None:
    scans: dict[str, MaskScan] = {}
    for name, dataset in (("labelled", splits.labelled), ("validation", splits.validation)):
        scan = scan_masks(dataset, splits, f"{name} masks", progress=progress)
        fault = worthless(name, scan.masks, scan.pixels, scan.ignored, splits)
        if fault is not None:
            raise DataError(f"{fault}. `cac-ext data check CONFIG` counts the pixels of each class")
        scans[name] = scan
    _require_memory(config, splits, *scans["validation"].largest)
    remarks = [ignored_class_remark(splits)]
    for name, scan in scans.items():
        missing = absent_classes(scan.pixels, splits)
        advice = ""
        if missing and name == "labelled":
            advice = split_advice(config.data, splits, missing)
        remarks.append(absent_remark(name, scan.pixels, scan.ignored, splits, advice))
    for remark in filter(None, remarks):
        warnings.warn(remark, stacklevel=4)


def _require_memory(config: Config, splits: DatasetSplits, height: int, width: int) -> None:
    """DataError if the class scores of a validation image alone are larger than the memory."""
    if config.evaluation.window is not None:
        return
    device = find_device(config.device)
    memory = total_memory(device)
    scores = 4 * splits.num_classes * height * width  # bytes
    if memory is not None and scores > memory:
        raise DataError(
            f"a validation image has {width} x {height} pixels: the float32 scores of its "
            f"{splits.num_classes} classes take {scores / 2**30:.1f} GiB, but {device} has "
            f"{memory / 2**30:.1f} GiB. {SMALLER_WINDOWS[0].upper()}{SMALLER_WINDOWS[1:]}"
        )


def warn_of_small_images(config: Config, splits: DatasetSplits, grid: FeatureGrid) -> None:
    """Warns if unlabelled images are so small that the two views of most share no feature.

    Args:
        config: of the run.
        splits: its data.
        grid: of the features that are compared.
    """
    remark = small_images_remark(config, splits, grid)
    if remark is not None:
        warnings.warn(remark, stacklevel=3)


def small_images_remark(config: Config, splits: DatasetSplits, grid: FeatureGrid) -> str | None:
    """A sentence if the views of most crop pairs share no feature of their image; else None.

    Draws sixteen pairs from images spread over the set.

    Raises:
        ConfigError: no crop pair can have an IoU in ``method.iou_range``.
    """
    images = splits.labelled if splits.unlabelled is None else splits.unlabelled
    still = replace(config.augment, jitter=0.0, blur=0.0, gray=0.0)
    sampler = CropPairSampler(still.crop_size, grid, config.method.iou_range, still.flip)
    augment = CropPairAugment(still, sampler, normalization=Normalization.of(config.data))
    empty = 0
    chosen = torch.linspace(0, len(images) - 1, _PAIRS).long().tolist()
    sizes = set()
    for number, index in enumerate(chosen):
        image = images[index]["image"]
        sizes.add(tuple(image.shape[-2:]))
        with seeded(config.seed, "preflight", number):
            pair = augment({"image": image, "name": ""})
        empty += len(pair.view1.overlap) == 0
    if 2 * empty < _PAIRS:
        return None
    height, width = min(sizes, key=min)
    return (
        f"in {empty} of {_PAIRS} crop pairs the views share no feature of their image: with images "
        f"as small as {width} x {height} pixels, crops of {still.crop_size} (augment.crop_size) "
        "are mostly padding, and the network learns little from unlabelled images. Lower "
        "augment.crop_size, set augment.base_size to enlarge the images, or raise the lower end of "
        "method.iou_range"
    )


def require_batch_statistics(
    model: nn.Module, batch: int, crop_size: int, keys: str, channels: int = 3
) -> None:
    """ConfigError if batch normalization would see a single value per channel in training.

    Runs the forward pass of the first step on tensors without contents, so it computes nothing.

    Args:
        model: called with images ``[B, C, S, S]``. Call this in one process only: with several, the
            batch statistics cover all processes.
        batch: B.
        crop_size: S.
        keys: configuration keys that set the batch, for the error.
        channels: C.
    """
    if batch > 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    without = {name: tensor.to("meta") for name, tensor in state.items()}
    images = torch.empty(batch, channels, crop_size, crop_size, device="meta")
    was_training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.func.functional_call(model, without, (images,))
    except ConfigError:
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return  # the training step will report it
        raise ConfigError(
            f"with a batch of {batch} image of {crop_size} x {crop_size} pixels a batch "
            f"normalization sees one value per channel, which has no variance: set {keys} to 2 or "
            "more, or augment.crop_size to a larger value"
        ) from error
    except Exception:  # a custom network that needs the contents of its input
        return
    finally:
        model.train(was_training)
