"""FixMatch (Sohn et al., NeurIPS 2020) for segmentation, with CutMix."""

from __future__ import annotations

from collections.abc import Iterator

from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.methods.contract import Phase, Step, StreamRequest
from cac_ext.train.methods.finite import finite_outside_padding
from cac_ext.train.methods.student import StudentMethod, Term
from cac_ext.train.methods.weak_to_strong import (
    confident_cross_entropy,
    labels_in_evaluation,
    mix_images,
    mix_labels,
    pseudo_labels,
)


class FixMatch(StudentMethod):
    """The network's confident prediction of a weak crop is the label of a strong crop.

    ``cross entropy + fixmatch.weight * L_s``, with L_s the cross entropy on the strong crops, over
    the pixels whose pseudo label has a confidence of at least ``fixmatch.confidence_threshold``,
    divided by the number of all pixels outside padding. A CutMix box of another, independently
    drawn crop is pasted into a strong crop with probability ``fixmatch.cutmix``; pseudo label,
    confidence and padding come from the same box. The other crop is predicted in evaluation mode
    before the step; labelled and weak crops are predicted in training mode as one batch, strong
    crops as another.

    The source classifies images. This is the method as the authors of UniMatch (Yang et al., CVPR
    2023) use it for segmentation. It differs from their code:

    * They halve the sum of both losses, which halves the learning rate. Here cross entropy on
      labels has the weight 1 in every method.
    * Where the network has dropout in front of its classifier (``network.dropout``), predictions
      that are trained have it, pseudo labels do not. Theirs has none.
    * Crops, jitter and blur are those of ``augment``, the same for all methods; theirs are scaled
      by 0.5 to 2 and jittered by (0.5, 0.5, 0.5, 0.25). The aspect of a box is drawn
      log-uniformly, so that wide and high boxes are equally frequent.
    * The cross entropy on labels is the mean over all pixels for Cityscapes too, where they use the
      hardest pixels alone (OHEM, here ``supervised.ohem_threshold``).
    * In the warm-up (``schedule.warmup_epochs``) the network learns from labels alone; they have
      none.
    """

    def crop_streams(self) -> dict[str, StreamRequest]:
        cutmix = self.context.config.fixmatch.cutmix
        return {
            "unlabelled": self.whole_crop_stream(strong=1, cutmix=cutmix),
            "partner": self.whole_crop_stream(strong=1, name="partner"),
        }

    def step(self, step: Step) -> Iterator[Phase]:
        crops: WholeCropBatch | None = step.batches.get("unlabelled")
        if crops is None:  # warm-up
            yield from self.phase(step, self.forward(step, None, None))
            return
        config, partner = self.context.config.fixmatch, step.batches["partner"]
        others = labels_in_evaluation(self.context.network, partner)  # [U, S, S]
        seen = self.forward(step, crops.weak, mix_images(crops, partner))
        _, weak, _, strong, _ = seen.outputs
        assert weak is not None
        assert strong is not None
        own = pseudo_labels(weak, crops.valid)  # [U, S, S]
        mixed = mix_labels(crops, own, others)  # [1, U, S, S]
        targets = mixed.version(0)
        loss = confident_cross_entropy(
            strong, targets, config.confidence_threshold, self.context.normalizing
        )
        finite = own.are_finite() & others.are_finite()
        finite = finite & finite_outside_padding(strong, targets.valid)
        yield from self.phase(
            step,
            seen,
            [Term("strong", config.weight, loss, finite)],
            {
                "confident_share": own.confident_share(
                    config.confidence_threshold, self.context.processes
                )
            },
        )
