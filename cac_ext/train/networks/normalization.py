"""How images become a network's input: the mean and deviation of each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cac_ext.train.config import DataConfig

#: Channel means and deviations of ImageNet, for images in [0, 1].
INPUT_MEAN = (0.485, 0.456, 0.406)
INPUT_STD = (0.229, 0.224, 0.225)
RGB = len(INPUT_MEAN)
#: Their means over the three channels, for images of another number of channels.
_ANY_MEAN, _ANY_STD = 0.449, 0.226


@dataclass(frozen=True)
class Normalization:
    """Mean and deviation of each channel of images in [0, 1].

    Raises:
        ValueError: there are not as many deviations as means, or none.
    """

    mean: tuple[float, ...] = INPUT_MEAN
    std: tuple[float, ...] = INPUT_STD

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"a normalization needs as many deviations as means, but got {len(self.std)} and "
                f"{len(self.mean)}"
            )

    @property
    def channels(self) -> int:
        """C, of the images."""
        return len(self.mean)

    @staticmethod
    def of(data: DataConfig) -> Normalization:
        """That of the section ``data``: its ``channels``, ``mean`` and ``std``."""
        usual = usual_normalization(data.channels)
        mean = usual.mean if data.mean is None else tuple(data.mean)
        return Normalization(mean, usual.std if data.std is None else tuple(data.std))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, ``[C, 1, 1]`` float32 each."""
        return (
            torch.tensor(self.mean)[:, None, None],
            torch.tensor(self.std)[:, None, None],
        )


#: Of RGB images, by default.
IMAGENET = Normalization()


def usual_normalization(channels: int) -> Normalization:
    """ImageNet's for three channels; its mean over the channels for another number."""
    if channels == RGB:
        return IMAGENET
    return Normalization((_ANY_MEAN,) * channels, (_ANY_STD,) * channels)
