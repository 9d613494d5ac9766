"""The trainer from Python: what the commands of ``cac-ext`` do, as functions.

    from cac_ext import train

    config = train.load_config("synthetic", ["schedule.epochs=4"])
    result = train.train(config, "runs/mine")
    run = train.load_run("runs/mine")
    classes = train.predict(run, "street.jpg")  # [H, W] class ids

`cac_ext.train` exports all names of this file. Settings are the ``key=value`` words of the command
line; docs/settings.md lists them. What the user can fix is raised as a `UserError`. The functions
also work in the processes that torchrun starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cac_ext.train.config import Config, load, to_mapping
from cac_ext.train.data.files.images import RGB_FILES, ImageForm, read_image
from cac_ext.train.errors import UserError
from cac_ext.train.experiments import compare as comparison
from cac_ext.train.experiments.compare import Comparison
from cac_ext.train.experiments.prepare import prepare_run
from cac_ext.train.inference import Inference, class_probabilities, configured_inference
from cac_ext.train.inference import predict as predict_tensor
from cac_ext.train.loop import TrainResult
from cac_ext.train.loop import train as train_run
from cac_ext.train.reports.page import Report, write_report
from cac_ext.train.runs.checkpoint import (
    read_checkpoint,
    require_same_settings,
    with_more_epochs,
)
from cac_ext.train.runs.evaluation import RunEvaluation, evaluate_run
from cac_ext.train.runs.export import export, load_exported
from cac_ext.train.runs.folder import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    Run,
    load_run,
    new_folder,
    read_config,
)
from cac_ext.train.runtime.distributed import process_group

#: An image: the path of a file, or an array ``[H, W, C]`` of the run's ``data.channels``: uint8, by
#: default RGB.
Picture: TypeAlias = "str | Path | npt.NDArray[Any]"


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a shipped name or a YAML file, with ``key=value`` overrides.

    Args:
        name_or_path: synthetic, voc, cityscapes, camvid, folder, or the path of a YAML file.
        overrides: settings that replace those of the file: ``["schedule.epochs=2", "seed=1"]``.

    Raises:
        ConfigError: no such file, an unknown key, a wrong type, or a value out of range.
    """
    return load(str(name_or_path), overrides)


def train(
    config: Config, folder: str | Path | None = None, *, progress: bool = True
) -> TrainResult:
    """Trains the configured run, as ``cac-ext train``.

    Args:
        config: from `load_config`.
        folder: receives config.yaml, classes.json, environment.json, checkpoint.pt, metrics.jsonl,
            validation.json, tensorboard/ and picture.png; by default a new folder in
            ``config.output``. It must not hold a run.
        progress: whether to print what is done and show progress bars.

    Returns:
        The folder, the network, the mIoU of the last iteration, and the best evaluation.

    Raises:
        UserError: a setting or a file cannot be used, or a step is not finite.
        TrainingStopped: SIGTERM or Ctrl-C came; `resume` continues.
    """
    with process_group(config.device) as processes:
        path = processes.first(new_folder(config.output, config.name) if folder is None else folder)
        prepare_run(config, Path(path), resume=False, progress=progress)
        return train_run(config, Path(path), progress=progress)


def resume(
    folder: str | Path, overrides: Sequence[str] = (), *, progress: bool = True
) -> TrainResult:
    """Continues an interrupted run as if it had not stopped, as ``cac-ext resume``.

    Of a finished run, returns the result, or trains more epochs.

    Args:
        folder: of the run.
        overrides: changed settings that do not change the result: ``["data.num_workers=4"]``; for
            a run that has taken all its epochs also a larger number of them,
            ``["schedule.epochs=120"]``.
        progress: whether to print what is done and show progress bars.

    Raises:
        UserError: the folder holds no run, or a setting would change its result.
        TrainingStopped: SIGTERM or Ctrl-C came; `resume` continues.
    """
    folder = Path(folder)
    config = read_config(folder, overrides)
    # Checked before anything is written: there may be no checkpoint yet that would be checked.
    begun = to_mapping(read_config(folder))
    checkpoint = folder / CHECKPOINT_FILE
    if begun["schedule"] != to_mapping(config)["schedule"] and checkpoint.exists():
        begun = with_more_epochs(begun, config, read_checkpoint(checkpoint)["iteration"])
    require_same_settings(begun, config, folder / CONFIG_FILE)
    with process_group(config.device):
        prepare_run(config, folder, resume=True, progress=progress)
        return train_run(config, folder, resume=True, extend=True, progress=progress)


