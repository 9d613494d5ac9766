"""Fused directional contrastive loss for semi-supervised semantic segmentation.

Source of the method: Lai et al., "Semi-supervised Semantic Segmentation with Directional
Context-aware Consistency", CVPR 2021.
"""

from cac_ext._torch_check import check_torch_version, explain_load_failure

check_torch_version()
try:
    from cac_ext import _C  # noqa: F401  (registers the operators)
except ImportError as error:
    raise explain_load_failure(error) from error

from cac_ext import ops, reference
from cac_ext._version import __version__
from cac_ext.build_info import build_info
from cac_ext.functional import (
    directional_contrastive_loss,
    masked_contrastive_loss,
    masked_logsumexp,
)
from cac_ext.loss import DirectionalContrastiveLoss
from cac_ext.negatives import PreparedNegatives, prepare_negatives

__all__ = [
    "DirectionalContrastiveLoss",
    "PreparedNegatives",
    "__version__",
    "build_info",
    "directional_contrastive_loss",
    "masked_contrastive_loss",
    "masked_logsumexp",
    "ops",
    "prepare_negatives",
    "reference",
]
