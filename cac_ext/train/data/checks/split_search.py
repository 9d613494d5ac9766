"""Finds a split of a training set whose labelled images show every class."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from cac_ext.train.config import DataConfig
from cac_ext.train.data.checks.mask_scan import count_pixels
from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.data.datasets.split import parse_ratio, split
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import Entry
from cac_ext.train.errors import DataError

_MOST_MASKS = 2000  # read at most
_SEEDS = 100  # tried


class SplitSearch:
    """Classes that the labelled images of a split lack, and splits that lack none.

    Each mask is read at most once, and no more than 2000 masks of a larger training set.

    Args:
        splits: the data that the images belong to.
        datasets: the files of the training set, labelled or not. Only masks that a list names are
            read.
    """

    def __init__(self, splits: DatasetSplits, *datasets: ImageFiles) -> None:
        self.splits = splits
        self.entries = [entry for dataset in datasets for entry in dataset.entries]
        self._places = {
            entry.name: (dataset, index)
            for dataset in datasets
            for index, entry in enumerate(dataset.entries)
        }
        self._found: dict[str, frozenset[int] | None] = {}

    def absent(self, labelled: Sequence[Entry]) -> list[int] | None:
        """Ids of the classes without a pixel in these images; None if their masks are unknown.

        The ignored class is never among them.
        """
        missing = set(range(self.splits.num_classes)) - {self.splits.ignore_index}
        for entry in labelled:
            if not missing:
                break
            classes = self._classes(entry)
            if classes is None:
                return None
            missing -= classes
        return sorted(missing)

    def advice(
        self,
        ratio: Fraction,
        seed: int,
        missing: Sequence[int],
        setting: str = "data.split_seed={}",
    ) -> str:
        """A sentence: what to do about classes that the split of ``seed`` lacks.

        ``setting`` says how the user sets another seed.
        """
        more = "a larger labelled ratio labels more images"
        absent = self.absent(self.entries)
        if absent is None:
            return f"Another seed ({setting.format('...')}) may have them, and {more}"
        if set(missing) <= set(absent):
            return f"None of the {len(self.entries)} training images shows them, with any split"
        for other in range(seed + 1, seed + 1 + _SEEDS):
            if self.absent(split(self.entries, ratio, other)[0]) == absent:
                which = "all classes" if not absent else "all that any training image shows"
                return f"{setting.format(other)} has {which}, and {more}"
        return f"Of the next {_SEEDS} seeds none has all classes; {more}"

    def _classes(self, entry: Entry) -> frozenset[int] | None:
        """The classes that an image shows; None if its mask is missing or damaged."""
        if entry.name not in self._found:
            if len(self._found) >= _MOST_MASKS:
                return None
            dataset, index = self._places[entry.name]
            try:
                mask = dataset.known_mask(index)
            except DataError:  # of an unlabelled image, which is fine without
                mask = None
            classes = None
            if mask is not None:
                counts, _ = count_pixels(mask, self.splits)
                classes = frozenset(counts.nonzero().flatten().tolist())
            self._found[entry.name] = classes
        return self._found[entry.name]


def split_advice(data: DataConfig, splits: DatasetSplits, missing: Sequence[int]) -> str:
    """`SplitSearch.advice` if ``data.labelled_ratio`` has split files, else the empty text.

    Args:
        data: the section of the configuration.
        splits: the data that it describes.
        missing: ids of the classes that no labelled image shows.
    """
    parts = [part for part in (splits.labelled, splits.unlabelled) if part is not None]
    in_files = [part for part in parts if isinstance(part, ImageFiles)]
    if data.labelled_ratio is None or len(in_files) < len(parts):
        return ""
    search = SplitSearch(splits, *in_files)
    return search.advice(parse_ratio(data.labelled_ratio), data.split_seed, missing)