def compare(
    name_or_path: str | Path,
    methods: Sequence[str] = ("sup_only", "cac"),
    seeds: Sequence[int] = (0,),
    overrides: Sequence[str] = (),
    *,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Trains several methods with equal iterations, images and seeds, as ``cac-ext compare``.

    Args:
        name_or_path, overrides: of the configuration, see `load_config`.
        methods: names of ``cac-ext compare --help``; the others' gain is over the first.
        seeds: each method is trained with each.
        folder: receives the run folders and the table; that of an interrupted comparison continues
            it. By default a new one in the folder ``output`` of the configuration.
        progress: whether to print what is done and show progress bars.

    Raises:
        UserError: a method or setting does not exist, or a run cannot be trained.
        TrainingStopped: SIGTERM or Ctrl-C came; the same call with ``folder`` continues.
    """
    runs = comparison.plan(str(name_or_path), overrides, methods, seeds)
    first = next(iter(runs.values()))
    with process_group(first.device) as processes:
        default = new_folder(first.output, f"{first.name}-compare")
        path = processes.first(default if folder is None else folder)
        return comparison.compare(runs, Path(path), progress=progress)


def predict(
    run: Run, image: Picture, *, inference: Inference | None = None
) -> npt.NDArray[np.int64]:
    """The class of each pixel of an image, ``[H, W]`` ids in the order of ``run.classes``.

    Args:
        run: from `load_run`.
        image: the path of a file, read upright as viewers show it, or RGB ``[H, W, 3]`` uint8. Of
            a run with other ``data.channels``, ``data.value_low`` and ``data.value_high``: what its
            files hold.
        inference: test-time options; by default the windows and the precision of the run.

    Raises:
        DataError: the file cannot be read, or the array's values do not fit the run.
        TypeError, ValueError: the array is no RGB image, or no image of the run's channels.
    """
    inference = inference or configured_inference(run.config)
    return predict_tensor(run.network, _tensor_of(image, run), inference).cpu().numpy()


def predict_all(
    run: Run, images: Iterable[Picture], *, inference: Inference | None = None
) -> Iterator[npt.NDArray[np.int64]]:
    """`predict` for each image, one after the other as they are asked for; sizes may differ."""
    for image in images:
        yield predict(run, image, inference=inference)


def predict_probabilities(
    run: Run, image: Picture, *, inference: Inference | None = None
) -> npt.NDArray[np.float32]:
    """The probability of each class at each pixel, ``[K, H, W]``; see `predict`."""
    tensor = _tensor_of(image, run)
    inference = inference or configured_inference(run.config)
    with torch.no_grad():
        return class_probabilities(run.network, tensor, inference).float().cpu().numpy()


def _tensor_of(image: Picture, run: Run) -> Tensor:
    """``[C, H, W]`` uint8."""
    form = ImageForm.of(run.config.data)
    if isinstance(image, str | Path):
        return read_image(Path(image), run.config.data.max_image_pixels, form)
    array: npt.NDArray[Any] = np.asarray(image)
    if form != RGB_FILES:
        array = array[..., None] if array.ndim == 2 and form.channels == 1 else array
        if array.ndim != 3 or array.shape[2] != form.channels or array.size == 0:
            raise ValueError(
                f"an image must have the shape [H, W, {form.channels}] (data.channels), but has "
                f"the shape {list(array.shape)}"
            )
        array = form.to_bytes(array, "the image")
    if array.dtype != np.uint8:
        raise TypeError(
            f"an image must be the path of a file or an RGB array of type uint8, but is of type "
            f"{array.dtype}"
        )
    if array.ndim != 3 or array.shape[2] != form.channels or array.size == 0:
        raise ValueError(
            f"an image must be RGB of shape [H, W, 3], but has the shape {list(array.shape)}"
        )
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


__all__ = [
    "Comparison",
    "Config",
    "Inference",
    "Report",
    "Run",
    "RunEvaluation",
    "TrainResult",
    "UserError",
    "compare",
    "evaluate_run",
    "export",
    "load_config",
    "load_exported",
    "load_run",
    "predict",
    "predict_all",
    "predict_probabilities",
    "resume",
    "train",
    "write_report",
]
