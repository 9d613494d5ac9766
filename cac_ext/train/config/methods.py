"""Settings of the methods beside `cac`, one class each; defaults are those of the method's authors.

The text below a field is its documentation, as in `schema.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cac_ext.train.config.bounds import above, below, number, within

_SHARE = within(0, 1)
_WEIGHT = within(0, 1000)  # of a loss beside the supervised one, which has 1
_COUNT = within(0, 100)
_RATE = above(0, 1000)


@dataclass(frozen=True)
class MeanTeacherConfig:
    """Mean Teacher (Tarvainen and Valpola, NeurIPS 2017) for segmentation."""

    weight: float = number(100.0, _WEIGHT)
    """Weight of the squared distance between the class probabilities of student and teacher, a mean
    over pixels and classes; 100 as in TorchSemiSeg."""
    rampup: float = number(0.1, _SHARE)
    """Share of the iterations in which, after the warm-up, the weight rises from near 0 to its full
    value. 0: the full value at once, as in TorchSemiSeg."""
    ema_decay: float = number(0.99, below(1))
    """Share of the teacher's weights that each step keeps; the first steps keep less."""


@dataclass(frozen=True)
class FixMatchConfig:
    """FixMatch (Sohn et al., NeurIPS 2020) for segmentation, as in UniMatch's repository."""

    weight: float = number(1.0, _WEIGHT)
    """Weight of the cross entropy on strongly augmented crops."""
    confidence_threshold: float = number(0.95, _SHARE)
    """Confidence below which a pseudo label is ignored; 0.95 for VOC and COCO, 0 for Cityscapes."""
    cutmix: float = number(0.5, _SHARE)
    """Probability of a CutMix box in a strongly augmented crop."""


@dataclass(frozen=True)
class UniMatchConfig:
    """UniMatch (Yang et al., CVPR 2023): two strong views and a perturbation of features."""

    strong_weight: float = number(0.25, _WEIGHT)
    """Weight of the cross entropy on each of the two strongly augmented crops."""
    feature_weight: float = number(0.5, _WEIGHT)
    """Weight of the cross entropy on the weak crop with perturbed features."""
    confidence_threshold: float = number(0.95, _SHARE)
    """Confidence below which a pseudo label is ignored; 0.95 for VOC and COCO, 0 for Cityscapes."""
    cutmix: float = number(0.5, _SHARE)
    """Probability of a CutMix box in each strongly augmented crop."""
    feature_dropout: float = number(0.5, below(1))
    """Probability with which a channel of the backbone's maps is dropped."""


@dataclass(frozen=True)
class CctConfig:
    """Cross-Consistency Training (Ouali et al., CVPR 2020): auxiliary decoders, one perturbation
    of the features each."""

    weight: float = number(30.0, _WEIGHT)
    """Weight of the squared distance between the class probabilities of auxiliary decoders and main
    decoder, a mean over decoders, pixels and classes."""
    rampup: float = number(0.1, _SHARE)
    """Share of the iterations in which, after the warm-up, the weight rises from near 0 to its full
    value."""
    dropout: int = number(6, _COUNT)
    """Number of decoders whose features lose channels at random."""
    dropout_rate: float = number(0.5, below(1))
    """Probability with which such a channel is dropped."""
    feature_noise: int = number(6, _COUNT)
    """Number of decoders whose features are multiplied by 1 + n with uniform noise n."""
    noise_range: float = number(0.3, _SHARE)
    """Largest size of that noise."""
    feature_drop: int = number(6, _COUNT)
    """Number of decoders that lose the most active positions: those above a share of the largest
    mean activation, drawn between 0.7 and 0.9."""
    cutout: int = number(6, _COUNT)
    """Number of decoders that lose a rectangle inside each predicted object."""
    cutout_share: float = number(0.4, _SHARE)
    """Sides of the rectangle relative to those of the object's bounding box."""
    context_masking: int = number(2, _COUNT)
    """Number of decoders that see the predicted objects alone, without their context."""
    object_masking: int = number(2, _COUNT)
    """Number of decoders that see the context alone, without the predicted objects."""
    adversarial: int = number(2, _COUNT)
    """Number of decoders whose features move in the direction that changes their prediction most
    (virtual adversarial training)."""
    adversarial_radius: float = number(2.0, within(0, 1000))
    """Length of that move in the features of a whole image."""


@dataclass(frozen=True)
class S4ganConfig:
    """S4GAN (Mittal et al., TPAMI 2021): a discriminator tells predictions from true masks."""

    feature_matching_weight: float = number(0.1, _WEIGHT)
    """Weight of the distance between the discriminator's mean features of true masks and of
    predictions."""
    self_training_weight: float = number(1.0, _WEIGHT)
    """Weight of the cross entropy on predictions that the discriminator takes for true masks."""
    score_threshold: float = number(0.6, _SHARE)
    """Score of the discriminator above which an image is used for self-training; 0.6 for VOC, 0.7
    for Cityscapes."""
    discriminator_learning_rate: float = number(1e-4, _RATE)
    """Initial learning rate of the discriminator (Adam); 1e-4 for VOC, 1e-5 for Cityscapes."""


@dataclass(frozen=True)
class GctConfig:
    """Guided Collaborative Training (Ke et al., ECCV 2020): two networks and a flaw detector."""

    correction_weight: float = number(1.0, _WEIGHT)
    """Weight of the flaw correction: the squared flaws where both networks are flawed."""
    consistency_weight: float = number(100.0, _WEIGHT)
    """Weight of the dynamic consistency: the squared distance to the less flawed network."""
    rampup: float = number(0.1, _SHARE)
    """Share of the iterations in which, after the warm-up, the consistency's weight rises from near
    0 to its full value."""
    flaw_threshold: float = number(0.6, _SHARE)
    """Flaw above which a prediction counts as flawed; an image's largest flaw is 1."""
    detector_weight: float = number(10.0, _WEIGHT)
    """Weight of the flaw detector's own loss."""
    detector_learning_rate: float = number(1e-4, _RATE)
    """Initial learning rate of the flaw detector (Adam). It decays as the others do, and does not
    grow with the number of GPUs."""


@dataclass(frozen=True)
class EcsConfig:
    """Error-Correcting Supervision (Mendel et al., ECCV 2020): a second network corrects the first.

    Its authors have published no code: every default is ours (`methods/ecs.py` says why)."""

    correction_weight: float = number(0.1, _WEIGHT)
    """Weight of the loss that asks the corrector to find the predictions on labelled images
    correct."""
    unlabelled_weight: float = number(1.0, _WEIGHT)
    """Weight of the cross entropy on the corrected predictions of unlabelled images."""
    rampup: float = number(0.1, _SHARE)
    """Share of the iterations in which, after the warm-up, both weights rise to their full
    value."""
    corrector_learning_rate: float = number(1e-4, _RATE)
    """Initial learning rate of the corrector (Adam)."""
