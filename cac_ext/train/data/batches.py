"""Augmented samples and the batches made of them, which a stream hands to a method.

Sizes: B images of 3 channels (or data.channels), S pixels a side of a crop, h x w features of a
crop, A overlap positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import default_collate

T = TypeVar("T")


class LabelledSample(NamedTuple):
    """A crop of an image and of its mask."""

    image: Tensor  # [3, S, S] float32, normalized
    mask: Tensor  # [S, S] int64, ignore_index on pixels that do not count


class LabelledBatch(NamedTuple):
    """Labelled crops."""

    images: Tensor  # [B, 3, S, S] float32
    masks: Tensor  # [B, S, S] int64


class ViewSample(NamedTuple):
    """One of the two crops of an image, with its own low-level augmentation."""

    image: Tensor  # [3, S, S] float32, normalized
    valid: Tensor  # [h, w] bool, False if the feature is centered on padding
    overlap: Tensor  # [L] int64, flat positions in [h, w] that the other view shows, too
    mask: Tensor | None = None  # [S, S] int64 pseudo labels; ignore_index on padding
    truth: Tensor | None = None  # [h, w] int32 true class, -1 for unknown and on padding


class CropPairSample(NamedTuple):
    """Two views of one image. ``overlap[i]`` of both shows the same pixel."""

    view1: ViewSample
    view2: ViewSample


class ViewBatch(NamedTuple):
    """The first, or the second, views of a batch of crop pairs."""

    images: Tensor  # [B, 3, S, S] float32
    valid: Tensor  # [B, h, w] bool
    on_image: Tensor  # [P] int64, the flat positions in [B, h, w] that are valid
    overlap: Tensor  # [A] int64, flat positions in [B, h, w]
    masks: Tensor | None = None  # [B, S, S] int64
    truth: Tensor | None = None  # [B, h, w] int32


class CropPairBatch(NamedTuple):
    """Crop pairs. ``overlap[i]`` of both views shows the same pixel."""

    view1: ViewBatch
    view2: ViewBatch
    image_index: Tensor  # [A] int64, the image of the batch that an overlap position belongs to
    weights: Tensor  # [A] float32, 1 / (B N_b) with the N_b positions of its image (Eq. 1 and 8)


class WholeCropSample(NamedTuple):
    """One crop of an unlabelled image: weakly augmented, and strongly augmented V times.

    A CutMix box is drawn for each strong version: a method that mixes pastes another crop inside
    it. Without boxes ``cutmix`` is False everywhere.
    """

    weak: Tensor  # [3, S, S] float32, normalized: scaled, cropped and mirrored only
    strong: Tensor  # [V, 3, S, S] float32, the same crop with V draws of low-level augmentation
    valid: Tensor  # [S, S] bool, False on padding
    cutmix: Tensor  # [V, S, S] bool, True inside the box
    mask: Tensor | None = None  # [S, S] int64 pseudo labels; ignore_index on padding


class WholeCropBatch(NamedTuple):
    """Unlabelled crops."""

    weak: Tensor  # [B, 3, S, S] float32
    strong: Tensor  # [V, B, 3, S, S] float32
    valid: Tensor  # [B, S, S] bool
    cutmix: Tensor  # [V, B, S, S] bool
    masks: Tensor | None = None  # [B, S, S] int64


def collate_labelled(samples: list[LabelledSample]) -> LabelledBatch:
    """Stacks labelled samples."""
    return LabelledBatch(
        _stack([sample.image for sample in samples]),
        _stack([sample.mask for sample in samples]),
    )


def collate_pairs(samples: list[CropPairSample]) -> CropPairBatch:
    """Stacks crop pairs; overlap positions become positions in the batch."""
    lengths = torch.tensor([len(sample.view1.overlap) for sample in samples])  # [B]
    image_index = torch.arange(len(samples)).repeat_interleave(lengths)  # [A]
    return CropPairBatch(
        _collate_views([sample.view1 for sample in samples]),
        _collate_views([sample.view2 for sample in samples]),
        image_index,
        1.0 / (len(samples) * lengths[image_index]),
    )


def _collate_views(samples: list[ViewSample]) -> ViewBatch:
    positions = samples[0].valid.numel()  # h w
    valid = _stack([sample.valid for sample in samples])  # [B, h, w]
    return ViewBatch(
        _stack([sample.image for sample in samples]),
        valid,
        # Found here, on the CPU: on a GPU the host would wait to learn how many there are.
        valid.flatten().nonzero().squeeze(1),
        torch.cat([sample.overlap + index * positions for index, sample in enumerate(samples)]),
        _stack_known([sample.mask for sample in samples]),
        _stack_known([sample.truth for sample in samples]),
    )


def _stack_known(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return _stack(known) if known else None


def _stack(parts: list[Tensor]) -> Tensor:
    """As `torch.stack`; a loader's worker stacks into memory that it shares, without a copy."""
    stacked: Tensor = default_collate(parts)
    return stacked


def _stack_versions(parts: list[Tensor]) -> Tensor:
    """B tensors ``[V, ...]`` to one ``[V, B, ...]``."""
    flat = [part[version] for version in range(len(parts[0])) for part in parts]
    return _stack(flat).unflatten(0, (-1, len(parts))) if flat else torch.stack(parts, dim=1)


def collate_whole_crops(samples: list[WholeCropSample]) -> WholeCropBatch:
    """Stacks unlabelled crops; the strong versions come first: ``[V, B, ...]``."""
    return WholeCropBatch(
        _stack([sample.weak for sample in samples]),
        _stack_versions([sample.strong for sample in samples]),
        _stack([sample.valid for sample in samples]),
        _stack_versions([sample.cutmix for sample in samples]),
        _stack_known([sample.mask for sample in samples]),
    )


def concatenate(first: LabelledBatch, second: LabelledBatch) -> LabelledBatch:
    """One batch of both, ``first``'s images in front."""
    return LabelledBatch(
        torch.cat([first.images, second.images]), torch.cat([first.masks, second.masks])
    )


def to_device(batch: T, device: torch.device, *, channels_last: bool = False) -> T:
    """The batch on a device; with ``channels_last`` its images in that memory layout."""

    def move(tensor: Tensor) -> Tensor:
        moved = tensor.to(device, non_blocking=True)
        if channels_last and moved.ndim == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        return moved

    return pytree.tree_map_only(Tensor, move, batch)


def to_plain(batch: Any) -> Any:
    """The batch as nested dicts of tensors, which `torch.load` reads without this package."""
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        return {name: to_plain(part) for name, part in batch._asdict().items()}
    return batch
