"""Command line of the benchmarks: ``python -m benchmarks COMMAND --help``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

#: Command -> what it does; the module of the same name has `add_arguments` and `run`.
COMMANDS = {
    "loss": "time and memory of the loss alone, against what people use today",
    "step": "a whole training step, encoder included, with our loss and with the official one",
    "convergence": "the same short training with our loss and with the reference",
    "camvid": "real trainings: the supervised loss alone and the whole method, three seeds",
    "report": "one HTML page from result files",
    "readme": "the figures in a document, from result files",
    "compare": "two result files row by row, regressions flagged",
}
MEASURING = ("loss", "step", "convergence")


def _add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: as many as there are cores)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all inputs (default 0)")
    parser.add_argument("--output", metavar="FILE.json", help="write all figures there")


def _prepare(arguments: argparse.Namespace) -> None:
    import torch

    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {arguments.device}: this torch finds no CUDA device")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(arguments.threads or usable)
    if arguments.device.startswith("cuda"):
        torch.cuda.set_device(arguments.device)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if name in MEASURING:
            _add_measuring_arguments(subparser)
        importlib.import_module(f"benchmarks.{name}").add_arguments(subparser)
    arguments = parser.parse_args(argv)
    try:
        if arguments.command in MEASURING:
            _prepare(arguments)
        return importlib.import_module(f"benchmarks.{arguments.command}").run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ModuleNotFoundError as error:
        if error.name not in ("tqdm", "matplotlib"):
            raise
        sys.exit(f"{error.name} is missing; install it with: pip install cac_ext[bench]")
