"""A training step on random images, for the tests that look into one."""

from __future__ import annotations

import torch
from torch import nn


def balance_classes(model: nn.Module, pairs: dict[str, torch.Tensor]) -> None:
    """Makes the mean logit of each class zero over both views, by the classifier's bias.

    So no class is the most probable one everywhere: there are negatives of another pseudo label.
    """
    network = model.network
    with torch.no_grad():
        views = torch.cat([pairs["view1"], pairs["view2"]])
        logits = network.classifier(network.pool(network.features(views)))  # [2B, K, h, w]
        network.classifier.bias -= logits.mean(dim=(0, 2, 3))
