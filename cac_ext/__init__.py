"""Fused directional contrastive loss for semi-supervised semantic segmentation.

Source of the method: Lai et al., "Semi-supervised Semantic Segmentation with Directional
Context-aware Consistency", CVPR 2021.
"""

from cac_ext._load import __version__  # first: loads the operators, or says why it cannot

# isort: split

from cac_ext import ops, reference
from cac_ext.build_info import build_info
from cac_ext.functional import directional_contrastive_loss
from cac_ext.loss import DirectionalContrastiveLoss
from cac_ext.masked import masked_contrastive_loss, masked_logsumexp
from cac_ext.negatives import PreparedNegatives, prepare_negatives
from cac_ext.supervised import supervised_contrastive_loss

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
    "supervised_contrastive_loss",
]
