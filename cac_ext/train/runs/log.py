"""The log of a training: progress bar, metrics.jsonl, TensorBoard and further trackers."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cac_ext.train.data import DatasetSplits
from cac_ext.train.evaluate import absent_names
from cac_ext.train.figures.panels import predictions_figure
from cac_ext.train.inference import Inference
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.runs.trackers import Pixels, TensorBoard, Tracker
from cac_ext.train.runtime.json_files import json_text
from cac_ext.train.runtime.progress import Progress
from cac_ext.train.runtime.whole_files import naming, write_text_whole

# TensorBoard's pictures are small: they take less than half a second at each evaluation.
_VALIDATION_IMAGES = 4
_DPI = 80


class RunLog:
    """Progress bar on the terminal; scalars in ``metrics.jsonl``; scalars, pictures in TensorBoard.

    Args:
        folder: of the run.
        description: prefix of the progress bar.
        start, iterations: the run goes from iteration ``start`` to ``iterations``. Entries of an
            interrupted run beyond ``start`` are dropped.
        progress: whether to show the progress bar.
        trackers: receive the scalars and pictures, too.
    """

    def __init__(
        self,
        folder: Path,
        description: str,
        start: int,
        iterations: int,
        *,
        progress: bool = True,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.bar = Progress(
            total=iterations,
            initial=start,
            desc=description,
            unit="it",
            mininterval=0.5,
            disable=not progress,
        )
        with naming(self.path):
            _drop_beyond(self.path, start)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        self._trackers: list[Tracker] = [TensorBoard(folder / "tensorboard", start), *trackers]
        self._shown: dict[str, str] = {}
        self._last = (time.perf_counter(), start)

    def step(self) -> None:
        """Advances the progress bar by one iteration."""
        self.bar.update()

    def train(self, iteration: int, scalars: dict[str, float], images: int) -> None:
        """Logs the scalars of a step, which saw ``images`` images."""
        now, (then, before) = time.perf_counter(), self._last
        self._last = (now, iteration)
        seconds = max(now - then, 1e-9) / (iteration - before)
        speed = {"images_per_second": images / seconds, "seconds_per_step": seconds}
        self._write("train", iteration, {**scalars, **speed})
        self._show(loss=f"{scalars['loss']:.3f}")

    def evaluation(self, iteration: int, miou: float, class_iou: dict[str, float]) -> None:
        """Logs the mIoU and the IoU of each class, in [0, 1]; nan for an absent class."""
        absent = absent_names(class_iou)
        self._write(
            "validation",
            iteration,
            {"miou": miou, "class_iou": class_iou, "absent_classes": absent},
        )
        of = f" of {len(class_iou) - len(absent)}/{len(class_iou)} classes" if absent else ""
        self._show(mIoU=f"{100 * miou:.2f}{of}")
        self._last = (time.perf_counter(), iteration)  # the rate is of training alone

    def pictures(
        self,
        iteration: int,
        splits: DatasetSplits,
        network: SegmentationNetwork,
        inference: Inference,
        more: Callable[[], Mapping[str, Figure]],
    ) -> None:
        """Logs pictures: a few validation images, and the figures that ``more`` returns by tag."""
        predictions = predictions_figure(
            splits, {"prediction": network}, count=_VALIDATION_IMAGES, inference=inference
        )
        figures = {"validation/predictions": predictions}
        figures |= more()
        for tag, figure in figures.items():
            pixels = _pixels(figure)
            for tracker in self._trackers:
                tracker.picture(tag, pixels, iteration)
        self._last = (time.perf_counter(), iteration)  # the rate is of training alone

    def close(self) -> None:
        self.bar.close()
        with naming(self.path):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except OSError:
            # A full disk must not hide the error that ended the run, such as a checkpoint's.
            if kind is None:
                raise

    def _show(self, **values: str) -> None:
        self._shown.update(values)
        self.bar.set_postfix(self._shown, refresh=False)

    def _write(
        self,
        split: str,
        iteration: int,
        values: Mapping[str, float | Mapping[str, float] | list[str]],
    ) -> None:
        with naming(self.path):
            self._file.write(_line({"iteration": iteration, "split": split, **values}))
            self._file.flush()
        scalars: dict[str, float] = {}
        for key, value in values.items():
            tag = f"{split}/{key}"
            if isinstance(value, Mapping):
                scalars |= {f"{tag}/{name}": scalar for name, scalar in value.items()}
            else:  # of a list of names trackers show the length
                scalars[tag] = len(value) if isinstance(value, list) else value
        for tracker in self._trackers:
            tracker.scalars(scalars, iteration)


class NoLog:
    """Stands in for `RunLog` in processes other than the main one; does nothing."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def step(self) -> None:
        pass

    def train(self, *arguments: object) -> None:
        pass

    def evaluation(self, iteration: int, miou: float, class_iou: dict[str, float]) -> None:
        pass

    def pictures(self, *arguments: object) -> None:
        pass


def peak_memory(device: torch.device) -> float:
    """Peak memory so far in MiB: of this run's tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` without a last one that a crash cut short.

    A value that was nan or infinite is None.
    """
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _drop_beyond(path: Path, iteration: int) -> None:
    if path.exists():
        kept = [line for line in read_metrics(path) if line["iteration"] <= iteration]
        write_text_whole(path, "".join(map(_line, kept)))


def _line(values: Mapping[str, object]) -> str:
    return json_text(values) + "\n"


def _pixels(figure: Figure) -> Pixels:
    """A figure as RGB ``[H, W, 3]`` uint8."""
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
