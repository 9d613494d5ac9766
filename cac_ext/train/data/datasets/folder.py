"""Images and masks of any folder, named by list files (`files.list_file` describes them)."""

from __future__ import annotations

from pathlib import Path

from cac_ext.train.config import DataConfig
from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.data.datasets.file_splits import FileLayout, build_file_splits
from cac_ext.train.data.files.list_file import without_parents
from cac_ext.train.data.files.mask_colors import MaskColors
from cac_ext.train.errors import ConfigError

_BACKGROUND_NAME = "background"


def build(config: DataConfig) -> DatasetSplits:
    """The splits that ``data.root`` and the lists describe."""
    root, num_classes = config.root, config.num_classes
    needed = {
        "data.root": root,
        "data.labelled_list": config.labelled_list,
        "data.validation_list": config.validation_list,
        "data.num_classes": num_classes,
    }
    missing = [key for key, value in needed.items() if value is None]
    if root is None or num_classes is None or missing:
        raise ConfigError(
            f"the data set 'folder' needs {', '.join(missing)}: give them in the YAML file or as "
            "key=value on the command line"
        )
    names = config.class_names or [f"class {index}" for index in range(num_classes)]
    folder = without_parents(Path(root).expanduser().absolute())
    if not folder.is_dir():
        raise ConfigError(f"data.root: there is no folder {folder}")
    background = config.background_class
    if background is None and _BACKGROUND_NAME in names:
        background = list(names).index(_BACKGROUND_NAME)
    colors = _mask_colors(config, len(names))
    palette = None if colors is None else colors.palette
    layout = FileLayout(folder, names, palette, background_class=background, mask_colors=colors)
    return build_file_splits(config, layout)


def _mask_colors(config: DataConfig, num_classes: int) -> MaskColors | None:
    if config.mask_colors is None:
        if config.ignored_colors is not None:
            raise ConfigError("data.ignored_colors needs data.mask_colors, the colors of classes")
        return None
    if len(config.mask_colors) != num_classes:
        raise ConfigError(
            f"data.mask_colors has {len(config.mask_colors)} colors, but data.num_classes is "
            f"{num_classes}: give one for each class, and those of pixels without a class by "
            "data.ignored_colors"
        )
    return MaskColors(config.mask_colors, config.ignored_colors or (), config.ignore_index)
