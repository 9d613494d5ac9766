"""The seven perturbations of features, one for each auxiliary decoder.

Each turns features ``[B, F, h, w]`` into perturbed ones; random numbers come from torch's global
generator of the device. Dropout of channels is ``F.dropout2d``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cac_ext.train.methods.cct.decoders import Decode
from cac_ext.train.methods.cct.objects import Boxes, random_rectangles

_DROPPED_ABOVE = (0.7, 0.9)  # of the largest mean activation
_STEP = 0.001  # of the features' norm: the move at which the divergence is differentiated


class Guide(NamedTuple):
    """The main decoder's prediction on unlabelled images, without gradient and dropout."""

    probabilities: Tensor  # [B, K, 2^n h, 2^n w]
    counted: Tensor  # [B, 2^n h, 2^n w] bool, cells on the image
    valid: Tensor  # [B, 1, h, w] bool, features on the image
    foreground: Tensor  # [B, 1, h, w] bool, valid features of a class that is not the background
    boxes: Boxes | None  # of the predicted objects, if a decoder needs them


def add_noise(features: Tensor, size: float) -> Tensor:
    """``z + z n`` with n uniform in [-size, size]; one draw for all images of the batch."""
    noise = torch.empty_like(features[:1]).uniform_(-size, size)
    return features + features * noise


def drop_active_positions(features: Tensor, valid: Tensor) -> Tensor:
    """Zeroes the positions whose mean activation is a large share of the image's largest one.

    The share is drawn from [0.7, 0.9], once for the batch. If all mean activations of an image are
    negative, nothing is dropped.
    """
    activation = features.detach().float().mean(dim=1, keepdim=True)  # [B, 1, h, w]
    low, high = _DROPPED_ABOVE
    share = low + (high - low) * torch.rand((), device=features.device)
    largest = torch.where(valid, activation, -torch.inf).amax(dim=(2, 3), keepdim=True)
    return features * (activation < share * largest)


def cut_objects(features: Tensor, guide: Guide, share: float) -> Tensor:
    """Zeroes a random rectangle in the box of each predicted object (guided cutout)."""
    assert guide.boxes is not None
    h, w = features.shape[-2:]
    return features * ~random_rectangles(guide.boxes, h, w, share)[:, None]


def mask_context(features: Tensor, guide: Guide) -> Tensor:
    """Keeps the predicted objects alone."""
    return features * guide.foreground


def mask_objects(features: Tensor, guide: Guide) -> Tensor:
    """Keeps everything but the predicted objects."""
    return features * ~guide.foreground


def move_adversarially(features: Tensor, guide: Guide, decode: Decode, radius: float) -> Tensor:
    """Adds `adversarial_move`; the gradient passes through the features alone."""
    return features + adversarial_move(features.detach(), guide.counted, decode, radius)


@torch.compiler.disable
def adversarial_move(features: Tensor, counted: Tensor, decode: Decode, radius: float) -> Tensor:
    """The move that changes a decoder's prediction most, of length ``radius`` in each image.

    One power iteration (Miyato et al., TPAMI 2018): the gradient, by a small random move, of the
    divergence of the moved prediction from the decoder's own. It is computed in float32 under mixed
    precision too. No gradient reaches the decoder's weights.
    """
    with torch.autocast(features.device.type, enabled=False), torch.enable_grad():
        still = features.float()
        with torch.no_grad():
            clean = decode(still).softmax(dim=1)  # [B, K, 2^n h, 2^n w]
        size = _STEP * still.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        move = (size * _unit(torch.rand_like(still) - 0.5)).requires_grad_()
        moved = decode(still + move).log_softmax(dim=1)
        divergence = F.kl_div(moved, clean, reduction="none").sum(dim=1)
        total = torch.where(counted, divergence, 0.0).sum()
        (gradient,) = torch.autograd.grad(total, move)
    return radius * _unit(gradient)


def _unit(x: Tensor) -> Tensor:
    """``[B, F, h, w]``, each image scaled to length 1."""
    return F.normalize(x.flatten(1), dim=1).view_as(x)
