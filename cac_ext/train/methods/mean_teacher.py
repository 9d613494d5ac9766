"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017) for segmentation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.methods.contract import MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.ema import mean_of, update_mean
from cac_ext.train.methods.finite import finite_outside_padding
from cac_ext.train.methods.ramp import ramp_after_warmup
from cac_ext.train.methods.student import StudentMethod, Term
from cac_ext.train.networks import SegmentationNetwork


class MeanTeacher(StudentMethod):
    """A student learns the probabilities of its own running mean, the teacher.

    ``cross entropy + w(t) * mean over pixels and classes of (student - teacher)^2`` with class
    probabilities of the student for the strong crop and of the teacher for the weak one;
    ``w(t) = mean_teacher.weight * exp(-5 (1 - t)^2)``, t from 0 to 1 over ``mean_teacher.rampup``
    of the run. After each step the teacher moves by ``1 - d`` towards the student,
    ``d = min(1 - 1 / (iteration + 1), mean_teacher.ema_decay)``. The teacher is evaluated.

    The source classifies images. Defaults are those of two implementations for segmentation,
    TorchSemiSeg (weight, distance, decay) and PixelSSL (ramp, decay in the first steps), which
    differ from this one:

    * There, both networks see the same image, or with Gaussian noise. Here, as in the source, the
      student's input is perturbed: it sees the strongly augmented crop, the teacher the weak one.
    * Their teacher predicts in training mode, with its own batch statistics; its running statistics
      are never averaged. Here it predicts in evaluation mode, and running statistics are averaged
      like weights, so that the teacher can be evaluated.
    * TorchSemiSeg compares predictions of labelled images too, PixelSSL logits in place of
      probabilities. Here probabilities of unlabelled images are compared.
    * In the warm-up (``schedule.warmup_epochs``) the student learns from labels alone; the ramp
      begins behind it. The teacher follows the student from the first step on.
    """

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.teacher = mean_of(context.network)
        self.kept["teacher"] = self.teacher

    @property
    def evaluated(self) -> SegmentationNetwork:
        return self.teacher

    def crop_streams(self) -> dict[str, StreamRequest]:
        return {"unlabelled": self.whole_crop_stream(strong=1)}

    def step(self, step: Step) -> Iterator[Phase]:
        crops: WholeCropBatch | None = step.batches.get("unlabelled")
        if crops is None:  # warm-up
            yield from self.phase(step, self.forward(step, None, None))
            return
        with torch.no_grad():
            target = self.teacher.eval()(crops.weak).softmax(dim=1)  # [U, K, S, S]
        seen = self.forward(step, None, crops.strong[0])
        student = seen.outputs.strong
        assert student is not None
        finite = finite_outside_padding(student, crops.valid)
        finite = finite & finite_outside_padding(target, crops.valid)
        weight = self.weight(step.iteration)
        loss = self.distance(student, target, crops.valid)
        yield from self.phase(
            step,
            seen,
            [Term("consistency", weight, loss, finite)],
            {"consistency_weight": weight},
        )

    def weight(self, iteration: int) -> float:
        """The weight of the distance, which rises from the end of the warm-up on."""
        config = self.context.config
        return config.mean_teacher.weight * ramp_after_warmup(
            config, iteration, config.mean_teacher.rampup
        )

    def distance(self, student: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean squared distance of probabilities over classes and pixels outside padding.

        Args:
            student: logits ``[U, K, S, S]``.
            target: probabilities ``[U, K, S, S]``.
            valid: ``[U, S, S]``, False on padding.
        """
        squared = (student.softmax(dim=1) - target).square().mean(dim=1)  # [U, S, S]
        return self.context.mean_over(squared, valid)

    def after_step(self, iteration: int) -> None:
        decay = self.context.config.mean_teacher.ema_decay
        update_mean(self.teacher, self.context.network, iteration, decay)
