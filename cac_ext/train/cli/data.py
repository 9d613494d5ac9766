"""The commands ``cac-ext data split``, ``cac-ext data check`` and ``cac-ext data sbd``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from cac_ext.train.cli.common import Commands, add_config_arguments, load_config, parse_seeds

_FAULTY = 1  # exit code of a check that found problems


def add_data_commands(commands: Commands) -> None:
    """Adds ``data`` and its actions to the command line's grammar."""
    data = commands.add_parser(
        "data",
        help="write lists of labelled images, check the data, convert SBD",
        description="Prepares data.",
    )
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")

    split = actions.add_parser(
        "split",
        help="write lists of labelled and unlabelled images",
        description="Splits the training images of CONFIG (those of data.labelled_list, or the "
        "data set's own) into labelled and unlabelled ones and writes list files of lines 'image "
        "mask': OUTPUT/1_8/seed0/labelled.txt and unlabelled.txt. The same seed gives the same "
        "lists on every machine, and the images of 1/16 are among those of 1/8. For the same split "
        "without files: data.labelled_ratio=1/8 data.split_seed=0.",
    )
    add_config_arguments(split)
    split.add_argument(
        "--ratios",
        default="1/16,1/8,1/4,full",
        help="labelled shares separated by commas (default: %(default)s)",
    )
    split.add_argument(
        "--seeds", default="0,1,2", help="one split for each of them (default: %(default)s)"
    )
    split.add_argument(
        "--output", type=Path, help="folder of the lists (default: lists/NAME of CONFIG)"
    )
    split.set_defaults(command=_split)

    check = actions.add_parser(
        "check",
        help="read every image and mask and report all faults",
        description="Reads all images and masks of CONFIG. Prints how often each class occurs, "
        "remarks on what does not stop a run (such as classes that no image shows), and each "
        "problem with its file and line: missing and broken files, masks and images of different "
        "size, ids out of range, empty lists, images listed twice, validation images in the "
        "training set, labels of a single class or none, unusable image-level labels. Exit code "
        "0: no problems; 1: problems; 2: CONFIG cannot be used.",
    )
    add_config_arguments(check)
    check.set_defaults(command=_check)

    sbd = actions.add_parser(
        "sbd",
        help="make VOC's SegmentationClassAug from SBD's masks",
        description="Converts the masks of SBD (the Semantic Boundaries Dataset, MATLAB files) and "
        "writes VOC2012/SegmentationClassAug, a palette PNG for each image of SBD and VOC: 12,031 "
        "in all, which gives VOC 2012 10,582 training images. If VOC has its own mask of an image "
        "(SegmentationClass, with a void border), that mask is taken, as in the merged set in "
        "common use. The folder gets its name when it is complete. After an interruption, repeat "
        "the command to continue. Masks that are already in the folder are kept.",
    )
    sbd.add_argument(
        "sbd", metavar="SBD_FOLDER", type=Path, help="benchmark_RELEASE, which SBD unpacks to"
    )
    sbd.add_argument(
        "voc", metavar="VOC_FOLDER", type=Path, help="VOC2012, or a folder that holds it"
    )
    sbd.set_defaults(command=_sbd)


def _split(options: argparse.Namespace) -> None:
    from cac_ext.train.data.datasets.split import parse_ratio
    from cac_ext.train.experiments.split_lists import write_split_lists

    config = load_config(options)
    ratios = list(dict.fromkeys(parse_ratio(text) for text in options.ratios.split(",")))
    seeds = parse_seeds(options.seeds)
    output = options.output or Path("lists") / config.name
    first = None
    for lists in write_split_lists(config, ratios, seeds, output):
        first = first or lists
        for path in filter(None, (lists.labelled, lists.unlabelled)):
            print(f"{path}: {len(path.read_text(encoding='utf-8').splitlines())} images")
        if lists.warning:
            print(f"warning: {lists.warning}", file=sys.stderr)
    if first is not None:
        named = [f"data.labelled_list={first.labelled}"]
        named.append(f"data.unlabelled_list={first.unlabelled or 'null'}")
        command = ["cac-ext", "train", options.config, *options.overrides, *named]
        print(f"train with the first: {shlex.join(command)}")


def _check(options: argparse.Namespace) -> int:
    from cac_ext.train.experiments.data_report import report_on_data

    report, faulty = report_on_data(load_config(options))
    print(report)
    return _FAULTY if faulty else 0


def _sbd(options: argparse.Namespace) -> None:
    from cac_ext.train.data.datasets.sbd import merge

    print(merge(options.sbd, options.voc))
