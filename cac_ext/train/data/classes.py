"""The classes a network was trained on: kept in the run folder, so that no data is needed later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cac_ext.train.data import DatasetSplits
from cac_ext.train.errors import ConfigError
from cac_ext.train.runtime.whole_files import write_text_whole

_FILE = "classes.json"


@dataclass(frozen=True)
class Classes:
    """Names, colours and the id of ignored pixels, as in `DatasetSplits`."""

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
        palette = [[int(part) for part in colour] for colour in splits.palette]
    content = {
        "class_names": list(splits.class_names),
        "ignore_index": splits.ignore_index,
        "palette": palette,
    }
    write_text_whole(folder / _FILE, json.dumps(content, indent=2) + "\n")


def load_classes(folder: Path) -> Classes:
    """Reads it again; ConfigError where it is missing or damaged."""
    try:
        return Classes(**json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {folder / _FILE}: {error}") from error
