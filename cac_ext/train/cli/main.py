"""The command ``cac-ext`` (also ``python -m cac_ext.train``)."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cac_ext.train import config as configuration
from cac_ext.train.cli.common import (
    DISK_ERRORS,
    SEEDS_HELP,
    add_config_arguments,
    add_overrides,
    load_config,
    never_fail_to_print,
    parse_seeds,
    telling_how_to_go_on,
)
from cac_ext.train.cli.data import add_data_commands
from cac_ext.train.cli.evaluate import add_run_commands
from cac_ext.train.cli.figures import add_figure_commands
from cac_ext.train.cli.pseudo_labels import add_pseudo_label_commands
from cac_ext.train.cli.tables import add_table_commands
from cac_ext.train.errors import UserError
from cac_ext.train.runtime.signals import TrainingStopped

_FOLDER_HELP = "where to write; made anew, by default in the folder that 'output' names"

#: Exit codes, as shells expect them: 2 for what the user can mend, 128 + the signal's number for
#: what Ctrl-C or SIGTERM has ended.
_USAGE_ERROR, _SIGNAL = 2, 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    never_fail_to_print()
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes all overrides from one place only; people also put them behind an option.
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
    except BrokenPipeError:  # who reads the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNAL + signal.SIGPIPE
    except OSError as error:
        # Of a file that the user named, or of a disk; any other is a fault of the program.
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
        "consistency: train it, compare it, evaluate it, use it.",
        epilog="Shipped configurations: " + ", ".join(configuration.shipped()),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train one method",
        description="Trains what CONFIG says and evaluates it on the validation images. The run "
        "folder receives config.yaml, checkpoint.pt, metrics.jsonl, tensorboard/ and picture.png.",
    )
    add_config_arguments(train)
    train.add_argument("--folder", type=Path, help=_FOLDER_HELP)
    train.set_defaults(command=_train)

    resume = commands.add_parser(
        "resume",
        help="go on with an interrupted run",
        description="Goes on from the checkpoint in a run folder, as if it had not stopped. The "
        "data may have been moved and may be read by more processes: data.root=..., "
        "data.num_workers=...; another device may go on, device=cpu, with results that differ by "
        "rounding. What would change the result cannot be set anew.",
    )
    resume.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="of an interrupted run")
    add_overrides(resume, "settings that changed since, e.g. data.root=... data.num_workers=4")
    resume.set_defaults(command=_resume)

    compare = commands.add_parser(
        "compare",
        help="train several methods at equal iterations and print a table",
        description="Trains each method with each seed: same network, images, iterations. Ends "
        "with a table of mIoUs and a picture. With --folder of an interrupted comparison it goes "
        "on where that one stopped.",
    )
    add_config_arguments(compare)
    compare.add_argument(
        "--methods",
        default="sup_only,cac",
        help="names separated by commas (default: %(default)s); see cac_ext/train/methods.py",
    )
    compare.add_argument(
        "--seeds",
        help=SEEDS_HELP.format(default="the configuration's"),
    )
    compare.add_argument("--folder", type=Path, help=_FOLDER_HELP)
    compare.set_defaults(command=_compare)

    show = commands.add_parser(
        "config",
        help="print a configuration, with every key",
        description="Prints what CONFIG and the overrides come to, as YAML with every key.",
    )
    add_config_arguments(show)
    show.set_defaults(command=_show)

    add_run_commands(commands)
    add_figure_commands(commands)
    add_data_commands(commands)
    add_pseudo_label_commands(commands)
    add_table_commands(commands)
    return parser


# The commands import what they need when they run: `--help` and errors come at once.


def _train(options: argparse.Namespace) -> None:
    _run(load_config(options), options.folder, resume=False)


def _resume(options: argparse.Namespace) -> None:
    from cac_ext.train.runs.checkpoint import require_same_settings
    from cac_ext.train.runs.folder import CONFIG_FILE, read_config

    config = read_config(options.folder, options.overrides)
    # Before anything is made with them: there may be no checkpoint yet.
    begun = configuration.to_mapping(read_config(options.folder))
    require_same_settings(begun, config, options.folder / CONFIG_FILE)
    _run(config, options.folder, resume=True)


def _run(config: configuration.Config, folder: Path | None, *, resume: bool) -> None:
    from cac_ext.train.evaluate import absence_note
    from cac_ext.train.experiments.prepare import prepare_run
    from cac_ext.train.loop import train
    from cac_ext.train.runtime.distributed import process_group

    with process_group(config.device) as processes:
        # All processes write into the same folder: that of rank 0's clock.
        folder = processes.first(folder or _new_folder(config.output, config.name))
        command = f"cac-ext resume {folder}"
        with telling_how_to_go_on(command, folder, quiet=not processes.is_main):
            prepare_run(config, folder, resume=resume)
            result = train(config, folder, resume=resume)
        if not processes.is_main:
            return
    width = max(map(len, result.class_iou))
    for name, iou in result.class_iou.items():
        print(f"{name:{width}}  {100 * iou:6.2f}")
    note = absence_note(result.class_iou)
    print(f"{'mIoU':{width}}  {100 * result.miou:6.2f}{note and f'  ({note})'}")
    print(f"run folder: {folder}")


def _compare(options: argparse.Namespace) -> None:
    from cac_ext.train.experiments.compare import compare, plan
    from cac_ext.train.runtime.distributed import process_group

    first = load_config(options)
    seeds = [first.seed] if options.seeds is None else parse_seeds(options.seeds)
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    runs = plan(options.config, options.overrides, methods, seeds)
    with process_group(first.device) as processes:
        folder = options.folder or _new_folder(first.output, f"{first.name}-compare")
        folder = processes.first(folder)
        command = f"the same command with --folder {folder}"
        with telling_how_to_go_on(command, folder, quiet=not processes.is_main):
            table = compare(runs, folder)
        if not processes.is_main:
            return
    print(f"\n{table}\n\npicture: {folder / 'picture.png'}\nrun folders: {folder}")


def _show(options: argparse.Namespace) -> None:
    print(configuration.to_yaml(load_config(options)), end="")


def _new_folder(output: str, name: str) -> Path:
    """``output/name-date-time``, with a number where that is taken."""
    base = Path(output).expanduser() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder
