"""Fused directional contrastive loss for semi-supervised semantic segmentation.

Source of the method: Lai et al., "Semi-supervised Semantic Segmentation with Directional
Context-aware Consistency", CVPR 2021.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_ext._version import __version__

__all__ = [
    "DirectionalContrastiveLoss",
    "PreparedNegatives",
    "__version__",
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


def _is_the_command() -> bool:
    """Whether this process is ``cac-ext`` or ``python -m cac_ext.train``."""
    # With -m, Python runs this file before it knows the path of the module to run.
    program = sys.argv[0] if sys.argv else ""
    by_module = program == "-m" and "cac_ext.train" in sys.orig_argv
    return by_module or Path(program).stem == "cac-ext"


# `import cac_ext` registers the operators, or says why they do not load. That imports torch, which
# takes a second, and the command's help needs none of it: there the first name that is used does.
if TYPE_CHECKING or not _is_the_command():
    from cac_ext._public import (
        DirectionalContrastiveLoss,
        PreparedNegatives,
        build_info,
        cpu_peak,
        directional_contrastive_loss,
        masked_contrastive_loss,
        masked_logsumexp,
        ops,
        prepare_negatives,
        reference,
        supervised_contrastive_loss,
    )
else:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = import_module("cac_ext._public")
        # All at once: importing cac_ext.build_info binds that name to the module, not the function.
        globals().update({each: getattr(public, each) for each in public.__all__})
        return globals()[name]
