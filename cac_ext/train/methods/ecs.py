"""Error-Correcting Supervision (Mendel, de Souza, Rauber, Papa and Palm, ECCV 2020).

A second network, the corrector, reads an image and the segmenter's class probabilities. For each
pixel it says "correct", or which class is right. It learns from labelled images. On unlabelled
images the segmenter's prediction with these corrections is the target.

With the segmenter ``S``, ``p = softmax(S(x))``, its class ``s = argmax p``, the corrector ``C`` and
its index K for "correct", averaged over pixels that are not ignored:

    corrector   CE(C(x, p), t)             labelled; t = K where s = y, else y; p is a constant
    segmenter   CE(S(x), y)                labelled: supervised
                + r w_c CE(C(x, p), K)     labelled: correction; C's weights are fixed
                + r w_u  c CE(S(x), z)     unlabelled

    c = max softmax(C(x, p)),  k = argmax C(x, p),  z = s where k = K, else k;  both constants

``w_c``, ``w_u`` and the ramp ``r`` are ``ecs.correction_weight``, ``ecs.unlabelled_weight`` and
``ecs.rampup``. Inference needs the segmenter alone.

**The authors published no code.** The abstract fixes the roles: the corrector learns on labelled
data to spot correct predictions and to amend wrong ones; it regularizes the supervised training;
its output is combined with the segmenter's prediction into the target of unlabelled images; its
certainty weighs their loss; the networks work together, not against each other. These choices are
ours:

* The corrector's layers (`corrector.py`): strided convolutions as in GAN discriminators, without
  batch normalization, at a quarter of the image's size, interpolated bilinearly.
* It reads probabilities, not classes, so that the correction term has a gradient to the segmenter.
* "Correct" and the classes are one choice among K + 1. Pixels of both kinds count alike in the
  corrector's loss, although most are correct.
* The correction term is the cross entropy towards "correct". It reaches the segmenter through ``p``
  only, on labelled images only.
* The certainty is the largest of the K + 1 probabilities, without a threshold. The loss is divided
  by the number of pixels, not by the sum of certainties: an uncertain corrector lowers it.
* The weights (0.1 and 1), and that both rise over a tenth of the run, from the end of the warm-up
  on. Unlabelled images are used after ``schedule.warmup_epochs``.
* The corrector's optimizer: Adam with betas 0.9 and 0.99 and a learning rate of 1e-4, which decays
  as the segmenter's. It steps after the segmenter in every step, on the predictions that the
  segmenter made before its own step: no third forward pass.
* Unlabelled images are cropped, scaled and mirrored as labelled ones, without color changes.
* Targets come from the same forward pass as the loss, with the dropout in front of the classifier:
  the corrector judges what it has learned to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.corrector import Corrector
from cac_ext.train.methods.finite import finite_outside_padding
from cac_ext.train.methods.frozen import frozen
from cac_ext.train.methods.ramp import ramp_after_warmup
from cac_ext.train.optimizer import build_adam
from cac_ext.train.runtime.seeding import seeded

_NONE = -1  # target of a pixel that counts nowhere; `ignore_index` may be K, which is "correct"


class Targets(NamedTuple):
    """Corrected predictions; constants without gradient."""

    classes: Tensor  # [B, H, W] int64
    certainty: Tensor  # [B, H, W] the corrector's largest probability
    amended: Tensor  # [B, H, W] bool, where the class is not the predicted one


class Ecs(Method):
    """Segmenter and corrector; see the module's docstring."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.settings = context.config.ecs
        with seeded(context.config.seed, "corrector", 0):
            self.corrector = Corrector(
                context.splits.num_classes, context.network.normalization.channels
            )
        self.trained["network"] = context.network
        self.trained["corrector"] = self.corrector

    def streams(self) -> dict[str, StreamRequest]:
        return {**self.supervised_streams(), "unlabelled": self.whole_crop_stream(strong=0)}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.groups_of({"network": self.context.network})

    def build_optimizers(self) -> dict[str, Optimizer]:
        rate = self.settings.corrector_learning_rate
        adam = build_adam("corrector", self.corrector, rate)
        return {**super().build_optimizers(), "corrector": adam}

    def step(self, step: Step) -> Iterator[Phase]:
        """A phase of the segmenter, then one of the corrector."""
        labelled = self.supervised_batch(step.batches)
        crops: WholeCropBatch | None = step.batches.get("unlabelled")
        count = len(labelled.images)
        images = labelled.images if crops is None else torch.cat([labelled.images, crops.weak])
        logits = step.modules["network"](images)  # [B + U, K, S, S]
        supervised, finite = self.supervised_loss(logits[:count], labelled.masks)
        if crops is not None:
            finite = finite & finite_outside_padding(logits[count:], crops.valid)
        if not step.proceeds(finite):
            return
        losses, metrics = {"supervised": supervised}, dict[str, Tensor | float]()
        ramp = ramp_after_warmup(self.context.config, step.iteration, self.settings.rampup)
        probabilities = logits.float().softmax(dim=1)
        known = labelled.masks != self.context.splits.ignore_index  # [B, S, S]
        with frozen(self.corrector):
            verdicts = self.corrector(labelled.images, probabilities[:count])
            correct = torch.where(known, self.corrector.correct, _NONE)
            losses["correction"] = self.context.mean_over(_cross_entropy(verdicts, correct), known)
            if crops is not None:
                targets = self.targets(crops.weak, probabilities[count:].detach())
                classes = torch.where(crops.valid, targets.classes, _NONE)
                each = targets.certainty * _cross_entropy(logits[count:], classes)
                losses["unlabelled"] = self.context.mean_over(each, crops.valid)
                metrics["certainty"] = self.context.mean_over(targets.certainty, crops.valid)
                amended = targets.amended.float()
                metrics["amended_share"] = self.context.mean_over(amended, crops.valid)
        total = supervised + ramp * self.settings.correction_weight * losses["correction"]
        if crops is not None:
            total = total + ramp * self.settings.unlabelled_weight * losses["unlabelled"]
        yield Phase(total, losses, metrics)

        predicted = probabilities[:count].detach()
        verdicts = step.modules["corrector"](labelled.images, predicted)  # [B, K + 1, S, S]
        truth = self.verdicts_of(predicted.argmax(dim=1), labelled.masks)
        loss = self.context.mean_over(_cross_entropy(verdicts, truth), known)
        is_right = (verdicts.detach().argmax(dim=1) == truth).float()
        right = self.context.mean_over(is_right, known)
        yield Phase(loss, {"corrector": loss}, {"corrector_accuracy": right}, optimizer="corrector")

    @torch.no_grad()
    def targets(self, images: Tensor, probabilities: Tensor) -> Targets:
        """The corrected predictions of unlabelled images."""
        predicted = probabilities.argmax(dim=1)  # [B, H, W]
        certainty, verdict = self.corrector(images, probabilities).float().softmax(dim=1).max(dim=1)
        classes = torch.where(verdict == self.corrector.correct, predicted, verdict)
        return Targets(classes, certainty, classes != predicted)

    def verdicts_of(self, predicted: Tensor, masks: Tensor) -> Tensor:
        """The corrector's targets, ``[B, H, W]``: K where the prediction is right, else the class.

        -1 on ignored pixels.
        """
        verdicts = torch.where(predicted == masks, self.corrector.correct, masks)
        return torch.where(masks == self.context.splits.ignore_index, _NONE, verdicts)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``[B, K, H, W]`` and ``[B, H, W]`` to that of each pixel; 0 where the target is -1."""
    return F.cross_entropy(logits.float(), targets, ignore_index=_NONE, reduction="none")
