"""Command line of the benchmarks: ``python -m benchmarks COMMAND --help``."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from typing import NamedTuple

from benchmarks.arguments import command_line, device, positive_int
from benchmarks.errors import UsageError


class Command(NamedTuple):
    """``module`` has `add_arguments` and `run`; it is imported only for its own command."""

    module: str
    summary: str
    measures: bool = False  # it has the options that all measurements share


COMMANDS = {
    "loss": Command(
        "benchmarks.loss.command",
        "time and memory of the loss alone, against what people use today",
        measures=True,
    ),
    "step": Command(
        "benchmarks.step.command",
        "a whole training step, encoder included, with our loss and with the official one",
        measures=True,
    ),
    "data": Command(
        "benchmarks.data.command",
        "images a second of the training's loader, against torchvision's and UniMatch's",
        measures=True,
    ),
    "parts": Command(
        "benchmarks.step.parts_command",
        "what a training step spends beside network and losses",
        measures=True,
    ),
    "convergence": Command(
        "benchmarks.convergence.command",
        "the same short training with our loss and with the reference",
        measures=True,
    ),
    "camvid": Command(
        "benchmarks.trainings.camvid",
        "real trainings: the supervised loss alone and the whole method, three seeds",
    ),
    "methods": Command(
        "benchmarks.trainings.methods",
        "all methods on the built-in data, three seeds; time and memory of their steps",
    ),
    "report": Command("benchmarks.documents.report", "one HTML page from result files"),
    "readme": Command("benchmarks.documents.readme", "the tables in a document, from result files"),
    "compare": Command(
        "benchmarks.documents.compare", "two result files row by row, regressions flagged"
    ),
}

#: Packages that may be missing, by the extra that installs them.
EXTRAS = {
    "bench": ("tqdm", "matplotlib"),
    "train": (
        *("omegaconf", "torchvision", "torchmetrics", "tensorboard", "PIL", "sklearn"),
        "safetensors",
    ),
}
#: The usual exit code after Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130


def _add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", type=device, default="cpu", help="cpu (default), cuda, cuda:1, ..."
    )
    parser.add_argument(
        "--threads", type=positive_int, help="CPU threads (default: as many as there are cores)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all inputs (default 0)")
    parser.add_argument(
        "--output",
        metavar="FILE.json",
        help="write all figures to this file, also those of an interrupted run",
    )


def _prepare(arguments: argparse.Namespace) -> None:
    import torch

    from benchmarks.measure.machine import usable_cores

    torch.set_num_threads(arguments.threads or usable_cores())
    wanted = torch.device(arguments.device)
    if wanted.index is not None:
        torch.cuda.set_device(wanted)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary, description=command.summary)
        if name != chosen:
            continue  # its packages need not be installed
        if command.measures:
            _add_measuring_arguments(subparser)
        importlib.import_module(command.module).add_arguments(subparser)
    return parser.parse_args(argv)


def _run(argv: list[str], own_process: bool) -> int:
    started = time.monotonic()
    from cac_ext.train.errors import UserError

    arguments = _parse(argv)
    arguments.started, arguments.own_process = started, own_process
    arguments.command_line = command_line(argv)
    try:
        command = COMMANDS[arguments.command]
        if command.measures:
            _prepare(arguments)
        return importlib.import_module(command.module).run(arguments)
    except (UsageError, UserError) as error:
        return _refuse(error)
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}")


def _refuse(reason: object) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return 2


def main(argv: list[str] | None = None) -> int:
    """The exit code; ``argv`` is None in a separate process, which a stuck benchmark may end."""
    own_process = argv is None
    if own_process:  # as after Ctrl-C: results so far are kept, children are ended
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(sys.argv[1:] if argv is None else argv, own_process)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        for extra, packages in EXTRAS.items():
            if package in packages:
                return _refuse(f'{package} is missing; install it with: pip install ".[{extra}]"')
        raise


if __name__ == "__main__":
    sys.exit(main())
