"""The loss on true masks: cross entropy, and what ``supervised`` adds to it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext.train.config import SupervisedConfig
from cac_ext.train.data import DatasetSplits
from cac_ext.train.errors import ConfigError
from cac_ext.train.runtime.distributed import ALONE, Processes

_SMALLEST_SUM = 1e-12  # of weights, to divide by


def cross_entropy(
    logits: Tensor,  # [B, K, H, W]
    masks: Tensor,  # [B, H, W]
    ignore_index: int,
    processes: Processes = ALONE,
) -> Tensor:
    """The mean over all pixels that are not ignored, a scalar; 0 if there are none.

    Averaged over the processes it is the mean over all their pixels.
    """
    counted = processes.mean_count((masks != ignore_index).sum())
    total = F.cross_entropy(logits, masks, ignore_index=ignore_index, reduction="sum")
    return total / counted


class SupervisedLoss:
    """``cross entropy + dice_weight * Dice``, ``[B, K, H, W]`` logits, ``[B, H, W]`` to a scalar.

    With ``class_weights`` the cross entropy is a weighted mean: the sum of ``weight * loss`` over
    the pixels, divided by the sum of their weights, as in `torch.nn.functional.cross_entropy`.

    With ``ohem_threshold`` only hard pixels count (online hard example mining, Shrivastava et al.,
    CVPR 2016): the true class has at most this probability. If they are fewer than ``ohem_share``
    of the batch, so many count, the hardest. Each process, and each part of a step, chooses among
    its own pixels.

    Dice is ``1 - 2 sum(p t) / sum(p + t)``, with the probabilities p of a class and its mask t over
    all pixels of the batch that are not ignored, averaged over the classes in the masks (after
    Milletari et al., 3DV 2016, with p for their p^2).

    The mean over the processes is the loss of all their pixels together.

    Raises:
        ConfigError: there is not one weight for each class.
    """

    def __init__(
        self, config: SupervisedConfig, splits: DatasetSplits, processes: Processes = ALONE
    ) -> None:
        weights = config.class_weights
        if weights is not None and len(weights) != splits.num_classes:
            raise ConfigError(
                f"supervised.class_weights has {len(weights)} numbers, but there are "
                f"{splits.num_classes} classes: {', '.join(splits.class_names)}"
            )
        self.config = config
        self.ignore_index = splits.ignore_index
        self.processes = processes
        self._weights: Tensor | None = None  # [K], on the device of the logits

    def __call__(self, logits: Tensor, masks: Tensor) -> Tensor:
        config = self.config
        if config.class_weights is None and config.ohem_threshold is None:
            loss = cross_entropy(logits, masks, self.ignore_index, self.processes)
        else:
            loss = self._chosen_cross_entropy(logits, masks)
        if config.dice_weight > 0:
            loss = loss + config.dice_weight * self._dice(logits, masks)
        return loss

    def _chosen_cross_entropy(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Weighted, and of hard pixels alone."""
        each = F.cross_entropy(logits, masks, ignore_index=self.ignore_index, reduction="none")
        counted = masks != self.ignore_index  # [B, H, W]
        weights = torch.ones_like(each)
        if self.config.class_weights is not None:
            weights = self._class_weights(logits)[torch.where(counted, masks, 0).long()]
        if self.config.ohem_threshold is not None:
            counted = counted & self._is_hard(each.detach(), counted)
        weights = torch.where(counted, weights, 0.0)
        divisor = self.processes.mean(weights.double().sum()).clamp(min=_SMALLEST_SUM).float()
        return torch.where(counted, weights * each, 0.0).sum() / divisor

    def _is_hard(self, each: Tensor, counted: Tensor) -> Tensor:
        """Pixels ``[B, H, W]`` whose cross entropy is large; one that is not finite is, too."""
        assert self.config.ohem_threshold is not None
        limit = -math.log(self.config.ohem_threshold)
        count = math.ceil(self.config.ohem_share * each.numel())
        least: Tensor | float = limit
        if count:
            values = each.masked_fill(~counted, -1.0).flatten()
            least = values.kthvalue(len(values) - count + 1).values.clamp(max=limit)
        return ~(each < least)

    def _class_weights(self, logits: Tensor) -> Tensor:
        # Copied to the device once: a copy in each step would wait for it.
        if self._weights is None or self._weights.device != logits.device:
            self._weights = torch.tensor(
                self.config.class_weights, dtype=torch.float32, device=logits.device
            )
        return self._weights

    def _dice(self, logits: Tensor, masks: Tensor) -> Tensor:
        counted = (masks != self.ignore_index)[:, None]  # [B, 1, H, W]
        ids = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
        truth = ((masks[:, None] == ids) & counted).float()  # [B, K, H, W]
        probabilities = torch.where(counted, logits.float().softmax(dim=1), 0.0)
        sums = torch.stack(
            [x.sum(dim=(0, 2, 3)) for x in (probabilities * truth, probabilities, truth)]
        )  # [3, K]
        both, predicted, true = self.processes.sum_with_gradient(sums)
        present = true > 0  # [K]
        scores = 2 * both / (predicted + true).clamp(min=_SMALLEST_SUM)
        return torch.where(present, 1 - scores, 0.0).sum() / present.sum().clamp(min=1)
