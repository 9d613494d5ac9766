"""S4GAN: a discriminator tells predictions from true masks, and the network learns to pass.

After Mittal, Tatarchenko and Brox, *Semi-Supervised Semantic Segmentation with High- and Low-level
Consistency*, TPAMI 2021. S is the segmentation network, D the discriminator. x are labelled crops
with masks y, u unlabelled crops, and (r, y_r) a second, independent batch of labelled crops.
``onehot(y)`` is zero in every class where y is ignored, ``softmax(S(u))`` is zero on padding::

    phi, score = D(class maps, image)       # phi: 512 features of a whole crop; score in (0, 1)
    phi_p, score_p = D(softmax(S(u)), u)
    phi_t, score_t = D(onehot(y_r), r)

    supervised       = cross entropy(S(x), y)
    feature_matching = mean over 512 of |mean phi_t - mean phi_p|       # means over the batch
    self_training    = cross entropy(S(u), argmax S(u))     # crops with score_p > score_threshold
    total            = supervised + feature_matching_weight * feature_matching
                                  + self_training_weight * self_training
    discriminator    = (mean -log(1 - score_p) + mean -log(score_t)) / 2

The network's optimizer takes a step on ``total`` with D's weights fixed, then Adam one on
``discriminator`` with the predictions fixed that were made before the network's step. D is in
training mode throughout, as in the authors' code: its dropout is active when it scores predictions.

Differences from the authors' code (``train_s4GAN.py`` of sud0301/semisup-semseg), and why:

* D sees images on the fixed scale from 0 to 1. There, true images are scaled by the largest and
  smallest values of another batch, so images alone tell real from predicted.
* Class maps are zero and images have the mean color on padding, in predictions as in true masks.
  There, padding of predictions holds probabilities, which tells them apart, and self-training uses
  its pixels. Here, padding counts in no loss.
* The second batch of labelled crops is scaled like unlabelled crops
  (``augment.unlabelled_scale``), so that D cannot go by the scale. There, all crops have one scale.
* S sees labelled and unlabelled crops in one forward pass; there in two. With batch normalization,
  its statistics cover both.
* Any network with its own dropout, optimizer and schedule; there DeepLabv2 without dropout. D's
  mean covers a map of any size. In ``schedule.warmup_epochs``, S learns from labels alone and D
  rests; there is no warm-up in the authors' code (0 is like it), except that its very first step
  lacks self-training.
* With several processes, means cover the crops of all of them.

The image classifier that the authors add in a second branch (MLMT) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from cac_ext.train.config import Config
from cac_ext.train.data.augment import LabelledAugment
from cac_ext.train.data.batches import LabelledBatch, WholeCropBatch
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.finite import all_finite
from cac_ext.train.methods.frozen import frozen
from cac_ext.train.networks.normalization import IMAGENET, Normalization
from cac_ext.train.optimizer import build_adam
from cac_ext.train.runtime.seeding import seeded

_CHANNELS = (64, 128, 256, 512)  # of D's convolutions, each of which halves the map
_SMALLEST_CROP = 2 ** len(_CHANNELS)  # pixels


class Judgement(NamedTuple):
    """What the discriminator says of B crops."""

    features: Tensor  # [B, 512] float32
    logits: Tensor  # [B] float32, of the score

    @property
    def scores(self) -> Tensor:
        """``[B]`` in (0, 1): 1 for a true mask, 0 for a prediction; without gradient."""
        return self.logits.detach().sigmoid()


class Discriminator(nn.Module):
    """Judges class maps together with their images.

    Args:
        num_classes: K.
        dropout: probability of dropping a channel behind each convolution but the last.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, num_classes: int, dropout: float = 0.5, normalization: Normalization = IMAGENET
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = num_classes + normalization.channels
        for outputs in _CHANNELS:
            layers.append(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            layers.append(nn.Dropout2d(dropout))
            inputs = outputs
        self.convolutions = nn.Sequential(*layers[:-1])
        self.score = nn.Linear(inputs, 1)
        # Buffers, because making them in each step would make the host wait for a GPU.
        mean, std = normalization.tensors()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, maps: Tensor, images: Tensor) -> Judgement:
        """Class maps ``[B, K, S, S]`` and normalized images ``[B, C, S, S]`` of the same crops."""
        pixels = images * self.std + self.mean  # in [0, 1], whatever the batch
        features = self.convolutions(torch.cat([maps, pixels], dim=1))
        features = features.float().mean(dim=(2, 3))
        return Judgement(features, self.score(features).float().squeeze(1))


