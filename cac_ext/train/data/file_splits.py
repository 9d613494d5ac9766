"""From entries in files to the splits of a run: what all readers of a layout on disk share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_ext.train.config import DataConfig
from cac_ext.train.data import DatasetSplits
from cac_ext.train.data.image_files import ImageFiles
from cac_ext.train.data.list_file import Entry, read_list, without_parents
from cac_ext.train.data.split import parse_ratio, split
from cac_ext.train.errors import ConfigError


@dataclass(frozen=True)
class FileLayout:
    """How a data set lies on disk.

    Attributes:
        root: folder to which lists are relative.
        class_names: one for each class.
        palette: RGB of each class, or None.
        train, validation: all entries of the data set's own split; None where it has none, and
            the configuration must name a list.
        expand: see `list_file.read_list`.
        repair: an entry to the one that is meant, where files may be named otherwise.
        dataset: reads the files.
        background_class: see `DatasetSplits`.
    """

    root: Path
    class_names: Sequence[str]
    palette: Sequence[tuple[int, int, int]] | None = None
    train: Callable[[], list[Entry]] | None = None
    validation: Callable[[], list[Entry]] | None = None
    expand: Callable[[list[str]], list[str]] | None = None
    repair: Callable[[Entry], Entry] = lambda entry: entry
    dataset: type[ImageFiles] = ImageFiles
    background_class: int | None = None


def build_file_splits(config: DataConfig, layout: FileLayout) -> DatasetSplits:
    """The three parts that lists, ratio and layout describe.

    * labelled: ``labelled_list``, or all training images; of these ``labelled_ratio``.
    * unlabelled: ``unlabelled_list``, or what the ratio leaves, or the layout's training images
      that are not labelled; None where nothing is left.
    * validation: ``validation_list``, or the layout's.
    """

    def entries(list_name: str, with_masks: bool) -> list[Entry]:
        path = find_list(list_name, layout.root)
        found = read_list(path, layout.root, with_masks=with_masks, expand=layout.expand)
        return [layout.repair(entry) for entry in found]

    def dataset(part: list[Entry], with_masks: bool) -> ImageFiles:
        return layout.dataset(
            layout.root,
            part,
            with_masks=with_masks,
            num_classes=len(layout.class_names),
            ignore_index=config.ignore_index,
            max_pixels=config.max_image_pixels,
        )

    labelled = entries(config.labelled_list, True) if config.labelled_list else layout.train()
    unlabelled = []
    if config.labelled_ratio is not None:
        if config.unlabelled_list is not None:
            raise ConfigError(
                "data.labelled_ratio leaves the other images of the training list unlabelled, and "
                "data.unlabelled_list names them too: give one of the two"
            )
        labelled, unlabelled = split(
            labelled, parse_ratio(config.labelled_ratio), config.split_seed
        )
    elif config.unlabelled_list is not None:
        unlabelled = entries(config.unlabelled_list, False)
    elif config.labelled_list is not None and layout.train is not None:
        known = {entry.image for entry in labelled}
        unlabelled = [entry for entry in layout.train() if entry.image not in known]
    validation = (
        entries(config.validation_list, True) if config.validation_list else layout.validation()
    )
    return DatasetSplits(
        labelled=dataset(labelled, True),
        unlabelled=dataset(unlabelled, False) if unlabelled else None,
        validation=dataset(validation, True),
        class_names=layout.class_names,
        ignore_index=config.ignore_index,
        palette=layout.palette,
        background_class=layout.background_class,
    )


def find_list(name: str, root: Path) -> Path:
    """A list as given, or beside the images."""
    path = Path(name).expanduser()
    return path if os.path.isfile(path) else root / path


def find_root(config: DataConfig, markers: Sequence[str], inside: Sequence[str] = ()) -> Path:
    """``data.root``, or a folder below it, in which one of the folders ``markers`` lies.

    Raises:
        ConfigError: data.root is not set, or is not the root of this data set.
    """
    wanted = " or ".join(f"{marker}/" for marker in markers)
    if config.root is None:
        raise ConfigError(
            f"the data set {config.name!r} needs data.root, the folder that holds {wanted}: give "
            "it in the YAML file or as data.root=... on the command line"
        )
    root = without_parents(Path(config.root).expanduser().absolute())
    for candidate in (root, *(root / folder for folder in inside)):
        if any((candidate / marker).is_dir() for marker in markers):
            return candidate
    state = "holds no" if root.is_dir() else "does not exist, and so holds no"
    raise ConfigError(
        f"data.root={root} {state} {wanted}, which the data set {config.name!r} is known by"
    )


def require_fixed_classes(
    config: DataConfig, class_names: Sequence[str], background_class: int | None = None
) -> None:
    """Raises where the configuration contradicts a data set whose classes are known."""
    count = len(class_names)
    fixed = {
        "num_classes": (config.num_classes, (None, count)),
        "class_names": (config.class_names, (None, list(class_names))),
        "ignore_index": (config.ignore_index, (255,)),
        "background_class": (config.background_class, (None, background_class)),
    }
    for key, (value, allowed) in fixed.items():
        if value not in allowed:
            raise ConfigError(
                f"data.{key} is {value}, but the data set {config.name!r} has {count} classes of "
                "its own and ignores 255: leave it out, or read your files with data.name=folder"
            )
