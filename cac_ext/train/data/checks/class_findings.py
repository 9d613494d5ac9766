"""Remarks on the classes that masks hold, before a run and by `cac-ext data check`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.errors import listed


def worthless(
    part: str, masks: int, pixels: Tensor, ignored: int, splits: DatasetSplits
) -> str | None:
    """Why the masks of a part are of no use for training or measuring; None if they are of use.

    Args:
        part: "labelled" or "validation".
        masks: how many were read.
        pixels: their number in each class, ``[K]``.
        ignored: number of ignored pixels.
        splits: the data that the masks belong to.
    """
    present = pixels.nonzero().flatten().tolist()
    if masks == 0 or len(present) > 1 or (present and part != "labelled"):
        return None
    if not present:
        return (
            f"no pixel of the {masks} {part} masks counts: all are {splits.ignore_index}, which is "
            f"data.ignore_index. Masks must hold class ids, 0 to {splits.num_classes - 1}"
        )
    return (
        f"all pixels of the {masks} labelled masks that count are of one class, "
        f"{named_classes(present, splits)}: there is nothing to tell apart, and any result would "
        f"be worthless{_about_ignored(pixels, ignored, splits)}"
    )


def absent_classes(pixels: Tensor, splits: DatasetSplits) -> list[int]:
    """Ids of the classes without a pixel, except the ignored one."""
    return [k for k in (pixels == 0).nonzero().flatten().tolist() if k != splits.ignore_index]


def absent_remark(
    part: str, pixels: Tensor, ignored: int, splits: DatasetSplits, advice: str = ""
) -> str | None:
    """A sentence about the classes without a pixel in the masks of a part; None if all have one.

    ``advice`` replaces the usual one.
    """
    absent = absent_classes(pixels, splits)
    if not absent:
        return None
    text = f"no pixel of the {part} images is of: {named_classes(absent, splits)}"
    if part == "validation":
        return (
            f"{text}. The mIoU is a mean over the other classes, as long as none of these is "
            f"predicted, and says nothing about them{_about_ignored(pixels, ignored, splits)}"
        )
    usual = "Label images that show them, or leave them out of data.num_classes"
    largest = int(pixels.nonzero().max()) if pixels.any() else -1
    if min(absent) > largest >= 0:
        usual += f": the largest id in the masks is {largest}"
    return (
        f"{text}. The network cannot learn them: their IoU will be 0, or left out of the mIoU "
        f"where they do not occur. {advice or usual}{_about_ignored(pixels, ignored, splits)}"
    )


def ignored_class_remark(splits: DatasetSplits) -> str | None:
    """A sentence about a class whose id is ``ignore_index``; None if there is no such class.

    It is no error: masks in which one of the ids means "no label" can be used unchanged.
    """
    ignored = splits.ignore_index
    if not 0 <= ignored < splits.num_classes:
        return None
    return (
        f"data.ignore_index is {ignored}, the id of the class {splits.class_names[ignored]!r}: its "
        "pixels count neither in the loss nor in the mIoU, and the network never learns it. Where "
        f"{ignored} means 'no label' in the masks, this is right; otherwise set data.ignore_index "
        "to an id that no class has, such as 255"
    )


def named_classes(ids: Sequence[int], splits: DatasetSplits) -> str:
    """Names and ids of classes, ten at most."""
    names = splits.class_names
    return listed(names[k] if names[k] == f"class {k}" else f"{names[k]} ({k})" for k in ids)


def _about_ignored(pixels: Tensor, ignored: int, splits: DatasetSplits) -> str:
    """What the ignored pixels may mean if the masks hold a single class besides."""
    if not ignored or len(pixels.nonzero()) != 1:
        return ""
    share = 100 * ignored / (int(pixels.sum()) + ignored)
    text = (
        f". {share:.1f}% of the pixels are {splits.ignore_index}, which is data.ignore_index and "
        "counts for nothing"
    )
    if splits.ignore_index == 255:
        text += ": masks that mean two classes by 0 and 255 must hold 0 and 1 instead"
    return text
