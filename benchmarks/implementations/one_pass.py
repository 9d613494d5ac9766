"""What a user can save by hand in PyTorch, shared by the strong rivals.

Active anchors only, anchors and negatives sorted by label, loss and gradient from one pass over the
negatives. How that pass is done (`attend`) is each rival's own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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


#: ``attend(sorted, with_gradient) -> sums [M], weighted [M, C] or None``: the sum of
#: exp(cos / temperature) over negatives of another class, and the sum of the negatives so weighted.
Attend = Callable[[Sorted, bool], tuple[Tensor, Tensor | None]]


def _sort_by_label(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    labels, order = labels.sort()
    return features[order], labels, order


class OnePassLoss(torch.autograd.Function):
    """Loss of both directions ``[2, A]``; the gradient is formed in the forward pass."""

    @staticmethod
    def forward(ctx, features1, features2, active, labels, negatives, negative_labels, attend):
        A, C = features1.shape
        with_gradient = any(ctx.needs_input_grad[:2])
        rows = active.flatten().nonzero().squeeze(1)  # [M], below A: view 1 -> view 2
        rows = rows[labels.flatten()[rows].argsort()]
        both = torch.cat([features1, features2])  # [2A, C]
        raw = both[rows].float()  # [M, C]
        norm = raw.norm(dim=1, keepdim=True).clamp_(min=1e-12)  # [M, 1]
        anchors = raw.div_(norm)
        positives = F.normalize(both[(rows + A) % (2 * A)].float(), dim=1)  # [M, C]
        positive_exp = ((anchors * positives).sum(1, keepdim=True) / TEMPERATURE).exp()  # [M, 1]

        bank, bank_labels, _ = _sort_by_label(F.normalize(negatives, dim=1), negative_labels)
        anchor_labels = labels.flatten()[rows]
        sums, weighted = attend(
            Sorted(
                anchors=(anchors / TEMPERATURE).to(negatives.dtype),
                anchor_labels=anchor_labels,
                negatives=bank,
                negative_labels=bank_labels,
                classes=int(torch.cat([anchor_labels, bank_labels[-1:]]).max()) + 1,
            ),
            with_gradient,
        )
        sums = sums[:, None]  # [M, 1]
        loss = both.new_zeros(2 * A, dtype=torch.float32)
        loss[rows] = (sums / positive_exp).log1p().squeeze(1)
        if with_gradient:
            total = sums + positive_exp
            # dl/d(unit anchor); then onto the tangent plane of the sphere, divided by the length.
            gradient = (weighted - sums * positives).div_(total * TEMPERATURE)  # [M, C]
            radial = (gradient * anchors).sum(1, keepdim=True)
            gradient.addcmul_(radial, anchors, value=-1).div_(norm)
            ctx.save_for_backward(gradient, rows)
            ctx.like = (A, C, features1.dtype)
        return loss.view(2, A)

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient):
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
