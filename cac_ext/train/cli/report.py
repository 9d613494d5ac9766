"""The command ``cac-ext report``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cac_ext.train.cli.common import Commands
from cac_ext.train.errors import ConfigError

_IMAGES = 4


def add_report_command(commands: Commands) -> None:
    """Adds ``report`` to the command line's grammar."""
    report = commands.add_parser(
        "report",
        help="write one HTML page about runs: results, curves, pictures, settings",
        description="Writes one HTML file about any number of runs, with a column for each. It "
        "needs no other file and no network, so that it can be opened, sent and printed as it is. "
        "It has: mIoU and state of the training; validation curves; IoU of each class; validation "
        "images with truth and predictions; the confusion matrix; curves of all logged figures; "
        "precision of the negatives; time and memory; the settings that differ from the named "
        "configuration or between the runs; versions and devices. A run may still be training, or "
        "lack something: the page and the command say what. The run folders are only read. An "
        "earlier report is replaced, any other file is not.",
    )
    report.add_argument(
        "runs",
        metavar="RUN_FOLDER",
        nargs="+",
        help="folders of runs; after them key=value for changed data, evaluation.* and device of "
        "the predictions, e.g. data.root=... device=cpu",
    )
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the HTML file (default: report.html in the run folder; with several runs, beside the "
        "folder of the first)",
    )
    report.add_argument(
        "--images",
        type=int,
        default=_IMAGES,
        help="number of validation images to predict; 0: none, which needs neither the data nor "
        "the checkpoint (default: %(default)s)",
    )
    report.set_defaults(command=_report, overrides=[])


def _report(options: argparse.Namespace) -> None:
    folders = [word for word in options.runs if "=" not in word or Path(word).is_dir()]
    overrides = [word for word in options.runs if word not in folders] + options.overrides
    if not folders:
        raise ConfigError("report needs a run folder, or several")
    from cac_ext.train import api

    report = api.write_report(folders, options.output, overrides=overrides, images=options.images)
    for sentence in report.missing:
        print(f"cac-ext: missing in the report: {sentence}", file=sys.stderr)
    print(report.path)