class S4gan(Method):
    """Feature matching and gated self-training beside the supervised loss."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.settings = context.config.s4gan
        with seeded(context.config.seed, "discriminator", 0):
            self.discriminator = Discriminator(
                context.splits.num_classes, normalization=context.network.normalization
            )
        self.trained["network"] = context.network
        self.trained["discriminator"] = self.discriminator

    @classmethod
    def check(cls, config: Config) -> None:
        if config.augment.crop_size < _SMALLEST_CROP:
            raise ConfigError(
                f"augment.crop_size is {config.augment.crop_size}, but the discriminator of s4gan "
                f"needs crops of at least {_SMALLEST_CROP} pixels"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.groups_of({"network": self.context.network})

    def build_optimizers(self) -> dict[str, Optimizer]:
        rate = self.settings.discriminator_learning_rate
        adam = build_adam("discriminator", self.discriminator, rate)
        return {**super().build_optimizers(), "adam": adam}

    def streams(self) -> dict[str, StreamRequest]:
        return {
            **self.supervised_streams(),
            "unlabelled": self.whole_crop_stream(strong=0),
            "true": self._true_stream(),
        }

    def _true_stream(self) -> StreamRequest:
        """Labelled crops for the discriminator, drawn apart from those of the supervised loss."""
        config, splits = self.context.config, self.context.splits
        augment = replace(config.augment, labelled_scale=config.augment.unlabelled_scale)
        return replace(
            self._supervised_stream(splits.labelled, "labelled"),
            augment=LabelledAugment(
                augment, splits.ignore_index, self.context.network.normalization
            ),
            name="true masks",
            first_iteration=config.warmup_iterations,
        )

    def step(self, step: Step) -> Iterator[Phase]:
        """The phases of the module's docstring, by the optimizers ``network`` and ``adam``."""
        labelled = self.supervised_batch(step.batches)
        crops: WholeCropBatch | None = step.batches.get("unlabelled")
        if crops is None:  # warm-up
            supervised, finite = self.supervised_loss(
                step.modules["network"](labelled.images), labelled.masks
            )
            if step.proceeds(finite):
                yield Phase(supervised, {"supervised": supervised})
            return

        # One forward pass of all images, as DDP and batch statistics need.
        logits = step.modules["network"](torch.cat([labelled.images, crops.weak]))
        supervised, _ = self.supervised_loss(logits[: len(labelled.images)], labelled.masks)
        predicted = logits[len(labelled.images) :]  # [U, K, S, S]
        maps = predicted.softmax(dim=1) * crops.valid[:, None]
        true: LabelledBatch = step.batches["true"]
        true_maps = self.one_hot(true.masks)
        with frozen(self.discriminator):
            judged = self.discriminator(maps, crops.weak)
            with torch.no_grad():
                judged_true = self.discriminator(true_maps, true.images)
        selected = judged.scores > self.settings.score_threshold  # [U]
        losses = {
            "supervised": supervised,
            "feature_matching": self.feature_matching(judged_true.features, judged.features),
            "self_training": self.self_training(predicted, crops.valid, selected),
        }
        total = (
            supervised
            + self.settings.feature_matching_weight * losses["feature_matching"]
            + self.settings.self_training_weight * losses["self_training"]
        )
        if not step.proceeds(all_finite(logits) & total.detach().isfinite()):
            return
        yield Phase(total, losses, {"self_training_share": selected.float().mean()})

        judged = step.modules["discriminator"](
            torch.cat([maps.detach(), true_maps]), torch.cat([crops.weak, true.images])
        )
        score_predicted, score_true = judged.scores.split([len(maps), len(true_maps)])
        loss = discriminator_loss(judged.logits, predictions=len(maps))
        metrics = {"score_predicted": score_predicted.mean(), "score_true": score_true.mean()}
        yield Phase(loss, {"discriminator": loss}, metrics, optimizer="adam")

    def one_hot(self, masks: Tensor) -> Tensor:
        """``[B, S, S]`` to ``[B, K, S, S]`` float32; 0 in all classes where the mask is ignored."""
        splits = self.context.splits
        classes = torch.arange(splits.num_classes, device=masks.device)[:, None, None]
        known = masks != splits.ignore_index
        return ((masks[:, None] == classes) & known[:, None]).float()

    def feature_matching(self, true: Tensor, predicted: Tensor) -> Tensor:
        """Mean distance of the mean features, ``[R, 512]`` and ``[U, 512]`` to a scalar.

        The means cover the crops of all processes; averaged over them, so does the result.
        """
        difference = true.mean(dim=0) - predicted.mean(dim=0)  # [512], of this process
        sign = self.context.normalizing.mean(difference).sign()
        return (sign * difference).mean()

    def self_training(self, logits: Tensor, valid: Tensor, selected: Tensor) -> Tensor:
        """Cross entropy with the most probable class, on the valid pixels of selected crops.

        ``[U, K, S, S]``, ``[U, S, S]`` bool and ``[U]`` bool to a scalar: 0 if none is selected.
        """
        used = selected[:, None, None] & valid
        classes = logits.detach().argmax(dim=1)
        targets = torch.where(used, classes, self.context.splits.ignore_index)
        return self.cross_entropy(logits, targets)[0]


def discriminator_loss(logits: Tensor, predictions: int) -> Tensor:
    """``(mean -log(1 - score) of the first crops + mean -log(score) of the others) / 2``.

    Args:
        logits: of the scores, ``[U + R]``.
        predictions: U, how many crops in front show predictions.
    """
    of_predictions, of_true = logits[:predictions], logits[predictions:]
    return (F.softplus(of_predictions).mean() + F.softplus(-of_true).mean()) / 2
