"""Training methods: the contract (`contract.py`) and the registry of those shipped.

    cac          directional context-aware consistency, with every switch of the paper's Table 3
    cct          Cross-Consistency Training: auxiliary decoders, perturbed features
    ecs          Error-Correcting Supervision: a second network corrects the predictions
    fixmatch     confident predictions of weak crops are the labels of strong ones, with CutMix
    gct          two networks and a detector of their flaws (Guided Collaborative Training)
    mean_teacher a student learns the probabilities of its own running mean
    s4gan        a discriminator tells predictions from true masks, the network learns to pass
    sup_only     cross entropy on the labelled images
    unimatch     FixMatch with two strong crops and perturbed features

``method.directional_contrast`` adds the loss of `cac` to `fixmatch`, `mean_teacher` and `unimatch`.
``self_training.pseudo_labels`` adds a teacher's masks to any; ``weak.pseudo_labels`` adds
image-level labels to `cac` and `cct`.

A custom method needs no change here. Write a subclass of `Method` in ``my_method.py``, in the
current folder or in any package, and train it with ``method.name=my_method:MyMethod``. Its settings
are ``method.options.anything=...``; it finds them in ``context.config.method.options``.
"""

from __future__ import annotations

from collections.abc import Callable

from cac_ext.train.config import Config
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.ema import EvaluatedMean
from cac_ext.train.runtime.registry import find_builder

#: ``method.name`` -> "module:class", imported only when asked for.
METHODS = {
    "cac": "cac_ext.train.methods.cac:Cac",
    "cct": "cac_ext.train.methods.cct:Cct",
    "ecs": "cac_ext.train.methods.ecs:Ecs",
    "fixmatch": "cac_ext.train.methods.fixmatch:FixMatch",
    "gct": "cac_ext.train.methods.gct.method:Gct",
    "mean_teacher": "cac_ext.train.methods.mean_teacher:MeanTeacher",
    "s4gan": "cac_ext.train.methods.s4gan:S4gan",
    "sup_only": "cac_ext.train.methods.sup_only:SupOnly",
    "unimatch": "cac_ext.train.methods.unimatch:UniMatch",
}


def check_method(config: Config) -> None:
    """Run `Method.check` of the method that ``config.method.name`` names.

    Raises:
        ConfigError: there is no such method, or the run cannot work.
    """
    build = find_builder(config.method.name, METHODS, "method.name")
    if isinstance(build, type) and issubclass(build, Method):
        if config.method.directional_contrast and not build.takes_directional_contrast:
            raise ConfigError(
                f"method.directional_contrast: {config.method.name} does not take the directional "
                "contrastive loss; fixmatch, mean_teacher and unimatch do, and cac always has it"
            )
        if config.weak.pseudo_labels is not None and not build.takes_image_labels:
            raise ConfigError(
                f"weak.pseudo_labels: {config.method.name} does not learn from image-level labels; "
                "leave it out, or set method.name to cac or cct, which do"
            )
        build.check(config)


def build_method(
    context: MethodContext, build: Callable[[MethodContext], Method] | None = None
) -> Method:
    """Build the method that ``config.method.name`` names, or call ``build``.

    With ``run.ema_decay``, it is wrapped in an `EvaluatedMean`.

    Raises:
        ConfigError: the name is neither registered nor an importable "package.module:name", or the
            settings do not suit the method.
        TypeError: a custom method breaks the contract.
    """
    config = context.config.method
    if build is None:
        build = find_builder(config.name, METHODS, "method.name")
    if config.name in METHODS and config.options:
        raise ConfigError(
            f"method.options is for custom methods; {config.name} knows no "
            f"{', '.join(config.options)}"
        )
    method = build(context)
    if not isinstance(method, Method):
        raise TypeError(
            f"{config.name} must make a cac_ext.train.methods.Method, but made a "
            f"{type(method).__name__}"
        )
    if not method.trained:
        raise TypeError(f"{config.name} trains nothing: put its modules into Method.trained")
    decay = context.config.run.ema_decay
    return method if decay is None else EvaluatedMean(method, decay)


__all__ = [
    "METHODS",
    "Method",
    "MethodContext",
    "Phase",
    "Step",
    "StreamRequest",
    "build_method",
    "check_method",
]
