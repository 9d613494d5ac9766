"""Arguments that both commands have."""

from __future__ import annotations

import argparse
import re

from benchmarks.errors import UsageError


def add_method_arguments(parser: argparse.ArgumentParser, *, methods: str) -> None:
    """``--output --methods --seeds --quick key=value``; ``methods`` is the default."""
    parser.add_argument("--output", metavar="DIR", required=True, help="where to write")
    parser.add_argument(
        "--methods",
        default=methods,
        help="names separated by commas, as for cac-ext compare; gains are over the first "
        "(default %(default)s)",
    )
    parser.add_argument("--seeds", default="0,1,2", help="default %(default)s; --quick: the first")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few iterations to prove that all of it runs, also on a CPU",
    )
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings of the training; they come last"
    )


def check_seeds(seeds: str) -> None:
    """Raises `UsageError` unless ``seeds`` are integers separated by commas."""
    if not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise UsageError(f"--seeds takes integers like 0,1,2, but got {seeds}")
