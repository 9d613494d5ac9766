"""Three pipelines that do the same work: ours, torchvision's transforms, and UniMatch's.

All read a JPEG (and a PNG of class ids), scale it, crop, mirror, change colors, blur and normalize,
with the same probabilities and strengths. They draw different random numbers.

Tasks:

* ``labelled``: image and mask, without changes of color;
* ``strong``: of one crop, a weak version and two strong ones, as FixMatch and UniMatch take them;
* ``pair``: two crops of one scaled image, each with its own changes of color. UniMatch has no such
  task. Only ours chooses the crops by their overlap and says which features show the same pixel.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from benchmarks.data.pictures import CLASSES, IGNORE, Files, PictureCase
from cac_ext.train.config import AugmentConfig
from cac_ext.train.data.augment import CropPairAugment, LabelledAugment
from cac_ext.train.data.batches import collate_labelled, collate_pairs, collate_whole_crops
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import Entry
from cac_ext.train.data.stream import Indexed, IterationSampler, SampleLoader, Stream
from cac_ext.train.data.whole_crops import WholeCropAugment
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.networks.normalization import INPUT_MEAN, INPUT_STD

_STRONG = 2
_CUTMIX = 0.5
_IOU_RANGE = (0.1, 1.0)
_STRIDE = 8  # of the compared features, DeepLabv3+
_BLUR_SIGMA = (0.1, 2.0)
_BILINEAR, _NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
_MANY = 1 << 40  # iterations: nobody waits for their end


@dataclass(frozen=True)
class Work:
    """What is loaded.

    Attributes:
        files: read again and again.
        task: a name of the module's docstring.
        augment: sizes, probabilities and strengths.
        batch: images of a batch.
        seed: of all random choices.
    """

    files: Files
    task: str
    augment: AugmentConfig
    batch: int
    seed: int


class Prepared(NamedTuple):
    """Augmented samples by index, and how a batch is made of them; None: by torch's default."""

    samples: Indexed[Any]
    collate: Callable[[list[Any]], Any] | None


@dataclass(frozen=True)
class Pipeline:
    """``prepare`` makes the samples of one of its tasks."""

    tasks: tuple[str, ...]
    prepare: Callable[[Work], Prepared]


def augment_config(case: PictureCase, scale: float) -> AugmentConfig:
    """The default augmentation at a fixed scale, so that all pipelines scale alike."""
    return AugmentConfig(
        crop_size=case.crop_size,
        base_size=case.base_size,
        labelled_scale=(scale, scale),
        unlabelled_scale=(scale, scale),
    )


def load(pipeline: Pipeline, work: Work, workers: int) -> Generator[Any, None, None]:
    """Batches without end; closing it ends the workers."""
    prepared = pipeline.prepare(work)
    loader = SampleLoader(
        prepared.samples,
        batch_sampler=IterationSampler(0, _MANY, work.batch),
        num_workers=workers,
        collate_fn=prepared.collate,
    )
    yield from loader


def _ours(work: Work) -> Prepared:
    entries = [Entry("image", work.files.image, work.files.mask, "benchmark")] * 64
    images = ImageFiles(
        work.files.image.parent,
        entries,
        with_masks=work.task == "labelled",
        num_classes=CLASSES,
        ignore_index=IGNORE,
    )
    config = work.augment

    def stream(augment: Callable[[Any], Any]) -> Stream[Any]:
        return Stream(images, augment, work.seed, work.task)

    if work.task == "labelled":
        return Prepared(stream(LabelledAugment(config, IGNORE)), collate_labelled)
    if work.task == "strong":
        augment = WholeCropAugment(config, strong=_STRONG, cutmix=_CUTMIX)
        return Prepared(stream(augment), collate_whole_crops)
    sampler = CropPairSampler(config.crop_size, FeatureGrid(_STRIDE), _IOU_RANGE, config.flip)
    return Prepared(stream(CropPairAugment(config, sampler)), collate_pairs)


def _low_level(config: AugmentConfig, blur: v2.Transform) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(*config.jitter_strength)], p=config.jitter),
            v2.RandomGrayscale(p=config.gray),
            v2.RandomApply([blur], p=config.blur),
        ]
    )


