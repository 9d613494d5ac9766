"""Lists of labelled and unlabelled images for several shares and seeds (`cac-ext data split`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from cac_ext.train.config import Config
from cac_ext.train.data import build_datasets
from cac_ext.train.data.checks.class_findings import named_classes
from cac_ext.train.data.checks.split_search import SplitSearch
from cac_ext.train.data.datasets.split import split, write_split
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.errors import ConfigError


class WrittenLists(NamedTuple):
    """The lists of one share and seed.

    Attributes:
        labelled: list file.
        unlabelled: list file; None if all images are labelled.
        warning: a sentence about classes that no labelled image shows; None if all are shown.
    """

    labelled: Path
    unlabelled: Path | None
    warning: str | None


def write_split_lists(
    config: Config, ratios: Sequence[Fraction], seeds: Sequence[int], output: Path
) -> Iterator[WrittenLists]:
    """Splits the training images and writes ``OUTPUT/1_8/seed0/labelled.txt`` and so on.

    Args:
        config: of the data; its own ``data.labelled_ratio`` and unlabelled list are not used.
        ratios: labelled shares. The share 1 does not depend on the seed: it gives one list.
        seeds: of the splits.
        output: folder of the lists.

    Raises:
        ConfigError: the images are not files.
        DataError: a list that is already there differs.
    """
    splits = build_datasets(replace(config.data, labelled_ratio=None, unlabelled_list=None))
    images = splits.labelled
    if not isinstance(images, ImageFiles):
        raise ConfigError(
            f"the images of the data set {config.data.name!r} are not files, and no list can name "
            "them"
        )
    search = SplitSearch(splits, images)
    for ratio in ratios:
        for seed in seeds if ratio < 1 else seeds[:1]:
            folder = output / "full"
            if ratio < 1:
                folder = output / f"{ratio.numerator}_{ratio.denominator}" / f"seed{seed}"
            labelled, unlabelled = write_split(folder, images.root, images.entries, ratio, seed)
            warning = None
            missing = search.absent(split(images.entries, ratio, seed)[0])
            if missing:
                advice = search.advice(ratio, seed, missing, "--seeds {}")
                names = named_classes(missing, splits)
                warning = f"{labelled} has no pixel of: {names}. {advice}"
            yield WrittenLists(labelled, unlabelled, warning)
