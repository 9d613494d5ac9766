"""From list entries to the splits of a run: shared by all data sets with files on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_ext.train.config import DataConfig
from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.data.datasets.split import parse_ratio, split
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.images import ImageForm
from cac_ext.train.data.files.list_file import Entry, read_list, without_parents
from cac_ext.train.data.files.mask_colors import MaskColors
from cac_ext.train.errors import ConfigError


@dataclass(frozen=True)
class FileLayout:
    """How a data set lies on disk.

    Attributes:
        root: folder to which the paths in lists are relative.
        class_names, palette, background_class: see `DatasetSplits`.
        train, validation: all entries of the data set's own split; None if it has none, so that
            the configuration must name a list.
        expand: see `list_file.read_list`.
        repair: turns an entry into one whose files exist, if they may have another name.
        dataset: reads the files.
        mask_colors: see `ImageFiles`.
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
    mask_colors: MaskColors | None = None


def build_file_splits(config: DataConfig, layout: FileLayout) -> DatasetSplits:
    """The three parts that lists, ratio and layout describe.

    * labelled: ``labelled_list``, or the layout's training images; a ``labelled_ratio`` of them.
    * unlabelled: ``unlabelled_list``, or the images that the ratio leaves out, or the layout's
      training images that are not labelled; None if there are none.
    * validation: ``validation_list``, or the layout's validation images.
    """

    def entries(
        list_name: str | None, own: Callable[[], list[Entry]] | None, with_masks: bool = True
    ) -> list[Entry]:
        if list_name:
            path = find_list(list_name, layout.root)
            found = read_list(path, layout.root, with_masks=with_masks, expand=layout.expand)
            return [layout.repair(entry) for entry in found]
        if own is None:
            raise ConfigError(
                f"the data set {config.name!r} lists no images by itself: give data.labelled_list "
                "and data.validation_list"
            )
        return own()

    def dataset(part: list[Entry], with_masks: bool) -> ImageFiles:
        return layout.dataset(
            layout.root,
            part,
            with_masks=with_masks,
            num_classes=len(layout.class_names),
            ignore_index=config.ignore_index,
            max_pixels=config.max_image_pixels,
            mask_colors=layout.mask_colors,
            form=ImageForm.of(config),
        )

    labelled = entries(config.labelled_list, layout.train)
    unlabelled: list[Entry] = []
    if config.labelled_ratio is not None:
        if config.unlabelled_list is not None:
            raise ConfigError(
                "data.labelled_ratio makes the other images of the training list unlabelled, but "
                "data.unlabelled_list names some, too: give one of the two"
            )
        labelled, unlabelled = split(
            labelled, parse_ratio(config.labelled_ratio), config.split_seed
        )
    elif config.unlabelled_list is not None:
        unlabelled = entries(config.unlabelled_list, None, False)
    elif config.labelled_list is not None and layout.train is not None:
        known = {entry.image for entry in labelled}
        unlabelled = [entry for entry in layout.train() if entry.image not in known]
    validation = entries(config.validation_list, layout.validation)
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
    """A list at the given path or, if there is none, at this path below the root."""
    path = Path(name).expanduser()
    return path if os.path.isfile(path) else root / path


def find_root(config: DataConfig, markers: Sequence[str], inside: Sequence[str] = ()) -> Path:
    """``data.root``, or one of the folders ``inside`` it, that holds a folder of ``markers``.

    Raises:
        ConfigError: data.root is not set, or holds no such folder.
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
    if not root.is_dir():
        raise ConfigError(f"data.root={root} does not exist: give the folder that holds {wanted}")
    raise ConfigError(
        f"data.root={root} holds no {wanted}, as the data set {config.name!r} does: give the "
        "folder that holds it"
    )


def require_fixed_classes(
    config: DataConfig, class_names: Sequence[str], background_class: int | None = None
) -> None:
    """ConfigError if the configuration contradicts a data set whose classes are fixed."""
    count = len(class_names)
    fixed = {
        "num_classes": (config.num_classes, (None, count)),
        "class_names": (config.class_names, (None, list(class_names))),
        "ignore_index": (config.ignore_index, (255,)),
        "background_class": (config.background_class, (None, background_class)),
        "mask_colors": (config.mask_colors, (None,)),
        "ignored_colors": (config.ignored_colors, (None,)),
    }
    for key, (value, allowed) in fixed.items():
        if value not in allowed:
            raise ConfigError(
                f"data.{key} is {value}, but the data set {config.name!r} has {count} fixed "
                "classes and ignores 255: leave it out, or read your files with data.name=folder"
            )
