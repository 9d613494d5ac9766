"""The contrastive loss over chunks of negatives, of which one is held at a time.

With ``x_k = sum of r(a, n) / r(a, p)`` over the negatives of chunk k, its loss is
``l_k = log(1 + x_k)``, and the loss over all negatives is ``l = log(1 + sum of x_k)`` (Eq. 5). So
two losses merge into ``log(e^a + e^b - 1)``, and the gradient of ``l`` is the sum of the gradients
of ``l_k``, each times ``e^(l_k - l)``. Both are exact, in one pass, and like a running log-sum-exp
they need the loss and the gradient so far alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: ``(features1 [A, C], features2 [A, C], negatives [N, C], labels [N])`` to losses ``[2, A]``. Row
#: 0 depends on ``features1`` alone, row 1 on ``features2``, each anchor on its own row.
LossesOfChunk = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def losses_over_chunks(
    losses_of: LossesOfChunk,
    features1: Tensor,  # [A, C]
    features2: Tensor,  # [A, C]
    chunks: Iterable[tuple[Tensor, Tensor]],
) -> Tensor:
    """Losses ``[2, A]`` over the negatives of all chunks together, with their gradient.

    Args:
        losses_of: the contrastive losses over one chunk.
        features1: see `LossesOfChunk`.
        features2: see `LossesOfChunk`.
        chunks: negatives ``[N_k, C]`` and labels ``[N_k]``; at least one chunk, which may be empty.
    """
    return _OverChunks.apply(features1, features2, losses_of, chunks)


class _OverChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features1: Tensor,
        features2: Tensor,
        losses_of: LossesOfChunk,
        chunks: Iterable[tuple[Tensor, Tensor]],
    ) -> Tensor:
        total: Tensor | None = None  # [2, A]
        gradients: list[Tensor] = []  # 2 of [A, C]
        dtype = features1.dtype
        for negatives, labels in chunks:
            with torch.enable_grad():
                first, second = features1.detach(), features2.detach()
                first.requires_grad_()
                second.requires_grad_()
                losses = losses_of(first, second, negatives, labels)  # [2, A]
                parts = list(torch.autograd.grad(losses.sum(), (first, second)))
            dtype, losses = losses.dtype, losses.detach().double()
            if total is None:
                total, gradients = losses, parts
                continue
            merged = _merge(total, losses)
            kept, added = (total - merged).exp(), (losses - merged).exp()  # [2, A]
            for view, gradient in enumerate(gradients):
                gradient *= kept[view, :, None].to(gradient.dtype)
                gradient += parts[view] * added[view, :, None].to(gradient.dtype)
            total = merged
        if total is None:
            raise ValueError("chunks must hold at least one chunk of negatives, which may be empty")
        ctx.save_for_backward(*gradients)
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        first, second = ctx.saved_tensors
        return first * grad[0, :, None], second * grad[1, :, None], None, None


def _merge(a: Tensor, b: Tensor) -> Tensor:
    """``log(e^a + e^b - 1)`` of losses of at least 0, without overflow or cancellation."""
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    return high + torch.log1p((low - high).exp() * -torch.expm1(-low))
