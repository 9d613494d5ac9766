"""Is there something to learn, and can a step be made? Asked before training, not after it.

Nothing here draws from the random state of the run, and nothing changes what is trained.
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
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.runtime.distributed import ALONE, Processes, current
from cac_ext.train.runtime.seeding import seeded

_PAIRS = 16  # drawn to see whether crops overlap


def require_labels(
    config: Config,
    splits: DatasetSplits | None = None,
    *,
    processes: Processes = ALONE,
    progress: bool = True,
) -> None:
    """Looks at the masks of the labelled and the validation images, as many as `scan_masks` needs.

    Args:
        config: of the run.
        splits: its data, where it has been built already.
        processes: all call it; rank 0 looks.
        progress: whether to show a progress bar.

    Raises:
        DataError: no labelled pixel, or of one class alone; no pixel to validate by.

    Warns:
        UserWarning: classes without a pixel, and what to do about them.
    """

    def look() -> None:
        if processes.is_main:
            _look_at_labels(config, splits or build_datasets(config.data), progress)

    processes.together(look)


def require_labels_of_runs(runs: Mapping[Path, Config], *, progress: bool = True) -> None:
    """`require_labels` of several runs before the first of them takes hours, of each data once.

    ``runs`` are configurations by run folder; those that have begun are left out.
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
    remarks = [ignored_class_remark(splits)]
    for name, scan in scans.items():
        missing = absent_classes(scan.pixels, splits)
        advice = ""
        if missing and name == "labelled":
            advice = split_advice(config.data, splits, missing)
        remarks.append(absent_remark(name, scan.pixels, scan.ignored, splits, advice))
    for remark in filter(None, remarks):
        warnings.warn(remark, stacklevel=4)


def warn_of_small_images(config: Config, splits: DatasetSplits, grid: FeatureGrid) -> None:
    """A warning where the views of unlabelled images, as small as these are, share no feature.

    Args:
        config: of the run.
        splits: its data.
        grid: of the features that are compared.
    """
    remark = small_images_remark(config, splits, grid)
    if remark is not None:
        warnings.warn(remark, stacklevel=3)


def small_images_remark(config: Config, splits: DatasetSplits, grid: FeatureGrid) -> str | None:
    """A sentence about crop pairs that share no feature of their image; None where most do.

    Sixteen pairs are drawn, of as many images spread over the set.

    Raises:
        ConfigError: no crops can have the ``method.iou_range``.
    """
    images = splits.labelled if splits.unlabelled is None else splits.unlabelled
    still = replace(config.augment, jitter=0.0, blur=0.0, gray=0.0)
    sampler = CropPairSampler(still.crop_size, grid, config.method.iou_range, still.flip)
    augment = CropPairAugment(still, sampler)
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
        f"of {_PAIRS} crop pairs {empty} share no feature of their image: with images as small as "
        f"{width} x {height} pixels, crops of {still.crop_size} (augment.crop_size) are mostly "
        "padding, and the unlabelled images teach little. Lower augment.crop_size, set "
        "augment.base_size to enlarge the images, or raise the lower end of method.iou_range"
    )


def require_batch_statistics(model: nn.Module, batch: int, crop_size: int, keys: str) -> None:
    """ConfigError where batch normalisation would meet a single value a channel in training.

    The first step's forward is gone through without computing it, on tensors without contents.

    Args:
        model: called with images ``[B, 3, S, S]``; in one process, or its batch statistics would
            be those of all processes.
        batch: B.
        crop_size: S.
        keys: of the configuration that set the batch, for the error.
    """
    if batch > 1 or not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    without = {name: tensor.to("meta") for name, tensor in state.items()}
    images = torch.empty(batch, 3, crop_size, crop_size, device="meta")
    was_training = model.training
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.func.functional_call(model, without, (images,))
    except ConfigError:
        raise
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            return  # the step itself will say it
        raise ConfigError(
            f"a batch of {batch} image of {crop_size} x {crop_size} pixels leaves a batch "
            f"normalisation one value a channel, of which there is no variance: set {keys} to 2 "
            "or more, or take larger crops"
        ) from error
    except Exception:  # a network of the user's that cannot do without contents
        return
    finally:
        model.train(was_training)
