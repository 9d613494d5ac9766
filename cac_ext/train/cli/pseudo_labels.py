"""The commands ``cac-ext weak`` and ``cac-ext self-training``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cac_ext.train.cli.common import (
    Commands,
    add_config_arguments,
    add_overrides,
    advising_how_to_resume,
    load_config,
)


def add_pseudo_label_commands(commands: Commands) -> None:
    """Adds ``weak`` and ``self-training`` to the command line's grammar."""
    weak = commands.add_parser(
        "weak",
        help="make pseudo labels from image-level labels",
        description="Uses image-level labels of the unlabelled images (paper section 3.5): trains "
        "an image classifier, then makes pseudo labels from its class activation maps. One class "
        "must be the background (data.background_class). `cac-ext train CONFIG "
        "weak.pseudo_labels=auto` does all of this.",
    )
    actions = weak.add_subparsers(title="actions", required=True, metavar="ACTION")
    train = actions.add_parser(
        "train-classifier",
        help="train the image classifier",
        description="Trains an image classifier on the image-level labels: from the list "
        "weak.image_labels (lines 'image id id ...'), or from masks if the unlabelled images have "
        "some. With image_classifier.weights=sup_only, a network is trained on the labelled images "
        "first, and the classifier starts from its encoder. Repeat the command with the folder of "
        "an interrupted training to resume it; a killed one resumes after its last whole epoch.",
    )
    add_config_arguments(train)
    train.add_argument(
        "--folder",
        type=Path,
        help="folder of the classifier (default: NAME-classifier in the folder 'output' of CONFIG)",
    )
    train.set_defaults(command=_train_classifier)

    labels = actions.add_parser(
        "make-labels",
        help="write the classifier's activation maps as pseudo labels",
        description="Writes a mask for each unlabelled image: the class of the largest activation "
        "if it is above image_classifier.foreground, background if all are below "
        "image_classifier.background, no label (255) otherwise. Existing masks are kept. Prints, "
        "and writes to pseudo_labels.json, the labelled share and, if the images have masks, its "
        "accuracy.",
    )
    labels.add_argument(
        "folder",
        metavar="CLASSIFIER_FOLDER",
        type=Path,
        help="folder of `cac-ext weak train-classifier`",
    )
    add_overrides(labels, "changed settings, e.g. image_classifier.foreground=0.4")
    labels.add_argument(
        "--output", type=Path, help="folder of the masks (default: pseudo_labels in that folder)"
    )
    labels.set_defaults(command=_make_cam_labels)

    student = commands.add_parser(
        "self-training",
        help="make pseudo labels with a trained network",
        description="Self-training: a trained network, the teacher, labels the unlabelled images. "
        "`cac-ext train CONFIG method.unsupervised_weight=0 self_training.pseudo_labels=auto` "
        "trains the teacher, makes its labels and trains the student.",
    )
    actions = student.add_subparsers(title="actions", required=True, metavar="ACTION")
    labels = actions.add_parser(
        "make-labels",
        help="write a trained network's predictions as pseudo labels",
        description="Writes a mask for each unlabelled image; pixels with a confidence of at most "
        "self_training.confidence_threshold get no label (255). Existing masks are kept. Prints, "
        "and writes to pseudo_labels.json, the labelled share and, if the images have masks, its "
        "accuracy.",
    )
    labels.add_argument(
        "folder", metavar="RUN_FOLDER", type=Path, help="folder of the teacher's run"
    )
    add_overrides(labels, "changed settings, e.g. self_training.confidence_threshold=0.7")
    labels.add_argument(
        "--output", type=Path, help="folder of the masks (default: pseudo_labels in that folder)"
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
        with advising_how_to_resume(command, folder, quiet=not processes.is_main):
            prepare_classifier(config, folder, folder / "teacher")
        if processes.is_main:
            print(f"image classifier: {folder / 'classifier.pt'}")
            print(f"make the pseudo labels: cac-ext weak make-labels {folder}")


def _make_cam_labels(options: argparse.Namespace) -> None:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.experiments.prepare import label_by_classifier
    from cac_ext.train.pseudo_labels.image_classifier import load_classifier
    from cac_ext.train.runs.folder import read_config
    from cac_ext.train.runtime.distributed import find_device, process_group

    config = read_config(options.folder, options.overrides)
    splits = build_datasets(config.data)
    output = options.output or options.folder / "pseudo_labels"
    with process_group(config.device) as processes:
        device = find_device(config.device)
        classifier = load_classifier(config, splits.num_classes, options.folder, device)
        with advising_how_to_resume("the same command", output, quiet=not processes.is_main):
            label_by_classifier(config, classifier, splits, output)
        if processes.is_main:
            print(f"train with them: cac-ext train CONFIG weak.pseudo_labels={output}")


def _make_teacher_labels(options: argparse.Namespace) -> None:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.experiments.prepare import label_by_teacher
    from cac_ext.train.runs.folder import load_run, read_config, require_same_classes
    from cac_ext.train.runtime.distributed import process_group

    output = options.output or options.folder / "pseudo_labels"
    config = read_config(options.folder, options.overrides)
    with process_group(config.device) as processes:
        run = load_run(options.folder, options.overrides, ("self_training.confidence_threshold",))
        splits = build_datasets(config.data)
        require_same_classes(run, splits)
        with advising_how_to_resume("the same command", output, quiet=not processes.is_main):
            label_by_teacher(config, run.network, splits, output)
        if processes.is_main:
            print(
                "train with them: cac-ext train CONFIG method.unsupervised_weight=0 "
                f"self_training.pseudo_labels={output}"
            )
