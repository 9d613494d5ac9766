"""The classes of a network, kept in the run folder so that inference needs no data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_ext.train.data.contract import DatasetSplits
from cac_ext.train.errors import ConfigError
from cac_ext.train.runtime.json_files import read_json, write_json

_FILE = "classes.json"


@dataclass(frozen=True)
class Classes:
    """Names, colors and the id of ignored pixels, as in `DatasetSplits`."""

    class_names: Sequence[str]
    ignore_index: int
    palette: Sequence[Sequence[int]] | None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def save_classes(folder: Path, splits: DatasetSplits) -> None:
    """Writes ``classes.json`` into a run folder."""
    palette = None
    if splits.palette is not None:
        palette = [[int(part) for part in color] for color in splits.palette]
    content = {
        "class_names": list(splits.class_names),
        "ignore_index": splits.ignore_index,
        "palette": palette,
    }
    write_json(folder / _FILE, content)


def load_classes(folder: Path) -> Classes:
    """Reads ``classes.json``; ConfigError if it is missing or damaged."""
    try:
        return Classes(**read_json(folder / _FILE))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {folder / _FILE}: {error}") from error
