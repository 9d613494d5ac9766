"""The savings that a user can program by hand in PyTorch, shared by the strong rivals.

Active anchors only, anchors and negatives sorted by label, loss and gradient from one pass over the
negatives. Each rival does that pass in another way (`Attend`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.cases import TEMPERATURE, Inputs


@dataclass
class Sorted:
    """Active anchors of both directions and all negatives, each sorted by label."""

    anchors: Tensor  # [M, C] unit vectors times 1 / temperature, in the compute type
    anchor_labels: Tensor  # [M]
    negatives: Tensor  # [N, C] unit vectors, in the compute type
    negative_labels: Tensor  # [N]
    classes: int

    def class_offsets(self, labels: Tensor) -> list[int]:
        """Bounds of each class in sorted labels: c is at ``[offsets[c], offsets[c + 1])``."""
        return [0, *labels.bincount(minlength=self.classes).cumsum(0).tolist()]


#: ``attend(sorted, with_gradient) -> sums [M], weighted [M, C] or None``: the sum of
#: exp(cos / temperature) over negatives of another class, and the negatives summed by that weight.
Attend = Callable[[Sorted, bool], tuple[Tensor, Tensor | None]]


def _normalize_(features: Tensor) -> Tensor:
    """Scales rows ``[R, C]`` to unit length in place; returns their lengths ``[R, 1]``."""
    norm = features.norm(dim=1, keepdim=True).clamp_(min=1e-12)
    features.div_(norm)
    return norm


def _gather(view1: Tensor, view2: Tensor, rows: Tensor) -> Tensor:
    """Rows ``[R, C]`` float32 of the views ``[A, C]``; row A + i is row i of the second."""
    A, C = view1.shape
    second = rows >= A
    result = view1.new_empty((len(rows), C), dtype=torch.float32)
    result[~second] = view1[rows[~second]].float()
    result[second] = view2[rows[second] - A].float()
    return result


class OnePassLoss(torch.autograd.Function):
    """Loss of both directions ``[2, A]``; the gradient is formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        features1: Tensor,  # [A, C]
        features2: Tensor,  # [A, C]
        active: Tensor,  # [2, A] bool
        labels: Tensor,  # [2, A]
        negatives: Tensor,  # [N, C]
        negative_labels: Tensor,  # [N]
        attend: Attend,
    ) -> Tensor:
        A, C = features1.shape
        rows = active.flatten().nonzero().squeeze(1)  # [M], below A: view 1 -> view 2
        rows = rows[labels.flatten()[rows].argsort()]
        anchors = _gather(features1, features2, rows)  # [M, C]
        norm = _normalize_(anchors)  # [M, 1]
        positives = _gather(features2, features1, rows)  # [M, C]
        _normalize_(positives)
        positive_exp = ((anchors * positives).sum(1, keepdim=True) / TEMPERATURE).exp()  # [M, 1]

        bank_labels, order = negative_labels.sort()
        bank = negatives[order]  # [N, C], the only copy
        _normalize_(bank)
        anchor_labels = labels.flatten()[rows]
        sums, weighted = attend(
            Sorted(
                anchors=(anchors / TEMPERATURE).to(negatives.dtype),
                anchor_labels=anchor_labels,
                negatives=bank,
                negative_labels=bank_labels,
                classes=int(torch.cat([anchor_labels, bank_labels[-1:]]).max()) + 1,
            ),
            any(ctx.needs_input_grad[:2]),
        )
        sums = sums[:, None]  # [M, 1]
        loss = sums.new_zeros(2 * A)
        loss[rows] = (sums / positive_exp).log1p().squeeze(1)
        if weighted is not None:
            total = sums + positive_exp
            # dl/d(unit anchor), projected onto the tangent plane of the sphere, over the length.
            gradient = (weighted - sums * positives).div_(total * TEMPERATURE)  # [M, C]
            radial = (gradient * anchors).sum(1, keepdim=True)
            gradient.addcmul_(radial, anchors, value=-1).div_(norm)
            ctx.save_for_backward(gradient, rows)
            ctx.like = (A, C, features1.dtype)
        return loss.view(2, A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient, rows = ctx.saved_tensors
        A, C, dtype = ctx.like
        result = gradient.new_zeros((2 * A, C), dtype=dtype)
        result[rows] = (gradient * loss_gradient.flatten()[rows, None]).to(dtype)
        return result[:A], result[A:], None, None, None, None, None


def one_pass_loss(inputs: Inputs, attend: Attend) -> Tensor:
    active = inputs.active()  # [2, A]
    labels = torch.stack([inputs.pseudo_labels1, inputs.pseudo_labels2])
    loss = OnePassLoss.apply(
        inputs.features1,
        inputs.features2,
        active,
        labels,
        inputs.negatives,
        inputs.negative_labels,
        attend,
    )
    return (loss.sum(1) / active.sum(1).clamp(min=1)).sum()
