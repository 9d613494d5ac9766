"""A custom method: Mean Teacher (Tarvainen and Valpola, NeurIPS 2017) for segmentation, in short.

From this folder, in two minutes on a CPU::

    python mean_teacher.py
    cac-ext train synthetic method.name=mean_teacher:MeanTeacher schedule.epochs=4    # the same

The student learns from labels. It also learns to predict, for a strongly augmented crop, what the
teacher predicts for the weakly augmented one. The teacher is the running mean of the student; it is
the network that is evaluated. `method.name=mean_teacher`, without a colon, is the shipped one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cac_ext import train
from cac_ext.train.methods import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.ema import mean_of, update_mean
from cac_ext.train.methods.ramp import sigmoid_ramp
from cac_ext.train.networks import SegmentationNetwork


class MeanTeacher(Method):
    """``method.options``: ``weight`` of the consistency, ``decay`` of the mean, ``rampup``."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        options = context.config.method.options
        self.weight = float(options.get("weight", 10.0))
        self.decay = float(options.get("decay", 0.99))
        # The weight rises for this share of the iterations.
        self.rampup = float(options.get("rampup", 0.1)) * context.config.iterations
        self.student = context.network
        self.teacher = mean_of(context.network)
        self.trained["student"] = self.student
        self.kept["teacher"] = self.teacher

    @property
    def evaluated(self) -> SegmentationNetwork:
        return self.teacher

    def streams(self) -> dict[str, StreamRequest]:
        return {**self.supervised_streams(), "unlabelled": self.whole_crop_stream(strong=1)}

    def step(self, step: Step) -> Iterator[Phase]:
        labelled, crops = self.supervised_batch(step.batches), step.batches.get("unlabelled")
        images = labelled.images
        if crops is not None:
            images = torch.cat([images, crops.strong[0]])
        # One forward pass of all images, as DDP and batch statistics need.
        logits = step.modules["student"](images)  # [B + U, K, S, S]
        supervised, finite = self.supervised_loss(logits[: len(labelled.images)], labelled.masks)
        if not step.proceeds(finite & logits.detach().isfinite().all()):
            return
        if crops is None:
            yield Phase(supervised, {"supervised": supervised})
            return
        consistency = self._consistency(logits[len(labelled.images) :], crops.weak, crops.valid)
        weight = self.weight * sigmoid_ramp(step.iteration, self.rampup)
        total = supervised + weight * consistency
        yield Phase(total, {"supervised": supervised, "consistency": consistency})

    def _consistency(self, student: Tensor, weak: Tensor, valid: Tensor) -> Tensor:
        """Mean squared distance of class probabilities over the pixels outside padding."""
        with torch.no_grad():
            teacher = self.teacher.eval()(weak).softmax(dim=1)  # [U, K, S, S]
        distance = (student.softmax(dim=1) - teacher).square().sum(dim=1)  # [U, S, S]
        return (distance * valid).sum() / valid.sum().clamp(min=1)

    def after_step(self, iteration: int) -> None:
        update_mean(self.teacher, self.student, iteration, self.decay)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains with the method on the built-in data."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="settings")
    options = parser.parse_args(arguments)
    settings = ["method.name=mean_teacher:MeanTeacher", "schedule.epochs=4", *options.overrides]
    result = train.train(train.load_config("synthetic", settings))
    print(f"mIoU {100 * result.miou:.2f}; {result.folder}")


if __name__ == "__main__":
    main()
