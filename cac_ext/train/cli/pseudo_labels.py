"""The commands ``cac-ext weak`` and ``cac-ext self-training``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cac_ext.train.cli.common import (
    add_config_arguments,
    add_overrides,
    load_config,
    telling_how_to_go_on,
)


def add_pseudo_label_commands(commands: argparse._SubParsersAction) -> None:
    """Adds ``weak`` and ``self-training`` to the command line's grammar."""
    weak = commands.add_parser(
        "weak",
        help="pseudo labels from image-level labels",
        description="Image-level labels of the unlabelled images (paper section 3.5): trains an "
        "image classifier, then makes pseudo labels of its class activation maps. One class must "
        "be the background (data.background_class). `cac-ext train CONFIG "
        "weak.pseudo_labels=auto` does all of it.",
    )
    actions = weak.add_subparsers(title="actions", required=True, metavar="ACTION")
    train = actions.add_parser(
        "train-classifier",
        help="train the image classifier",
        description="Trains an image classifier on the image-level labels: those of the list "
        "weak.image_labels (lines 'image id id ...'), or read off masks where the unlabelled "
        "images have some. Where image_classifier.weights is sup_only, a network is trained on "
        "the labelled images first, and the classifier starts from its encoder. The same command "
        "on the folder of an interrupted training goes on where that one stopped; after a kill, "
        "after its last whole epoch.",
    )
    add_config_arguments(train)
    train.add_argument(
        "--folder", type=Path, help="where to write (default: NAME-classifier below 'output')"
    )
    train.set_defaults(command=_train_classifier)

    labels = actions.add_parser(
        "make-labels",
        help="write the classifier's activation maps as pseudo labels",
        description="Writes a mask for each unlabelled image: the class of the largest activation "
        "where it is above image_classifier.foreground, background where all are below "
        "image_classifier.background, elsewhere no label (255). Masks that are there already "
        "are kept. Ends with how much is labelled, and how well where the images have masks; the "
        "same in pseudo_labels.json.",
    )
    labels.add_argument("folder", metavar="CLASSIFIER_FOLDER", type=Path)
    add_overrides(labels, "e.g. image_classifier.foreground=0.4")
    labels.add_argument(
        "--output", type=Path, help="folder of the masks (default: pseudo_labels in the folder)"
    )
    labels.set_defaults(command=_make_cam_labels)

    student = commands.add_parser(
        "self-training",
        help="pseudo labels from a trained network",
        description="Self-training: a trained network, the teacher, labels the unlabelled images. "
        "`cac-ext train CONFIG method.unsupervised_weight=0 self_training.pseudo_labels=auto` does "
        "all of it, the teacher's training too.",
    )
    actions = student.add_subparsers(title="actions", required=True, metavar="ACTION")
    labels = actions.add_parser(
        "make-labels",
        help="write a trained network's predictions as pseudo labels",
        description="Writes a mask for each unlabelled image; pixels of which the network is less "
        "sure than self_training.confidence_threshold get no label (255). Masks that are already "
        "there are kept. Ends with how much is labelled, and how well where the images have masks; "
        "the same in pseudo_labels.json.",
    )
    labels.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="of the teacher")
    add_overrides(labels, "e.g. self_training.confidence_threshold=0.7")
    labels.add_argument(
        "--output", type=Path, help="folder of the masks (default: pseudo_labels in the folder)"
    )
    labels.set_defaults(command=_make_teacher_labels)


def _train_classifier(options: argparse.Namespace) -> None:
    from cac_ext.train.experiments.prepare import prepare_classifier
    from cac_ext.train.runtime.distributed import process_group

    config = load_config(options)
    output = Path(config.output).expanduser()
    folder = options.folder or output / f"{config.name}-classifier"
    with process_group(config.device) as processes:
        command = f"the same command with --folder {folder}"
        with telling_how_to_go_on(command, folder, quiet=not processes.is_main):
            prepare_classifier(config, folder, folder / "teacher")
        if processes.is_main:
            print(f"image classifier: {folder / 'classifier.pt'}")
            print(f"make the pseudo labels: cac-ext weak make-labels {folder}")


def _make_cam_labels(options: argparse.Namespace) -> None:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.data.pseudo_label_files import warn_of_no_labels
    from cac_ext.train.pseudo_labels.activation_maps import write_cam_labels
    from cac_ext.train.pseudo_labels.image_classifier import load_classifier
    from cac_ext.train.runs.folder import read_config
    from cac_ext.train.runtime.distributed import find_device, process_group

    config = read_config(options.folder, options.overrides)
    splits = build_datasets(config.data)
    output = options.output or options.folder / "pseudo_labels"
    with process_group(config.device) as processes:
        device = find_device(config.device)
        classifier = load_classifier(config, splits.num_classes, options.folder, device)
        with telling_how_to_go_on("the same command", output, quiet=not processes.is_main):
            report = write_cam_labels(
                config, classifier, splits, output, processes=processes, progress=processes.is_main
            )
        if processes.is_main:
            print(f"{output}: {report}")
            warn_of_no_labels(report, "lower image_classifier.foreground")
            print(f"train with them: cac-ext train CONFIG weak.pseudo_labels={output}")


def _make_teacher_labels(options: argparse.Namespace) -> None:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.data.pseudo_label_files import warn_of_no_labels
    from cac_ext.train.pseudo_labels.self_training import write_teacher_labels
    from cac_ext.train.runs.folder import load_run, read_config, require_same_classes
    from cac_ext.train.runtime.distributed import process_group

    output = options.output or options.folder / "pseudo_labels"
    config = read_config(options.folder, options.overrides)
    with process_group(config.device) as processes:
        run = load_run(options.folder, options.overrides, ("self_training.confidence_threshold",))
        splits = build_datasets(config.data)
        require_same_classes(run, splits)
        with telling_how_to_go_on("the same command", output, quiet=not processes.is_main):
            report = write_teacher_labels(
                config, run.network, splits, output, processes=processes, progress=processes.is_main
            )
        if processes.is_main:
            print(f"{output}: {report}")
            warn_of_no_labels(report, "lower self_training.confidence_threshold")
            print(
                "train with them: cac-ext train CONFIG method.unsupervised_weight=0 "
                f"self_training.pseudo_labels={output}"
            )
