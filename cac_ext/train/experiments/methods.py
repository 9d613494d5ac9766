"""Named methods: the overrides of each, so that they can be compared.

The first are the rows of the paper's Table 3: `sup_only`, `self_training`, and experiments I to
VIII, of which VIII, `cac`, is the whole method. Ticks that the table leaves open follow section
4.3. `weak` is the whole method with image-level labels, as in Table 5. The others are further
methods.
"""

from __future__ import annotations

from collections.abc import Sequence

from cac_ext.train.config import nearest
from cac_ext.train.errors import ConfigError

_NO_DIRECTION = "method.directional=false"
_NO_SAMPLING = "method.negative_sampling=false"
_NO_FILTERING = "method.positive_filtering=false"
_NO_CONTEXT = "method.iou_range=[1.0,1.0]"
_NO_PROJECTOR = "method.projector=false"
_AND_CAC = "method.directional_contrast=true"

#: Name -> overrides of a configuration. Rows that name no method change `cac`.
METHODS: dict[str, tuple[str, ...]] = {
    "sup_only": ("method.unsupervised_weight=0",),
    "self_training": ("method.unsupervised_weight=0", "self_training.pseudo_labels=auto"),
    "l2": ("method.loss=l2", _NO_DIRECTION, _NO_SAMPLING, _NO_FILTERING),  # I
    "contrastive": (_NO_DIRECTION, _NO_SAMPLING, _NO_FILTERING),  # II
    "directional": (_NO_SAMPLING, _NO_FILTERING),  # III
    "no_filtering": (_NO_FILTERING,),  # IV
    "no_direction": (_NO_DIRECTION,),  # V
    "no_context": (_NO_CONTEXT,),  # VI
    "no_projector": (_NO_PROJECTOR,),  # VII
    "cac": (),  # VIII
    "cct": ("method.name=cct",),
    "weak": ("weak.pseudo_labels=auto",),  # VIII with image-level labels (section 3.5)
    "gct": ("method.name=gct",),
    "ecs": ("method.name=ecs",),
    "mean_teacher": ("method.name=mean_teacher",),
    "fixmatch": ("method.name=fixmatch",),
    "unimatch": ("method.name=unimatch",),
    "mean_teacher_cac": ("method.name=mean_teacher", _AND_CAC),
    "fixmatch_cac": ("method.name=fixmatch", _AND_CAC),
    "unimatch_cac": ("method.name=unimatch", _AND_CAC),
    "s4gan": ("method.name=s4gan",),
}

#: Names of methods in tables and pictures.
TITLES = {
    "sup_only": "SupOnly",
    "self_training": "ST",
    "cac": "CAC (ours)",
    "cct": "CCT",
    "weak": "CAC + image labels (ours)",
    "gct": "GCT",
    "ecs": "ECS",
    "mean_teacher": "Mean Teacher",
    "fixmatch": "FixMatch",
    "unimatch": "UniMatch",
    "mean_teacher_cac": "Mean Teacher + CAC",
    "fixmatch_cac": "FixMatch + CAC",
    "unimatch_cac": "UniMatch + CAC",
    "s4gan": "S4GAN",
}


def method_overrides(name: str) -> Sequence[str]:
    """The ``key=value`` overrides of a named method."""
    if name not in METHODS:
        raise ConfigError(
            f"there is no method {name!r}{nearest(name, METHODS)}; allowed are {', '.join(METHODS)}"
        )
    overrides = METHODS[name]
    if any(override.startswith("method.name=") for override in overrides):
        return overrides
    return ("method.name=cac", *overrides)


def title(name: str) -> str:
    """The name of a method in tables and pictures."""
    return TITLES.get(name, name)
