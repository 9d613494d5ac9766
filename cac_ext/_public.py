"""The package's names, which `cac_ext/__init__.py` exports: importing them imports torch."""

from __future__ import annotations

import cac_ext.ops as ops
import cac_ext.reference as reference
from cac_ext.build_info import build_info, cpu_peak
from cac_ext.functional import directional_contrastive_loss
from cac_ext.loss import DirectionalContrastiveLoss
from cac_ext.masked import masked_contrastive_loss, masked_logsumexp
from cac_ext.negatives import PreparedNegatives, prepare_negatives
from cac_ext.supervised import supervised_contrastive_loss

__all__ = [
    "DirectionalContrastiveLoss",
    "PreparedNegatives",
    "build_info",
    "cpu_peak",
    "directional_contrastive_loss",
    "masked_contrastive_loss",
    "masked_logsumexp",
    "ops",
    "prepare_negatives",
    "reference",
    "supervised_contrastive_loss",
]
