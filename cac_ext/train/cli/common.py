"""What several commands have in common: arguments, and the word on how to go on."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cac_ext.train import config as configuration
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.runtime.signals import TrainingStopped

#: Failures of a disk or its permissions: to be mended by the user, not by a traceback.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
#: What is worth going on from: a network, an image classifier, pseudo labels.
_PROGRESS = ("checkpoint.pt", "classifier.pt", "pseudo_labels.json")


def never_fail_to_print() -> None:
    """Lets stdout and stderr print any name: escaped where their encoding has not its letters."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def config_help() -> str:
    """What a configuration may be given as."""
    return f"a shipped configuration ({', '.join(configuration.shipped())}) or the path of a YAML"


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``CONFIG [key=value ...]``, of which `load_config` makes a configuration."""
    parser.add_argument("config", metavar="CONFIG", help=config_help())
    add_overrides(
        parser, "settings that replace those of CONFIG, e.g. schedule.epochs=2 augment.flip=0"
    )


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """``[key=value ...]``; ``text`` is their help."""
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=text)


def load_config(options: argparse.Namespace) -> configuration.Config:
    """The configuration that `add_config_arguments` has read."""
    return configuration.load(options.config, options.overrides)


SEEDS_HELP = (
    "integers separated by commas (default: {default}). data.split_seed, which chooses the "
    "labelled images of a data.labelled_ratio, stays as it is; data.split_seed='${{seed}}' gives "
    "each seed labelled images of its own"
)


def parse_seeds(text: str) -> list[int]:
    """``"0,1,2"`` to integers; ConfigError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    # Of 18 digits at most: it then is a seed that every generator of random numbers takes.
    if not all(re.fullmatch(r"[0-9]{1,18}", part) for part in parts):
        raise ConfigError(
            "--seeds takes integers from 0 up, of 18 digits at most, separated by commas, but got "
            f"{text!r}"
        )
    return [int(part) for part in parts]


@contextmanager
def telling_how_to_go_on(command: str, folder: Path, *, quiet: bool = False) -> Iterator[None]:
    """Says whether what was begun in ``folder`` can go on, and how.

    After Ctrl-C, SIGTERM, and failures that come in the middle: of a file, a disk, a worker.
    """
    try:
        yield
    except (KeyboardInterrupt, TrainingStopped, OSError, DataError, RuntimeError):
        if not quiet:
            if any(any(folder.rglob(name)) for name in _PROGRESS):
                print(f"\nwhat was done is in {folder}. To go on: {command}", file=sys.stderr)
            else:
                print(f"\nstopped before the first checkpoint of {folder}", file=sys.stderr)
        raise
