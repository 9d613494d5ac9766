"""Which regions a pixel's features depend on: Grad-CAM of one position (paper Fig. 1, its [46])."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.layers import upsample


def grad_cam(network: SegmentationNetwork, view: Tensor, position: int) -> tuple[Tensor, int]:
    """Contributions of a view's regions to the class score of one of its feature positions.

    Activations times the gradient of the score, summed over channels, negative sums set to 0. The
    gradient stays at its place: averaged over all places, as for the score of a whole image, it
    would also mark regions that this position does not see. The activations are the last of the
    encoder's ``backbone``, behind which the context is gathered; of an encoder without, the first
    that are as fine as its features.

    Args:
        network: in evaluation mode.
        view: ``[3, S, S]``, normalised, on the network's device.
        position: flat, in the pooled features ``[h, w]``.

    Returns:
        Contributions ``[S, S]``, largest 1 (all 0 where nothing speaks for the class), and the
        class, the most probable one at the position.
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
    """Remembers the maps ``[B, F, h, w]`` that the modules of an encoder return meanwhile."""

    def __init__(self, encoder: nn.Module, backbone: nn.Module | None) -> None:
        # Blocks before single layers: in front of a normalisation, contributions cancel out.
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
        """What the contributions are read from; the features themselves where there is no other."""
        if self.of_backbone:  # the deepest: no finer than the others, and the last
            return min(reversed(self.maps), key=lambda part: part.shape[-1], default=features)
        fits = [part for part in self.maps if part.shape[-2:] == features.shape[-2:]]
        return next(iter(fits), features)
