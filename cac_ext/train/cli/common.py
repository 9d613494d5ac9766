"""Parts shared by several commands: arguments, and the advice after an interruption."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from cac_ext.train import config as configuration
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.runtime.signals import TrainingStopped

#: The commands of a parser, to which each file of this room adds its own.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
#: Failures of a disk or of permissions: the user can fix them, so they get no traceback.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
FOLDER_HELP = "folder to write to (default: a new one in the folder 'output' of CONFIG)"
#: Files from which an interrupted command can continue: network, image classifier, pseudo labels.
_PROGRESS = ("checkpoint.pt", "classifier.pt", "pseudo_labels.json")
_KEYS_HELP = "`cac-ext config --explain` documents every key"


def escape_unprintable_letters() -> None:
    """Makes stdout and stderr print any name: letters outside their encoding are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def config_help() -> str:
    """Help of an argument that names a configuration."""
    return (
        f"a shipped configuration ({', '.join(configuration.shipped())}) or the path of a YAML file"
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``CONFIG [key=value ...]``; `load_config` makes a configuration of them."""
    parser.add_argument("config", metavar="CONFIG", help=config_help())
    add_overrides(
        parser, "settings that replace those of CONFIG, e.g. schedule.epochs=2 augment.flip=0"
    )


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """``[key=value ...]``; ``text`` is the help."""
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"{text}; {_KEYS_HELP}")


def load_config(options: argparse.Namespace) -> configuration.Config:
    """The configuration of the arguments that `add_config_arguments` added."""
    return configuration.load(options.config, options.overrides)


SEEDS_HELP = (
    "integers separated by commas (default: {default}). data.split_seed, which chooses the "
    "labelled images for data.labelled_ratio, stays the same for all of them; "
    "data.split_seed='${{seed}}' gives each seed different labelled images"
)


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"`` to integers; ConfigError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    # At most 18 digits: every random number generator takes such a seed.
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise ConfigError(
            "--seeds takes integers from 0 up, of at most 18 digits, separated by commas, but got "
            f"{text!r}"
        )
    return [int(part) for part in parts]


@contextmanager
def advising_how_to_resume(command: str, folder: Path, *, quiet: bool = False) -> Iterator[None]:
    """After an interruption, prints whether ``command`` can continue from ``folder``.

    Interruptions are Ctrl-C, SIGTERM, and failures of a file, a disk or a worker.
    """
    try:
        yield
    except (KeyboardInterrupt, TrainingStopped, OSError, DataError, RuntimeError):
        if not quiet:
            if any(any(folder.rglob(name)) for name in _PROGRESS):
                print(f"\nthe work so far is in {folder}. To resume: {command}", file=sys.stderr)
            else:
                print(f"\nstopped before the first checkpoint of {folder}", file=sys.stderr)
        raise
