"""The commands ``cac-ext data split``, ``cac-ext data check`` and ``cac-ext data sbd``."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cac_ext.train.cli.common import add_config_arguments, load_config, parse_seeds
from cac_ext.train.errors import ConfigError, DataError, UserError
from cac_ext.train.pseudo_labels.folders import AUTO

if TYPE_CHECKING:
    from cac_ext.train.config import Config
    from cac_ext.train.data import DatasetSplits

_FAULTY = 1  # exit code of a check that found problems


def add_data_commands(commands: argparse._SubParsersAction) -> None:
    """Adds ``data`` and what belongs to it to the command line's grammar."""
    data = commands.add_parser(
        "data",
        help="make lists of labelled images, look for faults in the data, convert SBD",
        description="Prepares data.",
    )
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")

    split = actions.add_parser(
        "split",
        help="write lists of labelled and unlabelled images",
        description="Splits the training images of CONFIG (those of data.labelled_list, or the "
        "data set's own) into labelled and unlabelled ones and writes list files of lines 'image "
        "mask': OUTPUT/1_8/seed0/labelled.txt and unlabelled.txt. The same seed gives the same "
        "lists on every machine, and the images of 1/16 are among those of 1/8. The same split "
        "without files: data.labelled_ratio=1/8 data.split_seed=0.",
    )
    add_config_arguments(split)
    split.add_argument(
        "--ratios",
        default="1/16,1/8,1/4,full",
        help="labelled shares separated by commas (default: %(default)s)",
    )
    split.add_argument(
        "--seeds", default="0,1,2", help="a list for each of them (default: %(default)s)"
    )
    split.add_argument(
        "--output", type=Path, help="folder of the lists (default: lists/NAME of CONFIG)"
    )
    split.set_defaults(command=_split)

    check = actions.add_parser(
        "check",
        help="read every image and mask and name all faults",
        description="Reads all images and masks of CONFIG: missing and broken files, masks of "
        "another size than their image, ids out of range, empty lists, images listed twice, "
        "validation images that are trained on, labels of a single class or none, image-level "
        "labels that cannot be used. Prints each with its file and line and how often each class "
        "occurs; and as remarks what a run can live with, such as classes that no image shows. "
        "Exit code 0: no problems; 1: problems; 2: CONFIG cannot be used.",
    )
    add_config_arguments(check)
    check.set_defaults(command=_check)

    sbd = actions.add_parser(
        "sbd",
        help="make VOC's SegmentationClassAug of SBD's masks",
        description="Converts the masks of SBD (the Semantic Boundaries Dataset, MATLAB files) and "
        "writes VOC2012/SegmentationClassAug, a palette PNG for each of SBD's and VOC's images: "
        "12,031 of them, with which VOC 2012 has 10,582 training images. Where VOC has a mask of "
        "its own (SegmentationClass, with a void border), that one is taken, as in the merged set "
        "in common use. The folder gets its name when it is complete; the same command after an "
        "interruption goes on. Masks that are already in it are kept.",
    )
    sbd.add_argument(
        "sbd", metavar="SBD_FOLDER", type=Path, help="benchmark_RELEASE, which SBD unpacks to"
    )
    sbd.add_argument(
        "voc", metavar="VOC_FOLDER", type=Path, help="VOC2012, or a folder that holds it"
    )
    sbd.set_defaults(command=_sbd)


def _split(options: argparse.Namespace) -> None:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.data.checks.class_findings import named_classes
    from cac_ext.train.data.checks.split_search import SplitSearch
    from cac_ext.train.data.datasets.split import parse_ratio, split, write_split
    from cac_ext.train.data.files.image_files import ImageFiles

    config = load_config(options)
    ratios = {parse_ratio(text): None for text in options.ratios.split(",")}  # each once
    seeds = parse_seeds(options.seeds)
    whole = replace(config.data, labelled_ratio=None, unlabelled_list=None)
    splits = build_datasets(whole)
    images = splits.labelled
    if not isinstance(images, ImageFiles):
        raise ConfigError(
            f"the images of the data set {config.data.name!r} are not files, and no list can name "
            "them"
        )
    output = options.output or Path("lists") / config.name
    written = []
    search = SplitSearch(splits, images)
    for ratio in ratios:
        for seed in seeds if ratio < 1 else seeds[:1]:  # all labelled: one list, whatever the seed
            folder = output / "full"
            if ratio < 1:
                folder = output / f"{ratio.numerator}_{ratio.denominator}" / f"seed{seed}"
            lists = write_split(folder, images.root, images.entries, ratio, seed)
            for path in filter(None, lists):
                print(f"{path}: {len(path.read_text(encoding='utf-8').splitlines())} images")
            missing = search.absent(split(images.entries, ratio, seed)[0])
            if missing:
                names = named_classes(missing, splits)
                advice = search.advice(ratio, seed, missing, "--seeds {}")
                print(f"warning: {lists[0]} has no pixel of: {names}. {advice}", file=sys.stderr)
            written.append(lists)
    labelled, unlabelled = (path or "null" for path in written[0])
    named = [f"data.labelled_list={labelled}", f"data.unlabelled_list={unlabelled}"]
    command = shlex.join(["cac-ext", "train", options.config, *options.overrides, *named])
    print(f"train with the first: {command}")


def _check(options: argparse.Namespace) -> int:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.data.checks.check import check, format_report
    from cac_ext.train.pseudo_labels.image_labels import read_image_labels

    config = load_config(options)
    try:
        splits = build_datasets(config.data, check=False)
    except DataError as error:  # a list that cannot be read is a finding, too
        print(f"problem: {error}")
        return _FAULTY
    report = check(splits, data=config.data, num_workers=config.data.num_workers)
    remark = _remark_on_crops(config, splits)
    report.remarks += [remark] if remark else []
    if config.weak.image_labels is not None or config.weak.pseudo_labels == AUTO:
        try:
            read_image_labels(config.weak, config.data, splits)
        except UserError as error:
            report.problems.append(str(error))
    print(format_report(report, splits.class_names))
    return _FAULTY if report.problems else 0


def _remark_on_crops(config: Config, splits: DatasetSplits) -> str | None:
    """What is to be said about crop pairs of the unlabelled images, if they can be drawn."""
    import torch

    from cac_ext.train.networks import build_network
    from cac_ext.train.preflight import small_images_remark

    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(config.network, splits.num_classes, pretrained=False)
        return small_images_remark(config, splits, network.pooled_grid)
    except DataError:  # a problem that has been found already
        return None
    except Exception as error:  # of the network, which may be the user's; not a fault of the data
        return f"crop pairs could not be drawn: {error}"


def _sbd(options: argparse.Namespace) -> None:
    from cac_ext.train.data.datasets.sbd import merge

    print(merge(options.sbd, options.voc))
