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
from cac_ext.train.data.crop_pair import CropPairSampler, View
from cac_ext.train.data.rescale import Scaled, draw_scale

#: Channel means and deviations of ImageNet, for inputs in [0, 1]; every network is fed so.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_BLUR_SIGMA = (0.1, 2.0)
_BLUR_KERNEL = 5  # pixels
_BLUR_REACH = _BLUR_KERNEL // 2 + 1  # the least size that it blurs


def normalise(image: Tensor) -> Tensor:
    """uint8 ``[3, H, W]`` to what a network takes: float32, ImageNet's mean and deviation."""
    return VF.normalize(VF.to_dtype(image, torch.float32, scale=True), MEAN, STD).as_subclass(
        Tensor
    )


def denormalise(image: Tensor) -> Tensor:
    """What `normalise` made, ``[3, H, W]``, to values in [0, 1] that can be shown."""
    mean, std = (image.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (image * std + mean).clamp(0, 1)


def low_level_augmentation(config: AugmentConfig) -> Callable[[Tensor], Tensor]:
    """Colour jitter, grey and blur (paper section 4.1) of uint8 ``[3, H, W]``, H and W at least 1.

    It draws from torch's CPU generator.
    """
    augment = v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(*config.jitter_strength)], p=config.jitter),
            v2.RandomGrayscale(p=config.gray),
            v2.RandomApply([v2.GaussianBlur(_BLUR_KERNEL, _BLUR_SIGMA)], p=config.blur),
        ]
    )

    def apply(image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        # The blur mirrors at the border and needs three rows and columns: edges are repeated.
        missing = [0, 0, max(_BLUR_REACH - width, 0), max(_BLUR_REACH - height, 0)]
        if any(missing):
            image = VF.pad(image, missing, padding_mode="edge")
        return augment(image)[:, :height, :width]

    return apply


class LabelledAugment:
    """Random scale, crop and mirroring of an image and its mask.

    A sample to a `LabelledSample`. Where the scaled image is
    smaller than the crop, the rest is the mean colour and `ignore_index`.
    """

    def __init__(self, config: AugmentConfig, ignore_index: int) -> None:
        self.config = config
        self.ignore_index = ignore_index

    def __call__(self, sample: dict) -> LabelledSample:
        size = self.config.crop_size
        image, mask = tv_tensors.Image(sample["image"]), tv_tensors.Mask(sample["mask"])
        scaled = draw_scale(self.config.labelled_scale, self.config.base_size, image)
        top = int(torch.randint(max(scaled.height - size, 0) + 1, ()))
        left = int(torch.randint(max(scaled.width - size, 0) + 1, ()))
        image, mask = (scaled.part(whole, top, left, size, size) for whole in (image, mask))
        if torch.rand(()) < self.config.flip:
            image, mask = image.flip(-1), mask.flip(-1)
        image = pad(normalise(image), size, size, 0.0)
        return LabelledSample(image, pad(mask.long(), size, size, self.ignore_index))


class CropPairAugment:
    """Two crops of one randomly scaled image, each with its own low-level augmentation.

    A sample to a `CropPairSample`. Mirroring is already undone in the overlap's positions, and
    features centred on padding are left out of it.

    With ``ignore_index``, samples have a mask (pseudo labels of `weak`), and the views hold what
    each sees of it. Of samples with a true mask to measure by (`truth.WithTruth`), the views hold
    the true class where each feature is centred. Nothing random depends on it.
    """

    def __init__(
        self, config: AugmentConfig, sampler: CropPairSampler, ignore_index: int | None = None
    ) -> None:
        self.config = config
        self.sampler = sampler
        self.ignore_index = ignore_index
        self.low_level = low_level_augmentation(config)

    def __call__(self, sample: dict) -> CropPairSample:
        image = tv_tensors.Image(sample["image"])
        scaled = draw_scale(self.config.unlabelled_scale, self.config.base_size, image)
        height, width = scaled.height, scaled.width
        padded_height = max(height, self.sampler.min_size)
        padded_width = max(width, self.sampler.min_size)
        pair = self.sampler(padded_height, padded_width)

        # Both views from one scaled part: what they share is the same in both, bit for bit.
        size = self.sampler.crop_size
        top = min(pair.view1.top, pair.view2.top)
        left = min(pair.view1.left, pair.view2.left)
        region = (
            top,
            left,
            max(pair.view1.top, pair.view2.top) + size - top,
            max(pair.view1.left, pair.view2.left) + size - left,
        )
        image = scaled.part(image, *region)
        mask, truth = None, sample.get("truth")
        if self.ignore_index is not None:
            mask = scaled.part(tv_tensors.Mask(sample["mask"]), *region)

        valid1, valid2 = (self._valid(view, height, width) for view in (pair.view1, pair.view2))
        seen = valid1.flatten()[pair.overlap1] & valid2.flatten()[pair.overlap2]
        views = []
        for view, valid, overlap in (
            (pair.view1, valid1, pair.overlap1),
            (pair.view2, valid2, pair.overlap2),
        ):
            shown = replace(view, top=view.top - top, left=view.left - left)  # in the part
            views.append(
                ViewSample(
                    self._view(image, shown),
                    valid,
                    overlap[seen],
                    None if mask is None else self._mask_of_view(mask, shown),
                    None if truth is None else self._truth_of_view(truth, scaled, view, valid),
                )
            )
        return CropPairSample(*views)

    def _mask_of_view(self, mask: Tensor, view: View) -> Tensor:
        size = self.sampler.crop_size
        crop = mask[view.top : view.top + size, view.left : view.left + size].long()
        crop = pad(crop, size, size, self.ignore_index)
        return crop.flip(-1) if view.flip else crop

    def _view(self, image: Tensor, view: View) -> Tensor:
        size = self.sampler.crop_size
        crop = image[:, view.top : view.top + size, view.left : view.left + size]
        inside = crop.numel() > 0  # False for a view that lies wholly in the padding
        crop = normalise(self.low_level(crop)) if inside else crop.float()
        crop = pad(crop, size, size, 0.0)
        return crop.flip(-1) if view.flip else crop

    def _valid(self, view: View, height: int, width: int) -> Tensor:
        """Which features of a view are centred on the image itself, ``[h, w]`` bool."""
        rows, columns = self._centres(view)
        return (rows <= height - 1)[:, None] & (columns <= width - 1)[None, :]

    def _truth_of_view(self, truth: Tensor, scaled: Scaled, view: View, valid: Tensor) -> Tensor:
        """The true class where each feature of a view is centred, ``[h, w]``.

        A centre between pixels takes the pixel above and on the left, of the image rather than of
        the view, so that views agree at their overlap however they are mirrored.
        """
        rows, columns = (centres.floor().long() for centres in self._centres(view))
        rows, columns = rows.clamp(max=scaled.height - 1), columns.clamp(max=scaled.width - 1)
        return torch.where(valid, scaled.pixels(truth, rows, columns), -1)

    def _centres(self, view: View) -> tuple[Tensor, Tensor]:
        """Rows ``[h]`` and columns ``[w]`` of the image on which a view's features are centred."""
        size, grid = self.sampler.crop_size, self.sampler.grid
        centres = grid.offset + grid.stride * torch.arange(grid.size(size))  # in the crop
        columns = size - 1 - centres if view.flip else centres
        return view.top + centres, view.left + columns


def pad(part: Tensor, height: int, width: int, fill: float) -> Tensor:
    """Pads at the bottom and on the right, to at least this size."""
    missing = [0, max(width - part.shape[-1], 0), 0, max(height - part.shape[-2], 0)]
    plain = part.as_subclass(Tensor)
    return torch.nn.functional.pad(plain, missing, value=fill) if any(missing) else plain
