"""Cross-Consistency Training as a method: streams, the step, and what a configuration needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.data.whole_crops import WholeCropAugment
from cac_ext.train.errors import ConfigError, listed
from cac_ext.train.methods.cac import weak_weight
from cac_ext.train.methods.cct.network import KINDS, OBJECT_KINDS, CrossConsistencyNetwork
from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest
from cac_ext.train.methods.ramp import ramp_after_warmup


class Cct(Method):
    """Cross-Consistency Training; see the package's docstring."""

    takes_image_labels = True

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        config, splits = context.config, context.splits
        _require_background(config, splits)
        self.model = CrossConsistencyNetwork(
            context.network,
            splits.num_classes,
            config.cct,
            splits.background_class,
            splits.ignore_index,
        )
        self.trained["model"] = self.model

    @classmethod
    def check(cls, config: Config) -> None:
        if not any(getattr(config.cct, kind) for kind in KINDS):
            raise ConfigError(
                f"cct trains no auxiliary decoder: set one of "
                f"{listed([f'cct.{kind}' for kind in KINDS])} to 1 or more"
            )

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.groups_of(dict(self.model.named_children()))

    def streams(self) -> dict[str, StreamRequest]:
        config, splits = self.context.config, self.context.splits
        unlabelled = self.whole_crop_stream(strong=0)
        if config.weak.pseudo_labels:
            unlabelled = replace(
                unlabelled,
                images=pseudo_labelled(splits, config.weak.pseudo_labels, "weak.pseudo_labels"),
                augment=WholeCropAugment(
                    config.augment,
                    strong=0,
                    ignore_index=splits.ignore_index,
                    normalization=self.context.network.normalization,
                ),
            )
        return {**self.supervised_streams(), "unlabelled": unlabelled}

    def step(self, step: Step) -> Iterator[Phase]:
        """``cross entropy + weight * consistency + weak.weight * weak``, both with a ramp."""
        config = self.context.config
        labelled = self.supervised_batch(step.batches)
        crops: WholeCropBatch | None = step.batches.get("unlabelled")
        model = step.modules["model"]
        if crops is None:
            logits, auxiliary = model(labelled.images)
        else:
            logits, auxiliary = model(labelled.images, crops.weak, crops.valid, crops.masks)
        total, finite = self.supervised_loss(logits, labelled.masks)
        losses = {"supervised": total}
        if auxiliary is not None:
            weight = config.cct.weight * ramp_after_warmup(
                config, step.iteration, config.cct.rampup
            )
            losses["consistency"] = self._mean(auxiliary.distances, auxiliary.pixels)
            total = total + weight * losses["consistency"]
            if auxiliary.weak is not None and auxiliary.weak_pixels is not None:
                losses["weak"] = self._mean(auxiliary.weak, auxiliary.weak_pixels)
                total = total + weak_weight(config, step.iteration) * losses["weak"]
        if step.proceeds(finite & total.detach().isfinite()):
            yield Phase(total, losses)

    def _mean(self, sums: Tensor, pixels: Tensor) -> Tensor:
        """The mean of D decoders' sums ``[D]`` over all processes' pixels; 0 if there are none."""
        return sums.mean() / self.context.normalizing.mean_count(pixels)


def _require_background(config: Config, splits: DatasetSplits) -> None:
    """ConfigError if a decoder asks for objects and the data set knows no background."""
    asking = [f"cct.{kind}" for kind in OBJECT_KINDS if getattr(config.cct, kind)]
    if asking and splits.background_class is None:
        raise ConfigError(
            f"{listed(asking)}: these decoders lose predicted objects or what is around them, but "
            f"no class of {config.data.name} is the background. Set "
            f"{' '.join(f'{key}=0' for key in asking)}, or data.background_class=ID if a class of "
            "custom data is the background"
        )
