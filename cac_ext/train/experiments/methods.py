"""Named methods: the overrides of each, so that they can be compared.

They are the rows of the paper's Table 3: `sup_only`, `self_training` and experiments I to VIII;
VIII, `cac`, is the whole method. Ticks that the table leaves open follow section 4.3. `weak` is the
whole method with image-level labels, as in Table 5.
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

#: Name -> overrides of a configuration.
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
    "weak": ("weak.pseudo_labels=auto",),  # VIII with image-level labels (section 3.5)
    "s4gan": ("method.name=s4gan",),
}

#: Names of methods in tables and pictures.
TITLES = {
    "sup_only": "SupOnly",
    "self_training": "ST",
    "cac": "CAC (ours)",
    "weak": "CAC + image labels (ours)",
    "s4gan": "S4GAN",
}


def method_overrides(name: str) -> Sequence[str]:
    """The ``key=value`` overrides of a named method."""
    if name not in METHODS:
        raise ConfigError(
            f"there is no method {name!r}{nearest(name, METHODS)}; allowed are {', '.join(METHODS)}"
        )
    return METHODS[name]


def title(name: str) -> str:
    """The name of a method in tables and pictures."""
    return TITLES.get(name, name)
