"""The commands ``cac-ext train``, ``cac-ext resume`` and ``cac-ext compare``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cac_ext.train.cli.common import (
    FOLDER_HELP,
    SEEDS_HELP,
    Commands,
    add_config_arguments,
    add_overrides,
    advising_how_to_resume,
    load_config,
    parse_seeds,
)
from cac_ext.train.config import Config
from cac_ext.train.experiments.methods import METHODS

if TYPE_CHECKING:
    from cac_ext.train.loop import TrainResult


def add_train_commands(commands: Commands) -> None:
    """Adds ``train``, ``resume`` and ``compare`` to the command line's grammar."""
    train = commands.add_parser(
        "train",
        help="train one method",
        description="Trains the run that CONFIG describes and evaluates it on the validation "
        "images. The run folder receives config.yaml, classes.json, environment.json, "
        "checkpoint.pt, metrics.jsonl, validation.json, tensorboard/ and picture.png; `cac-ext "
        "report` makes a page of them.",
    )
    add_config_arguments(train)
    train.add_argument("--folder", type=Path, help=FOLDER_HELP)
    train.set_defaults(command=_train)

    resume = commands.add_parser(
        "resume",
        help="continue an interrupted run",
        description="Continues from the checkpoint in a run folder, as if the run had not stopped. "
        "The data may have moved (data.root=...), other processes may load it "
        "(data.num_workers=...), and another device may continue (device=cpu), with results that "
        "differ by rounding. A finished run can be given more epochs (schedule.epochs=...), one "
        "that stopped early more patience (schedule.patience=null). Other settings that would "
        "change the result are refused.",
    )
    resume.add_argument(
        "folder", metavar="RUN_FOLDER", type=Path, help="folder of an interrupted run"
    )
    add_overrides(resume, "changed settings, e.g. data.root=... data.num_workers=4")
    resume.set_defaults(command=_resume)

    compare = commands.add_parser(
        "compare",
        help="train several methods with equal iterations and print a table",
        description="Trains each method with each seed: same network, images and iterations. "
        "Prints a table of mIoUs and draws a picture. With the --folder of an interrupted "
        "comparison, it resumes.",
    )
    add_config_arguments(compare)
    compare.add_argument(
        "--methods",
        default="sup_only,cac",
        help=f"names separated by commas (default: %(default)s), of {', '.join(METHODS)}",
    )
    compare.add_argument("--seeds", help=SEEDS_HELP.format(default="the configuration's"))
    compare.add_argument("--folder", type=Path, help=FOLDER_HELP)
    compare.set_defaults(command=_compare)


# The commands import the rest when they run, after the configuration: `--help` and errors in a
# setting come at once.


def _train(options: argparse.Namespace) -> None:
    config = load_config(options)
    from cac_ext.train import api

    _run(config, options.folder, lambda folder: api.train(config, folder))


def _resume(options: argparse.Namespace) -> None:
    from cac_ext.train import api
    from cac_ext.train.runs.folder import read_config

    config = read_config(options.folder, options.overrides)
    _run(config, options.folder, lambda folder: api.resume(folder, options.overrides))


def _run(config: Config, folder: Path | None, work: Callable[[Path], TrainResult]) -> None:
    """Trains by ``work(folder)``, prints the result, or how to resume."""
    from cac_ext.train.runs.evaluation import class_table
    from cac_ext.train.runs.folder import new_folder
    from cac_ext.train.runtime.distributed import process_group

    with process_group(config.device) as processes:
        # All processes write into the folder that rank 0 names by its clock.
        folder = processes.first(folder or new_folder(config.output, config.name))
        command = f"cac-ext resume {folder}"
        with advising_how_to_resume(command, folder, quiet=not processes.is_main):
            result = work(folder)
        if processes.is_main:
            print(class_table(result.class_iou, result.miou))
            if config.run.keep_best and result.best is not None:
                best = result.best
                print(f"best mIoU: {100 * best.miou:.2f}, of iteration {best.iteration}, best.pt")
            print(f"run folder: {folder}")


def _compare(options: argparse.Namespace) -> None:
    first = load_config(options)
    from cac_ext.train import api
    from cac_ext.train.runs.folder import new_folder
    from cac_ext.train.runtime.distributed import process_group

    seeds = [first.seed] if options.seeds is None else parse_seeds(options.seeds)
    methods = [name.strip() for name in options.methods.split(",") if name.strip()]
    with process_group(first.device) as processes:
        folder = options.folder or new_folder(first.output, f"{first.name}-compare")
        folder = processes.first(folder)
        command = f"the same command with --folder {folder}"
        with advising_how_to_resume(command, folder, quiet=not processes.is_main):
            result = api.compare(options.config, methods, seeds, options.overrides, folder=folder)
        if processes.is_main:
            print(f"\n{result}\n\npicture: {folder / 'picture.png'}\nrun folders: {folder}")
