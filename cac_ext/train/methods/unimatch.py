"""UniMatch (Yang et al., CVPR 2023): weak-to-strong consistency of images and of features."""

from __future__ import annotations

from collections.abc import Iterator

from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.methods.contract import MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.finite import finite_outside_padding
from cac_ext.train.methods.student import StudentMethod, Term
from cac_ext.train.methods.weak_to_strong import (
    confident_cross_entropy,
    labels_in_evaluation,
    mix_images,
    mix_labels,
    pseudo_labels,
)

_VERSIONS = 2  # strongly augmented


class UniMatch(StudentMethod):
    """FixMatch with two strong crops, and with the weak crop's perturbed features.

    ``cross entropy + unimatch.strong_weight * (L_s1 + L_s2) + unimatch.feature_weight * L_fp``.
    Each L is the cross entropy with the pseudo labels of the weak crop, over the pixels whose
    confidence is at least ``unimatch.confidence_threshold``, divided by the number of all pixels
    outside padding. L_s1 and L_s2 are on two strong versions of the crop, each with its own draw of
    colors and its own CutMix box (see `FixMatch`). L_fp is on the weak crop, whose maps between
    backbone and decoder lose channels at random (``unimatch.feature_dropout``) and are decoded
    together with the clean ones. Networks in one part lose channels of their features.

    It differs from the authors' code:

    * They halve the sum of all losses, which halves the learning rate. Here cross entropy on labels
      has the weight 1 in every method; the weights of the others relative to it are theirs.
    * They perturb the features of labelled crops too and do not use the result. Here only those of
      unlabelled crops are perturbed and decoded.
    * Dropout, augmentation, OHEM and warm-up: as `FixMatch` says.
    """

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context, context.config.unimatch.feature_dropout)

    def crop_streams(self) -> dict[str, StreamRequest]:
        cutmix = self.context.config.unimatch.cutmix
        return {
            "unlabelled": self.whole_crop_stream(strong=_VERSIONS, cutmix=cutmix),
            "partner": self.whole_crop_stream(strong=_VERSIONS, name="partner"),
        }

    def step(self, step: Step) -> Iterator[Phase]:
        crops: WholeCropBatch | None = step.batches.get("unlabelled")
        if crops is None:  # warm-up
            yield from self.phase(step, self.forward(step, None, None))
            return
        config, partner = self.context.config.unimatch, step.batches["partner"]
        threshold, processes = config.confidence_threshold, self.context.normalizing
        others = labels_in_evaluation(self.context.network, partner)  # [U, S, S]
        seen = self.forward(step, crops.weak, mix_images(crops, partner))
        _, weak, perturbed, strong, _ = seen.outputs
        assert weak is not None
        assert perturbed is not None
        assert strong is not None
        own = pseudo_labels(weak, crops.valid)  # [U, S, S]
        mixed = mix_labels(crops, own, others)  # [V, U, S, S]
        known = own.are_finite() & others.are_finite()
        terms = [
            Term(
                "features",
                config.feature_weight,
                confident_cross_entropy(perturbed, own, threshold, processes),
                known & finite_outside_padding(perturbed, crops.valid),
            )
        ]
        for version, logits in enumerate(strong.chunk(_VERSIONS)):
            targets = mixed.version(version)
            terms.append(
                Term(
                    f"strong{version + 1}",
                    config.strong_weight,
                    confident_cross_entropy(logits, targets, threshold, processes),
                    finite_outside_padding(logits, targets.valid),
                )
            )
        share = own.confident_share(threshold, self.context.processes)
        yield from self.phase(step, seen, terms, {"confident_share": share})
