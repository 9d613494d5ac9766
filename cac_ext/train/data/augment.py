"""Augmentation of labelled images and of the two views of unlabelled ones (paper section 4.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from cac_ext.train.config import AugmentConfig
from cac_ext.train.data.batches import CropPairSample, LabelledSample, ViewSample
from cac_ext.train.data.contract import Sample
from cac_ext.train.data.crop_pair import Crop, CropPairSampler
from cac_ext.train.data.hue import View
from cac_ext.train.data.rescale import Scaled, draw_scale
from cac_ext.train.networks.normalization import IMAGENET, RGB, Normalization

_BLUR_SIGMA = (0.1, 2.0)
_BLUR_KERNEL = 5  # pixels
_BLUR_REACH = _BLUR_KERNEL // 2 + 1  # the least size that it blurs


def normalize(image: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """uint8 ``[C, H, W]`` to a network's input: float32, by each channel's mean and deviation.

    Raises:
        ValueError: the image has another number of channels.
    """
    if len(image) != normalization.channels:
        raise ValueError(
            f"an image of {len(image)} channels cannot be normalized by the mean of "
            f"{normalization.channels}: give the network's normalization (data.channels)"
        )
    scaled = VF.to_dtype(image, torch.float32, scale=True)
    return VF.normalize(scaled, normalization.mean, normalization.std).as_subclass(Tensor)


def denormalize(image: Tensor, normalization: Normalization = IMAGENET) -> Tensor:
    """The inverse of `normalize`, ``[C, H, W]``, clamped to [0, 1] for display."""
    mean, std = (part.to(image) for part in normalization.tensors())
    return (image * std + mean).clamp(0, 1)


def low_level_augmentation(config: AugmentConfig) -> Callable[[Tensor], Tensor]:
    """Color jitter, gray and blur (paper section 4.1) of uint8 ``[C, H, W]``, H and W at least 1.

    Saturation, hue and gray exist in RGB alone. Images of other than three channels get brightness
    and contrast, each channel around its own mean, and the blur. It draws from torch's CPU
    generator.
    """
    augment = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(*config.jitter_strength)], p=config.jitter),
            v2.RandomGrayscale(p=config.gray),
            v2.RandomApply([v2.GaussianBlur(_BLUR_KERNEL, _BLUR_SIGMA)], p=config.blur),
        ]
    )
    brightness, contrast, _, _ = config.jitter_strength
    shade = v2.RandomApply([v2.ColorJitter(brightness, contrast)], p=config.jitter)
    blur = v2.RandomApply([v2.GaussianBlur(_BLUR_KERNEL, _BLUR_SIGMA)], p=config.blur)

    def augment_channels(image: Tensor) -> Tensor:
        # As a batch of gray images, which share what is drawn.
        return blur(shade(tv_tensors.Image(image[:, None]))).as_subclass(Tensor)[:, 0]

    def apply(image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        # The blur mirrors at the border, which takes three rows and columns: edges are repeated.
        missing = [0, 0, max(_BLUR_REACH - width, 0), max(_BLUR_REACH - height, 0)]
        if any(missing):
            image = VF.pad(image, missing, padding_mode="edge")
        if len(image) == RGB:
            augmented = augment(image.as_subclass(View)).as_subclass(Tensor)
        else:
            augmented = augment_channels(image.as_subclass(Tensor))
        return augmented[:, :height, :width]

    return apply


class LabelledAugment:
    """Random scale, crop and mirroring: a `Sample` with a mask to a `LabelledSample`.

    If the scaled image is smaller than the crop, the rest is the mean color and `ignore_index`.
    """

    def __init__(
        self, config: AugmentConfig, ignore_index: int, normalization: Normalization = IMAGENET
    ) -> None:
        self.config = config
        self.ignore_index = ignore_index
        self.normalization = normalization

    def __call__(self, sample: Sample) -> LabelledSample:
        size = self.config.crop_size
        image, mask = tv_tensors.Image(sample["image"]), tv_tensors.Mask(sample["mask"])
        scaled, top, left = random_crop(self.config, self.config.labelled_scale, image)
        image, mask = (scaled.part(whole, top, left, size, size) for whole in (image, mask))
        image = image.contiguous()  # a file's pixels are [H, W, 3]: every step would be slower
        if torch.rand(()) < self.config.flip:
            image, mask = image.flip(-1), mask.flip(-1)
        image = pad(normalize(image, self.normalization), size, size, 0.0)
        return LabelledSample(image, pad(mask.long(), size, size, self.ignore_index))


class CropPairAugment:
    """Two crops of one randomly scaled image, each with its own low-level augmentation.

    A `Sample` to a `CropPairSample`. The overlap's positions account for mirroring and leave out
    features centered on padding.

    With ``ignore_index``, samples have a mask (pseudo labels of `weak`), and each view holds its
    part of it. If samples have a true mask (`truth.WithTruth`), each view holds the true class at
    the center of each feature. Nothing random depends on either.
    """

    def __init__(
        self,
        config: AugmentConfig,
        sampler: CropPairSampler,
        ignore_index: int | None = None,
        normalization: Normalization = IMAGENET,
    ) -> None:
        self.config = config
        self.normalization = normalization
        self.sampler = sampler
        self.with_masks = ignore_index is not None
        self.fill = 0 if ignore_index is None else ignore_index  # of masks, on padding
        self.low_level = low_level_augmentation(config)

    def __call__(self, sample: Sample) -> CropPairSample:
        image = tv_tensors.Image(sample["image"])
        scaled = draw_scale(self.config.unlabelled_scale, self.config.base_size, image)
        height, width = scaled.height, scaled.width
        padded_height = max(height, self.sampler.min_size)
        padded_width = max(width, self.sampler.min_size)
        pair = self.sampler(padded_height, padded_width)

        # Both views are cut from one scaled part: their overlap is equal bit for bit.
        size, crops = self.sampler.crop_size, (pair.crop1, pair.crop2)
        top, left = min(crop.top for crop in crops), min(crop.left for crop in crops)
        bottom, right = max(crop.top for crop in crops), max(crop.left for crop in crops)
        region = (top, left, bottom + size - top, right + size - left)
        part = scaled.part(image, *region)
        mask, truth = None, sample.get("truth")
        if self.with_masks:
            mask = scaled.part(tv_tensors.Mask(sample["mask"]), *region)

        valid1, valid2 = (self._valid(crop, height, width) for crop in crops)
        shared = valid1.flatten()[pair.overlap1] & valid2.flatten()[pair.overlap2]  # [L]

        def view(crop: Crop, valid: Tensor, overlap: Tensor) -> ViewSample:
            inside = replace(crop, top=crop.top - top, left=crop.left - left)  # in the part
            return ViewSample(
                self._image(part, inside),
                valid,
                overlap[shared],
                None if mask is None else self._mask(mask, inside),
                None if truth is None else self._truth(truth, scaled, crop, valid),
            )

        return CropPairSample(
            view(pair.crop1, valid1, pair.overlap1), view(pair.crop2, valid2, pair.overlap2)
        )

    def _image(self, part: Tensor, crop: Crop) -> Tensor:
        """The augmented image of a crop, ``[C, S, S]`` float32."""
        shown = self._cut(part, crop).contiguous()
        if shown.numel() == 0:  # a crop that lies wholly in the padding
            return self._finish(shown.float(), crop, 0)
        return self._finish(normalize(self.low_level(shown), self.normalization), crop, 0)

    def _mask(self, mask: Tensor, crop: Crop) -> Tensor:
        """The mask of a crop, ``[S, S]`` int64."""
        return self._finish(self._cut(mask, crop).long(), crop, self.fill)

    def _cut(self, part: Tensor, crop: Crop) -> Tensor:
        size = self.sampler.crop_size
        return part[..., crop.top : crop.top + size, crop.left : crop.left + size]

    def _finish(self, shown: Tensor, crop: Crop, fill: int) -> Tensor:
        padded = pad(shown, self.sampler.crop_size, self.sampler.crop_size, fill)
        return padded.flip(-1) if crop.flip else padded

    def _valid(self, crop: Crop, height: int, width: int) -> Tensor:
        """Which features of a crop are centered on the image itself, ``[h, w]`` bool."""
        rows, columns = self._centers(crop)
        return (rows <= height - 1)[:, None] & (columns <= width - 1)[None, :]

    def _truth(self, truth: Tensor, scaled: Scaled, crop: Crop, valid: Tensor) -> Tensor:
        """The true class at the center of each feature of a crop, ``[h, w]``.

        A center between pixels takes the pixel above and on the left, of the image rather than of
        the crop, so that views agree at their overlap however they are mirrored.
        """
        rows, columns = (centers.floor().long() for centers in self._centers(crop))
        rows, columns = rows.clamp(max=scaled.height - 1), columns.clamp(max=scaled.width - 1)
        return torch.where(valid, scaled.pixels(truth, rows, columns), -1)

    def _centers(self, crop: Crop) -> tuple[Tensor, Tensor]:
        """Rows ``[h]`` and columns ``[w]`` of the image on which a crop's features are centered."""
        size, grid = self.sampler.crop_size, self.sampler.grid
        centers = grid.offset + grid.stride * torch.arange(grid.size(size))  # in the crop
        columns = size - 1 - centers if crop.flip else centers
        return crop.top + centers, crop.left + columns


def random_crop(
    config: AugmentConfig, scale: tuple[float, float], image: Tensor
) -> tuple[Scaled, int, int]:
    """A random scale, and top and left of a random crop of the scaled image."""
    scaled = draw_scale(scale, config.base_size, image)
    top = int(torch.randint(max(scaled.height - config.crop_size, 0) + 1, ()))
    left = int(torch.randint(max(scaled.width - config.crop_size, 0) + 1, ()))
    return scaled, top, left


def pad(part: Tensor, height: int, width: int, fill: float) -> Tensor:
    """Pads at the bottom and on the right, to at least this size."""
    missing = [0, max(width - part.shape[-1], 0), 0, max(height - part.shape[-2], 0)]
    plain = part.as_subclass(Tensor)
    return torch.nn.functional.pad(plain, missing, value=fill) if any(missing) else plain
