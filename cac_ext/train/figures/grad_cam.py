"""Grad-CAM of one feature position: the regions that it depends on (paper Fig. 1, its [46])."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.layers import upsample


def grad_cam(network: SegmentationNetwork, view: Tensor, position: int) -> tuple[Tensor, int]:
    """Contributions of the regions of a view to the class score of one feature position.

    They are the activations times the gradient of the score, summed over channels, with negative
    sums set to 0. The gradient is not averaged over positions, as for the score of a whole image:
    that would also mark regions that this position does not see. The activations are the last ones
    of the encoder's ``backbone``, behind which context is gathered; without a backbone, the first
    ones as fine as the encoder's features.

    Args:
        network: in evaluation mode.
        view: ``[3, S, S]``, normalized, on the network's device.
        position: flat, in the pooled features ``[h, w]``.

    Returns:
        Contributions ``[S, S]`` with maximum 1 (all 0 if no region supports the class), and the
        class: the most probable one at the position.
    """
    backbone = getattr(network.encoder, "backbone", None)
    with torch.enable_grad(), _Recorded(network.encoder, backbone) as recorded:
        features = network.features(view[None].requires_grad_())
        scores = network.classifier(network.pool(features))[0].flatten(1)[:, position]  # [K]
        class_id = int(scores.argmax())
        activations = recorded.choose(features)  # [1, F', h', w']
        (gradient,) = torch.autograd.grad(scores[class_id], activations)
    contributions = (gradient * activations.detach()).sum(dim=1, keepdim=True).relu()
    side = view.shape[-1]
    stride = -(-side // activations.shape[-1])
    offset = (stride - 1) / 2 if network.grid.offset else 0.0
    pixels = upsample(contributions.float(), stride, offset, view.shape[-2:])[0, 0]  # [S, S]
    return (pixels / pixels.max().clamp(min=1e-30)).cpu(), class_id


class _Recorded:
    """A context that records the maps ``[B, F, h, w]`` that modules of an encoder return."""

    def __init__(self, encoder: nn.Module, backbone: nn.Module | None) -> None:
        # Blocks, not single layers: in front of a normalization, contributions cancel out.
        blocks = [module for module in encoder.modules() if any(module.children())]
        self.modules = blocks if backbone is None else [backbone]
        self.of_backbone = backbone is not None
        self.maps: list[Tensor] = []

    def __enter__(self) -> _Recorded:
        self.hooks = [module.register_forward_hook(self._record) for module in self.modules]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _record(self, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Mapping):
            output = list(output.values())
        maps = output if isinstance(output, list | tuple) else [output]
        self.maps += [part for part in maps if isinstance(part, Tensor) and part.ndim == 4]

    def choose(self, features: Tensor) -> Tensor:
        """The activations to read contributions from; the features themselves if none fit."""
        if self.of_backbone:  # the deepest map: the last among the coarsest
            return min(reversed(self.maps), key=lambda part: part.shape[-1], default=features)
        fits = [part for part in self.maps if part.shape[-2:] == features.shape[-2:]]
        return next(iter(fits), features)
