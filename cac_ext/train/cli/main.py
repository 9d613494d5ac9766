"""The command ``cac-ext`` (also ``python -m cac_ext.train``)."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from cac_ext.train import config as configuration
from cac_ext.train.cli.common import DISK_ERRORS, escape_unprintable_letters
from cac_ext.train.cli.config import add_config_command
from cac_ext.train.cli.data import add_data_commands
from cac_ext.train.cli.evaluate import add_run_commands
from cac_ext.train.cli.figures import add_figure_commands
from cac_ext.train.cli.pseudo_labels import add_pseudo_label_commands
from cac_ext.train.cli.report import add_report_command
from cac_ext.train.cli.tables import add_table_commands
from cac_ext.train.cli.train import add_train_commands
from cac_ext.train.errors import UserError
from cac_ext.train.runtime.signals import TrainingStopped

#: Exit codes, as shells expect them: 2 for errors that the user can fix, 128 + the signal's number
#: for a command that Ctrl-C or SIGTERM ended.
_USAGE_ERROR, _SIGNAL = 2, 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    escape_unprintable_letters()
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse accepts key=value words in one place only; people also put them behind an option.
    if rest:
        if not hasattr(options, "overrides") or any(
            word.startswith("-") or "=" not in word for word in rest
        ):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides += rest
    try:
        code = options.command(options)
    except UserError as error:
        print(f"cac-ext: error: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNAL + signal.SIGPIPE
    except OSError as error:
        # Without a file name, and not from a disk, it is a bug of this program.
        if error.errno not in DISK_ERRORS and error.filename is None:
            raise
        print(f"cac-ext: error: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except TrainingStopped as stopped:
        print(f"cac-ext: {stopped}", file=sys.stderr)
        return _SIGNAL + stopped.signal
    except KeyboardInterrupt:
        print("\ncac-ext: interrupted", file=sys.stderr)
        return _SIGNAL + signal.SIGINT
    return code or 0


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="cac-ext",
        description="Semi-supervised semantic segmentation with directional context-aware "
        "consistency: train, compare, evaluate and use networks.",
        epilog=f"Shipped configurations: {', '.join(configuration.shipped())}. "
        "`cac-ext COMMAND --help` documents a command, `cac-ext config --explain` every setting.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_train_commands(commands)
    add_config_command(commands)
    add_run_commands(commands)
    add_figure_commands(commands)
    add_report_command(commands)
    add_data_commands(commands)
    add_pseudo_label_commands(commands)
    add_table_commands(commands)
    return parser