class _Torchvision:
    """As torchvision's documentation puts transforms v2 together for segmentation."""

    def __init__(self, work: Work) -> None:
        config = work.augment
        self.work = work
        self.crop = v2.Compose(
            [
                v2.RandomCrop(
                    config.crop_size,
                    pad_if_needed=True,
                    fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORE},
                ),
                v2.RandomHorizontalFlip(config.flip),
            ]
        )
        self.low_level = _low_level(config, v2.GaussianBlur(5, _BLUR_SIGMA))
        self.finish = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(INPUT_MEAN, INPUT_STD)]
        )

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        torch.manual_seed(self.work.seed + index)
        image = tv_tensors.Image(VF.pil_to_tensor(_read(self.work.files.image).convert("RGB")))
        if self.work.task == "labelled":
            mask = tv_tensors.Mask(VF.pil_to_tensor(_read(self.work.files.mask))[0])
            image, mask = self.crop(*self._scale(image, mask))
            return self.finish(image), mask.long()
        (image,) = self._scale(image)
        if self.work.task == "strong":
            weak = self.crop(image)
            return tuple(map(self.finish, (weak, *(self.low_level(weak) for _ in range(_STRONG)))))
        return self._view(image), self._view(image)

    def _scale(self, image: Tensor, *mask: Tensor) -> tuple[Tensor, ...]:
        base = self.work.augment.base_size or max(image.shape[-2:])
        scaled = v2.ScaleJitter((base, base), self.work.augment.labelled_scale)(image, *mask)
        return scaled if mask else (scaled,)

    def _view(self, image: Tensor) -> Tensor:
        view: Tensor = self.finish(self.low_level(self.crop(image)))
        return view


class _UniMatch:
    """UniMatch's `SemiDataset`, by its description: Pillow until the tensor is made.

    Its unlabelled images are read without their masks here, which it reads and does not use.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.low_level = _low_level(work.augment, v2.Lambda(self._blur, Image.Image))

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        random.seed(self.work.seed + index)
        torch.manual_seed(self.work.seed + index)
        image = _read(self.work.files.image).convert("RGB")
        if self.work.task == "labelled":
            mask = _read(self.work.files.mask)
            image, mask = self._cropped([(image, _BILINEAR, 0), (mask, _NEAREST, IGNORE)])
            return self._finish(image), VF.pil_to_tensor(mask)[0].long()
        (image,) = self._cropped([(image, _BILINEAR, 0)])
        strong = (self.low_level(image) for _ in range(_STRONG))
        return tuple(map(self._finish, (image, *strong)))

    def _cropped(
        self, pictures: list[tuple[Image.Image, Image.Resampling, int]]
    ) -> list[Image.Image]:
        """Scales, crops and mirrors pictures of one size alike, each with its method and fill."""
        config = self.work.augment
        width, height = pictures[0][0].size
        ratio = random.uniform(*config.labelled_scale)
        ratio *= (config.base_size or max(width, height)) / max(width, height)
        width, height = round(width * ratio), round(height * ratio)
        missing = max(config.crop_size - width, 0), max(config.crop_size - height, 0)
        left = random.randint(0, width + missing[0] - config.crop_size)
        top = random.randint(0, height + missing[1] - config.crop_size)
        box = (left, top, left + config.crop_size, top + config.crop_size)
        mirrored = random.random() < config.flip
        found = []
        for picture, method, fill in pictures:
            scaled = picture.resize((width, height), method)
            part = ImageOps.expand(scaled, (0, 0, *missing), fill).crop(box)
            found.append(ImageOps.mirror(part) if mirrored else part)
        return found

    def _blur(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*_BLUR_SIGMA)))

    def _finish(self, image: Image.Image) -> Tensor:
        return VF.normalize(
            VF.to_dtype(VF.pil_to_tensor(image), torch.float32, scale=True), INPUT_MEAN, INPUT_STD
        )


def _read(path: Path) -> Image.Image:
    with Image.open(path) as file:
        file.load()
        return file


PIPELINES = {
    "ours": Pipeline(("labelled", "strong", "pair"), _ours),
    "torchvision": Pipeline(
        ("labelled", "strong", "pair"), lambda work: Prepared(_Torchvision(work), None)
    ),
    "unimatch": Pipeline(("labelled", "strong"), lambda work: Prepared(_UniMatch(work), None)),
}
