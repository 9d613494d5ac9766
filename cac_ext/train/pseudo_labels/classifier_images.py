"""The images on which the image classifier trains: unlabelled ones with image-level labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors

from cac_ext.train.config import AugmentConfig, Config
from cac_ext.train.data import DatasetSplits, Sample
from cac_ext.train.data.augment import LabelledAugment
from cac_ext.train.data.pseudo_label_files import unlabelled_images
from cac_ext.train.data.stream import Stream
from cac_ext.train.networks.normalization import Normalization

_VOC_CROP = 1.6  # times 320 is 512


class ImageWithClasses(NamedTuple):
    """A crop of an image with image-level labels; in a batch with B in front."""

    image: Tensor  # [C, S, S] float32, normalized
    classes: Tensor  # [K - 1] float32, 0 or 1


class _Item(NamedTuple):
    sample: Sample
    classes: Tensor  # [K - 1]


def classifier_stream(
    config: Config, splits: DatasetSplits, labels: Tensor
) -> Stream[ImageWithClasses]:
    """The unlabelled images, augmented, with their image-level labels ``[M, K - 1]``."""
    items, augment = _Items(splits, labels), _Augment(config, splits)
    return Stream(items, augment, config.seed, "image classifier")


def classifier_crop_size(config: Config) -> int:
    """Side S of the crops: larger than those of the segmentation, so that objects stay inside."""
    return config.image_classifier.crop_size or round(_VOC_CROP * config.augment.crop_size)


class _Items:
    """Images with their labels, and a mask of zeros because `LabelledAugment` needs one."""

    def __init__(self, splits: DatasetSplits, labels: Tensor) -> None:
        self.images = unlabelled_images(splits, "weak")
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> _Item:
        sample = self.images[index]
        mask = torch.zeros(sample["image"].shape[1:], dtype=torch.uint8)
        return _Item({**sample, "mask": tv_tensors.Mask(mask)}, self.labels[index])


class _Augment:
    """Random scale, crop and mirroring, as for labelled images."""

    def __init__(self, config: Config, splits: DatasetSplits) -> None:
        augment = AugmentConfig(
            crop_size=classifier_crop_size(config),
            base_size=config.augment.base_size,
            labelled_scale=config.augment.labelled_scale,
            flip=config.augment.flip,
        )
        self.augment = LabelledAugment(augment, splits.ignore_index, Normalization.of(config.data))

    def __call__(self, item: _Item) -> ImageWithClasses:
        return ImageWithClasses(self.augment(item.sample).image, item.classes)
