"""The commands ``cac-ext tables`` and ``cac-ext ablate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cac_ext.train.cli.common import (
    SEEDS_HELP,
    Commands,
    add_overrides,
    advising_how_to_resume,
    config_help,
    parse_seeds,
)
from cac_ext.train.config import to_yaml
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.tables import TABLES, find_table, list_rows, list_tables


def add_table_commands(commands: Commands) -> None:
    """Adds ``tables`` and ``ablate`` to the command line's grammar."""
    tables = commands.add_parser(
        "tables",
        help="list the rows of the paper's tables, show their configurations",
        description="Without arguments, lists the tables; with TABLE, its rows and the paper's "
        "figures; with TABLE and ROW, prints the row's whole configuration, which `cac-ext train` "
        "reads.",
    )
    tables.add_argument("table", metavar="TABLE", nargs="?", help=", ".join(TABLES))
    tables.add_argument("row", metavar="ROW", nargs="?", help="name of a row")
    tables.set_defaults(command=_tables)

    ablate = commands.add_parser(
        "ablate",
        help="train the rows of one of the paper's tables and print the table",
        description="Trains the rows of TABLE and writes table.md, our figures beside the paper's, "
        "and results.json. With the --folder of an earlier run of the same table, it resumes "
        "interrupted rows and adds new ones. Pseudo labels for self-training and from image-level "
        "labels are made on the way.",
    )
    ablate.add_argument("table", metavar="TABLE", choices=list(TABLES), help=", ".join(TABLES))
    add_overrides(ablate, "settings that replace those of the table and its rows")
    ablate.add_argument(
        "--rows",
        nargs="+",
        default=["*"],
        metavar="ROW",
        help="names or patterns of rows, e.g. cac 'no_*' (default: all rows that can be trained)",
    )
    ablate.add_argument(
        "--config",
        metavar="CONFIG",
        help=f"replaces the table's configuration: {config_help()}",
    )
    ablate.add_argument("--seeds", default="0", help=SEEDS_HELP.format(default="%(default)s"))
    ablate.add_argument(
        "--folder",
        type=Path,
        help="folder of the runs and results (default: TABLE in the folder 'output')",
    )
    ablate.set_defaults(command=_ablate)


def _tables(options: argparse.Namespace) -> None:
    if options.table is None:
        print(list_tables())
        return
    table = find_table(options.table)
    if options.row is None:
        print(list_rows(table))
        return
    from cac_ext.train.experiments.ablate import load_row

    (row,) = table.select([options.row])[:1]
    print(to_yaml(load_row(table, row)), end="")


def _ablate(options: argparse.Namespace) -> None:
    from cac_ext.train.experiments.ablate import ablate, plan_rows
    from cac_ext.train.runtime.distributed import process_group

    table = find_table(options.table)
    # `--rows` takes all words up to the next option: settings among them are not rows.
    patterns = [word for word in options.rows if "=" not in word]
    overrides = [*options.overrides, *(word for word in options.rows if "=" in word)]
    if not patterns:
        raise ConfigError("--rows needs the name of a row, or a pattern")
    seeds = parse_seeds(options.seeds)
    runs = plan_rows(table, table.select(patterns), seeds, overrides, options.config)
    first = next(iter(runs.values()))
    folder = options.folder or Path(first.output).expanduser() / table.name
    with process_group(first.device) as processes:
        with advising_how_to_resume("the same command", folder, quiet=not processes.is_main):
            text = ablate(table, runs, folder)
        if processes.is_main:
            print(f"\n{text}\n\nrun folders: {folder}")
