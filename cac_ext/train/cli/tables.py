"""The commands ``cac-ext tables`` and ``cac-ext ablate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cac_ext.train import config as configuration
from cac_ext.train.cli.common import (
    SEEDS_HELP,
    add_overrides,
    config_help,
    parse_seeds,
    telling_how_to_go_on,
)
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.tables import TABLES, find_table


def add_table_commands(commands: argparse._SubParsersAction) -> None:
    """Adds ``tables`` and ``ablate`` to the command line's grammar."""
    tables = commands.add_parser(
        "tables",
        help="list the rows of the paper's tables, show their configurations",
        description="Without arguments: the tables. With TABLE: its rows and the paper's figures. "
        "With TABLE and ROW: the row's whole configuration, which `cac-ext train` reads.",
    )
    tables.add_argument("table", metavar="TABLE", nargs="?", help=", ".join(TABLES))
    tables.add_argument("row", metavar="ROW", nargs="?", help="name of a row")
    tables.set_defaults(command=_tables)

    ablate = commands.add_parser(
        "ablate",
        help="train the rows of one of the paper's tables and print the table",
        description="Trains the rows of TABLE, each a configuration of this project, and writes "
        "table.md and results.json with our figures beside the paper's. With --folder of an "
        "interrupted or earlier run of the same table it goes on where that one stopped and adds "
        "the rows that are new. Pseudo labels of self-training and image-level labels are made on "
        "the way.",
    )
    ablate.add_argument("table", metavar="TABLE", choices=list(TABLES), help=", ".join(TABLES))
    add_overrides(ablate, "settings that replace those of the table and its rows")
    ablate.add_argument(
        "--rows",
        nargs="+",
        default=["*"],
        metavar="ROW",
        help="names or patterns of rows, e.g. cac 'no_*' (default: all that can be trained)",
    )
    ablate.add_argument(
        "--config", metavar="CONFIG", help=f"in place of the table's own: {config_help()}"
    )
    ablate.add_argument("--seeds", default="0", help=SEEDS_HELP.format(default="%(default)s"))
    ablate.add_argument("--folder", type=Path, help="where to write (default: OUTPUT/TABLE)")
    ablate.set_defaults(command=_ablate)


def _tables(options: argparse.Namespace) -> None:
    if options.table is None:
        for table in TABLES.values():
            count = sum(row.overrides is not None for row in table.rows)
            print(f"{table.name}  {table.title}: {count} rows to train, base {table.config}")
        return
    table = find_table(options.table)
    if options.row is not None:
        from cac_ext.train.experiments.ablate import load_row

        (row,) = table.select([options.row])[:1]
        print(configuration.to_yaml(load_row(table, row)), end="")
        return
    width = max(len(row.name) for row in table.rows)
    print(f"{table.title}; base {table.config} {' '.join(table.overrides)}")
    for row in table.rows:
        paper = "    -" if row.paper is None else f"{row.paper:5.1f}"
        changes = "(not trained here)" if row.overrides is None else " ".join(row.overrides)
        print(f"{row.name:{width}}  paper {paper}  {changes}".rstrip())


def _ablate(options: argparse.Namespace) -> None:
    from cac_ext.train.experiments.ablate import ablate, plan_rows
    from cac_ext.train.runtime.distributed import process_group

    table = find_table(options.table)
    # `--rows` takes all words up to the next option: settings among them are no rows.
    patterns = [word for word in options.rows if "=" not in word]
    overrides = [*options.overrides, *(word for word in options.rows if "=" in word)]
    if not patterns:
        raise ConfigError("--rows needs the name of a row, or a pattern")
    seeds = parse_seeds(options.seeds)
    runs = plan_rows(table, table.select(patterns), seeds, overrides, options.config)
    first = next(iter(runs.values()))
    folder = options.folder or Path(first.output).expanduser() / table.name
    with process_group(first.device) as processes:
        with telling_how_to_go_on("the same command", folder, quiet=not processes.is_main):
            text = ablate(table, runs, folder)
        if processes.is_main:
            print(f"\n{text}\n\nrun folders: {folder}")
