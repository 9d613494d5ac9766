"""Guided Collaborative Training (Ke, Qiu, Li, Yan, Lau; ECCV 2020) for segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from cac_ext.train.config import Config
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.finite import all_finite, finite_outside_padding
from cac_ext.train.methods.frozen import frozen
from cac_ext.train.methods.gct.flaw_detector import SMALLEST_CROP, FlawDetector
from cac_ext.train.methods.gct.flaw_maps import Guidance, guidance, handled_flaws, true_flaws
from cac_ext.train.methods.ramp import ramp_after_warmup
from cac_ext.train.optimizer import build_adam, build_optimizer
from cac_ext.train.runtime.seeding import seeded

_NETWORKS = ("first", "second")


class Outputs(NamedTuple):
    """All images of a step, labelled ones in front, and what one network makes of them."""

    images: Tensor  # [B + U, 3, S, S]
    counted: Tensor  # [B + U, S, S] bool, False on padding and on ignored pixels
    probabilities: Tensor  # [B + U, K, S, S] float32, with the network's graph


class Gct(Method):
    """Two networks of one kind, and a detector of the flaws in their predictions.

    A step has three phases, each with its optimizer. The first two train a network m each::

        supervised  = mean of the cross entropy                               labelled images
        correction  = mean of both_flawed * detector(image, p_m)^2            all images
        consistency = mean of (p_m - target_m)^2, over pixels and classes     all images
        total       = supervised + correction_weight * correction
                      + ramp * consistency_weight * consistency

    ``p_m`` are the network's class probabilities. ``target_m`` are those of the network that has
    the smaller flaw at that pixel; ``both_flawed`` is 1 where both networks have a flaw above
    ``flaw_threshold`` (`flaw_maps.guidance`). Targets and masks come from the detector before the
    step; they pass no gradient. The detector's weights do not learn here. The third phase trains
    the detector, on labelled images::

        detector    = mean over both networks and all pixels of (raw_m - true_flaws_m)^2
        total       = detector_weight * detector

    ``raw_m`` are the detector's own maps, before any handling. The first network is evaluated. Both
    start with the same pretrained backbone, if there is one, and with different random weights.
    In the warm-up (``schedule.warmup_epochs``), which the authors do not have, the networks learn
    their supervised loss, and the detector its own.

    Differences from the authors' code (ZHKKKe/PixelSSL, ``ssl_gct.py``):

    * Means, blurs, maxima and minima leave out ignored pixels and padding. There, an ignored pixel
      has the flaw 1/2, padding is learned from, and the cross entropy is divided by the number of
      all pixels. For the same reason the correction passes no gradient to predictions on such
      pixels.
    * The raw map stays as it is. There, clamping at 0 for the comparison also changes the map that
      the detector is trained with, so that negative answers get a wrong gradient.
    * Learning rates do not grow with the number of GPUs. The networks have the rates, decay and
      schedule of the configuration, as every method here.
    * Each network runs once a step. There it runs twice, once without gradient for the targets,
      which takes less memory. Without dropout both give the same loss.
    * The detector's convolutions of stride 1 pad two pixels in place of one, so crops from 20
      pixels on can be used in place of 60. Convolutions in front of a norm have no bias.
    * An image without flaws has the handled map 0. There, it is a negative constant.
    * Blur kernels are cut and normalized. There, the tails beyond the kernel are folded into it.
    * The consistency's weight rises over a share of all iterations, from the end of the warm-up on;
      there, over 3 or 5 epochs, which is a tenth of most of the authors' runs.
    """

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.settings = context.config.gct
        with seeded(context.config.seed, "flaw detector", 0):
            self.detector = FlawDetector(
                context.splits.num_classes, context.network.normalization.channels
            )
        self.trained["first"] = context.network
        self.trained["second"] = context.another_network("second network")
        self.trained["detector"] = self.detector

    @classmethod
    def check(cls, config: Config) -> None:
        size = config.augment.crop_size
        if size < SMALLEST_CROP:
            raise ConfigError(
                f"augment.crop_size is {size}, but the flaw detector of method.name=gct halves "
                f"crops four times and needs at least {SMALLEST_CROP} pixels"
            )

    def streams(self) -> dict[str, StreamRequest]:
        return {**self.supervised_streams(), "unlabelled": self.whole_crop_stream(strong=0)}

    def build_optimizers(self) -> dict[str, Optimizer]:
        """The configured optimizer for each network, Adam for the detector, all with poly decay."""
        config = self.context.config.optimizer
        optimizers: dict[str, Optimizer] = {
            name: build_optimizer(config, self.groups_of({name: self.trained[name]}))
            for name in _NETWORKS
        }
        rate = self.settings.detector_learning_rate
        optimizers["detector"] = build_adam("detector", self.detector, rate)
        return optimizers

    def step(self, step: Step) -> Iterator[Phase]:
        labelled, crops = self.supervised_batch(step.batches), step.batches.get("unlabelled")
        images, size = labelled.images, len(labelled.images)
        counted = labelled.masks != self.context.splits.ignore_index
        if crops is not None:
            images = torch.cat([images, crops.weak])
            counted = torch.cat([counted, crops.valid])
        outputs, supervised = [], []
        finite = torch.ones((), dtype=torch.bool, device=images.device)
        for name in _NETWORKS:
            logits = step.modules[name](images)  # [B + U, K, S, S]
            loss, is_finite = self.supervised_loss(logits[:size], labelled.masks)
            finite = finite & is_finite & finite_outside_padding(logits, counted)
            outputs.append(Outputs(images, counted, logits.float().softmax(dim=1)))
            supervised.append(loss)
        first, second = (x.probabilities.detach() for x in outputs)
        # With the detector's graph, which waits for the third phase.
        raw1, raw2 = step.modules["detector"](images, first, second)
        finite = finite & all_finite(raw1) & all_finite(raw2)
        if not step.proceeds(finite):
            return
        known: Guidance | None = None
        if crops is not None:
            handled = handled_flaws(raw1, counted), handled_flaws(raw2, counted)
            known = guidance((first, second), handled, self.settings.flaw_threshold)
        for name, output, loss in zip(_NETWORKS, outputs, supervised, strict=True):
            yield self._network_phase(step.iteration, name, output, loss, known)
        counted = counted[:size]
        losses = []
        for raw, probabilities in ((raw1, first), (raw2, second)):
            target = true_flaws(probabilities[:size], labelled.masks, counted)
            losses.append(self.context.mean_over((raw[:size] - target).square(), counted))
        detector = (losses[0] + losses[1]) / 2
        total = self.settings.detector_weight * detector
        yield Phase(total, {"detector": detector}, optimizer="detector")

    def _network_phase(
        self,
        iteration: int,
        name: str,
        outputs: Outputs,
        supervised: Tensor,
        known: Guidance | None,
    ) -> Phase:
        """One network's phase; without guidance the supervised loss alone."""
        prefix = "" if name == "first" else f"{name}_"
        losses = {f"{prefix}supervised": supervised}
        if known is None:
            return Phase(supervised, losses, optimizer=name)
        images, counted, probabilities = outputs
        target = known.targets[_NETWORKS.index(name)]
        consistency = self.context.mean_over((probabilities - target).square().mean(dim=1), counted)
        corrected = torch.where(counted[:, None], probabilities, probabilities.detach())
        with frozen(self.detector):
            (flaws,) = self.detector(images, corrected)
        correction = self.context.mean_over(flaws.square() * known.both_flawed, counted)
        losses |= {f"{prefix}correction": correction, f"{prefix}consistency": consistency}
        ramp = ramp_after_warmup(self.context.config, iteration, self.settings.rampup)
        total = (
            supervised
            + self.settings.correction_weight * correction
            + ramp * self.settings.consistency_weight * consistency
        )
        metrics: dict[str, Tensor | float] = {}
        if name == "first":
            metrics["both_flawed"] = self.context.mean_over(known.both_flawed.float(), counted)
        return Phase(total, losses, metrics, name)
