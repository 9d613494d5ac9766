"""One crop of an unlabelled image, weakly and strongly augmented (FixMatch, UniMatch, CutMix)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision import tv_tensors

from cac_ext.train.config import AugmentConfig
from cac_ext.train.data.augment import low_level_augmentation, normalize, pad, random_crop
from cac_ext.train.data.batches import WholeCropSample
from cac_ext.train.data.contract import Sample
from cac_ext.train.networks.normalization import IMAGENET, Normalization

_BOX_AREA = (0.02, 0.4)  # of the crop
_BOX_ASPECT = (0.3, 1 / 0.3)  # width over height


class WholeCropAugment:
    """Random scale, crop and mirroring, then several draws of low-level augmentation.

    A `Sample` to a `WholeCropSample`. All versions show the same pixels in the same place. With
    ``ignore_index``, samples have a mask (pseudo labels of `weak`), which is cropped with them.
    Nothing random depends on it.

    Args:
        config: sizes and probabilities; the scale is that of unlabelled images.
        strong: V, how many strong versions.
        cutmix: probability of a CutMix box (Yun et al., ICCV 2019), for each strong version.
        normalization: of the images, that of the network.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        strong: int = 1,
        cutmix: float = 0.0,
        ignore_index: int | None = None,
        normalization: Normalization = IMAGENET,
    ) -> None:
        self.config = config
        self.normalization = normalization
        self.ignore_index = ignore_index
        self.strong = strong
        self.cutmix = cutmix
        self.low_level = low_level_augmentation(config)

    def __call__(self, sample: Sample) -> WholeCropSample:
        size = self.config.crop_size
        image = tv_tensors.Image(sample["image"])
        scaled, top, left = random_crop(self.config, self.config.unlabelled_scale, image)
        crop = scaled.part(image, top, left, size, size)
        flipped = bool(torch.rand(()) < self.config.flip)
        crop = (crop.flip(-1) if flipped else crop).contiguous()
        strong = [self._padded(self.low_level(crop)) for _ in range(self.strong)]
        mask = None
        if self.ignore_index is not None:
            mask = scaled.part(tv_tensors.Mask(sample["mask"]), top, left, size, size)
            mask = mask.flip(-1) if flipped else mask
            mask = pad(mask.long(), size, size, self.ignore_index)
        valid = torch.ones(crop.shape[-2:], dtype=torch.bool)
        return WholeCropSample(
            self._padded(crop),
            torch.stack(strong) if strong else torch.zeros(0, len(crop), size, size),
            pad(valid, size, size, False),
            torch.stack([self._box(size) for _ in strong])
            if strong
            else torch.zeros(0, size, size, dtype=torch.bool),
            mask,
        )

    def _padded(self, crop: Tensor) -> Tensor:
        size = self.config.crop_size
        return pad(normalize(crop, self.normalization), size, size, 0.0)

    def _box(self, size: int) -> Tensor:
        """Where another crop is pasted, ``[S, S]`` bool."""
        box = torch.zeros(size, size, dtype=torch.bool)
        if torch.rand(()) >= self.cutmix:
            return box
        area = size**2 * float(torch.empty(()).uniform_(*_BOX_AREA))
        aspect = math.exp(float(torch.empty(()).uniform_(*map(math.log, _BOX_ASPECT))))
        width = min(size, max(1, round(math.sqrt(area * aspect))))
        height = min(size, max(1, round(math.sqrt(area / aspect))))
        top = int(torch.randint(size - height + 1, ()))
        left = int(torch.randint(size - width + 1, ()))
        box[top : top + height, left : left + width] = True
        return box
