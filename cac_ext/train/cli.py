"""The command ``cac-ext`` (also ``python -m cac_ext.train``)."""

from __future__ import annotations

import argparse
import errno
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cac_ext.train import config as configuration
from cac_ext.train.data_commands import add_data_commands
from cac_ext.train.errors import ConfigError, UserError
from cac_ext.train.pseudo_label_commands import add_pseudo_label_commands
from cac_ext.train.run_commands import add_run_commands
from cac_ext.train.signals import TrainingStopped
from cac_ext.train.table_commands import add_table_commands

_CONFIG_HELP = "a shipped configuration ({shipped}) or the path of a YAML file"
_OVERRIDES_HELP = "settings that replace those of CONFIG, e.g. schedule.epochs=2 augment.flip=0"
_FOLDER_HELP = "where to write; made anew, by default in the folder that 'output' names"

#: Exit codes, as shells expect them: 2 for what the user can mend, 130 after Ctrl-C, 143 after
#: SIGTERM (the step was finished and a checkpoint written).
_USAGE_ERROR, _INTERRUPTED, _TERMINATED = 2, 130, 143
#: Failures of a disk or its permissions: to be mended by the user, not by a traceback.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
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
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        print(f"cac-ext: error: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except TrainingStopped as stopped:
        print(f"cac-ext: {stopped}", file=sys.stderr)
        return _TERMINATED
    except KeyboardInterrupt:
        print("\ncac-ext: interrupted", file=sys.stderr)
        return _INTERRUPTED
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
    config_help = _CONFIG_HELP.format(shipped=", ".join(configuration.shipped()))

    train = commands.add_parser(
        "train",
        help="train one method",
        description="Trains what CONFIG says and evaluates it on the validation images. The run "
        "folder receives config.yaml, checkpoint.pt, metrics.jsonl, tensorboard/ and picture.png.",
    )
    train.add_argument("config", metavar="CONFIG", help=config_help)
    train.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES_HELP)
    train.add_argument("--folder", type=Path, help=_FOLDER_HELP)
    train.set_defaults(command=_train)

    resume = commands.add_parser(
        "resume",
        help="go on with an interrupted run",
        description="Goes on from the checkpoint in a run folder, as if it had not stopped.",
    )
    resume.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="of an interrupted run")
    resume.set_defaults(command=_resume)

    compare = commands.add_parser(
        "compare",
        help="train several methods at equal iterations and print a table",
        description="Trains each method with each seed: same network, images, iterations. Ends "
        "with a table of mIoUs and a picture. With --folder of an interrupted comparison it goes "
        "on where that one stopped.",
    )
    compare.add_argument("config", metavar="CONFIG", help=config_help)
    compare.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES_HELP)
    compare.add_argument(
        "--methods",
        default="sup_only,cac",
        help="names separated by commas (default: %(default)s); see cac_ext/train/methods.py",
    )
    compare.add_argument(
        "--seeds",
        help="integers separated by commas (default: the configuration's)",
    )
    compare.add_argument("--folder", type=Path, help=_FOLDER_HELP)
    compare.set_defaults(command=_compare)

    show = commands.add_parser(
        "config",
        help="print a configuration, with every key",
        description="Prints what CONFIG and the overrides come to, as YAML with every key.",
    )
    show.add_argument("config", metavar="CONFIG", help=config_help)
    show.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES_HELP)
    show.set_defaults(command=_show)

    add_run_commands(commands)
    add_data_commands(commands, config_help, _OVERRIDES_HELP)
    add_pseudo_label_commands(commands, config_help, _OVERRIDES_HELP)
    add_table_commands(commands, config_help, _OVERRIDES_HELP)
    return parser


# The commands import what they need when they run: `--help` and errors come at once.


def _train(options: argparse.Namespace) -> None:
    config = configuration.load(options.config, options.overrides)
    _run(config, options.folder, resume=False)


def _resume(options: argparse.Namespace) -> None:
    saved = options.folder / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"{options.folder} is no run folder: it holds no config.yaml")
    _run(configuration.load(str(saved)), options.folder, resume=True)


def _run(config: configuration.Config, folder: Path | None, *, resume: bool) -> None:
    from cac_ext.train.distributed import process_group
    from cac_ext.train.loop import train

    with process_group(config.device) as processes:
        # All processes write into the same folder: that of rank 0's clock.
        folder = processes.first(folder or _new_folder(config.output, config.name))
        with _telling_how_to_go_on(f"cac-ext resume {folder}", folder):
            result = train(config, folder, resume=resume)
        if not processes.is_main:
            return
    width = max(map(len, result.class_iou))
    for name, iou in result.class_iou.items():
        print(f"{name:{width}}  {100 * iou:6.2f}")
    print(f"{'mIoU':{width}}  {100 * result.miou:6.2f}\nrun folder: {folder}")


def _compare(options: argparse.Namespace) -> None:
    from cac_ext.train.compare import compare, plan
    from cac_ext.train.distributed import process_group

    first = configuration.load(options.config, options.overrides)
    seeds = [first.seed] if options.seeds is None else _integers(options.seeds)
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    runs = plan(options.config, options.overrides, methods, seeds)
    with process_group(first.device) as processes:
        folder = options.folder or _new_folder(first.output, f"{first.name}-compare")
        folder = processes.first(folder)
        with _telling_how_to_go_on(f"the same command with --folder {folder}", folder):
            table = compare(runs, folder)
        if not processes.is_main:
            return
    print(f"\n{table}\n\npicture: {folder / 'picture.png'}\nrun folders: {folder}")


def _show(options: argparse.Namespace) -> None:
    config = configuration.load(options.config, options.overrides)
    print(configuration.to_yaml(config), end="")


def _new_folder(output: str, name: str) -> Path:
    """``output/name-date-time``, with a number where that is taken."""
    base = Path(output) / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _integers(text: str) -> list[int]:
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", text):
        raise ConfigError(f"--seeds takes integers separated by commas, but got {text!r}")
    return [int(part) for part in text.split(",")]


@contextmanager
def _telling_how_to_go_on(command: str, folder: Path) -> Iterator[None]:
    """After Ctrl-C or SIGTERM says whether the run can go on, and how."""
    try:
        yield
    except (KeyboardInterrupt, TrainingStopped):
        if any(folder.rglob("checkpoint.pt")):
            print(f"\nthe checkpoint is in {folder}. To go on: {command}", file=sys.stderr)
        else:
            print(f"\nstopped before the first checkpoint of {folder}", file=sys.stderr)
        raise
