"""The directional contrastive loss as a module."""

from __future__ import annotations

from torch import Tensor, nn

from cac_ext._arguments import (
    as_ignore_index,
    as_number,
    as_temperature,
    require_flag,
    require_reduction,
)
from cac_ext.functional import directional_contrastive_loss
from cac_ext.negatives import PreparedNegatives


class DirectionalContrastiveLoss(nn.Module):
    """`cac_ext.directional_contrastive_loss` with its options fixed; arguments as there.

    A temperature given as `torch.nn.Parameter` is learned with the module's parameters.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        confidence_threshold: float = 0.75,
        reduction: str = "active_mean",
        normalize: bool = True,
        eps: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.temperature = as_temperature(temperature)
        self.confidence_threshold = as_number(confidence_threshold, "confidence_threshold")
        require_reduction(reduction)
        self.reduction = reduction
        require_flag(normalize, "normalize")
        self.normalize = normalize
        self.eps = as_number(eps, "eps")
        self.ignore_index = as_ignore_index(ignore_index)

    def forward(
        self,
        features1: Tensor,  # [A, C]
        features2: Tensor,  # [A, C]
        confidences1: Tensor,  # [A]
        confidences2: Tensor,  # [A]
        pseudo_labels1: Tensor,  # [A]
        pseudo_labels2: Tensor,  # [A]
        negatives: Tensor | PreparedNegatives,  # [N, C]
        negative_labels: Tensor | None = None,  # [N]
        weights: Tensor | None = None,  # [A]
    ) -> Tensor:
        return directional_contrastive_loss(
            features1,
            features2,
            confidences1,
            confidences2,
            pseudo_labels1,
            pseudo_labels2,
            negatives,
            negative_labels,
            temperature=self.temperature,
            confidence_threshold=self.confidence_threshold,
            weights=weights,
            reduction=self.reduction,
            normalize=self.normalize,
            eps=self.eps,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        tau = self.temperature
        return (
            f"temperature={tau.detach().item() if isinstance(tau, Tensor) else tau}, "
            f"confidence_threshold={self.confidence_threshold}, "
            f"reduction={self.reduction!r}, normalize={self.normalize}, eps={self.eps}"
        )
