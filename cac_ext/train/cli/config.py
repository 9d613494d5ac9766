"""The command ``cac-ext config``."""

from __future__ import annotations

import argparse
import shutil

from cac_ext.train.cli.common import Commands, add_overrides, config_help
from cac_ext.train.config import load, to_yaml
from cac_ext.train.errors import ConfigError


def add_config_command(commands: Commands) -> None:
    """Adds ``config`` to the command line's grammar."""
    config = commands.add_parser(
        "config",
        help="print a configuration, or what its keys mean",
        description="Prints the whole configuration that CONFIG and the settings give, as YAML "
        "with every key; `cac-ext train` reads it. With --explain, prints the type, bounds, "
        "default and meaning of keys instead, and their values in CONFIG if one is given.",
    )
    config.add_argument("config", metavar="CONFIG", nargs="?", help=config_help())
    add_overrides(config, "settings that replace those of CONFIG, e.g. schedule.epochs=2")
    config.add_argument(
        "--explain",
        nargs="*",
        metavar="KEY",
        help="explain these keys: names, sections or patterns, e.g. seed method '*.weights' "
        "(default: all keys)",
    )
    config.add_argument(
        "--markdown", action="store_true", help="with --explain: as a Markdown document"
    )
    config.set_defaults(command=_config)


def _config(options: argparse.Namespace) -> None:
    words = options.explain or []
    # `--explain` takes all words up to the next option: settings among them are not keys.
    overrides = [*options.overrides, *(word for word in words if "=" in word)]
    if options.config is None and (options.explain is None or overrides):
        raise ConfigError("config needs the name or path of a configuration, or --explain alone")
    config = None if options.config is None else load(options.config, overrides)
    if options.explain is not None:
        from cac_ext.train.config.explain import explain, explain_in_markdown

        patterns = [word for word in words if "=" not in word]
        if options.markdown:
            print(explain_in_markdown(patterns), end="")
            return
        width = shutil.get_terminal_size().columns
        print(explain(patterns, width, options.config or "", config))
    elif config is not None:
        print(to_yaml(config), end="")
