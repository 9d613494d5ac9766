"""The commands ``cac-ext weak`` and ``cac-ext self-training``."""

from __future__ import annotations

import argparse
from pathlib import Path

from cac_ext.train import config as configuration
from cac_ext.train.errors import ConfigError


def add_pseudo_label_commands(
    commands: argparse._SubParsersAction, config_help: str, overrides_help: str
) -> None:
    """Adds ``weak`` and ``self-training`` to the command line's grammar."""
    weak = commands.add_parser(
        "weak",
        help="pseudo labels from image-level labels",
        description="Image-level labels of the unlabelled images (paper section 3.5): trains an "
        "image classifier, then makes pseudo labels of its class activation maps. Class 0 must be "
        "the background. `cac-ext compare CONFIG --methods cac,weak` does all of it.",
    )
    actions = weak.add_subparsers(title="actions", required=True, metavar="ACTION")
    train = actions.add_parser(
        "train-classifier",
        help="train the image classifier",
        description="Trains an image classifier on the image-level labels: those of the list "
        "weak.image_labels (lines 'image id id ...'), or read off masks where the unlabelled "
        "images have some. The same command on the folder of an interrupted training goes on "
        "after its last whole epoch.",
    )
    train.add_argument("config", metavar="CONFIG", help=config_help)
    train.add_argument("overrides", metavar="key=value", nargs="*", help=overrides_help)
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
        "are kept.",
    )
    labels.add_argument("folder", metavar="CLASSIFIER_FOLDER", type=Path)
    labels.add_argument(
        "overrides", metavar="key=value", nargs="*", help="e.g. image_classifier.foreground=0.4"
    )
    labels.add_argument(
        "--output", type=Path, help="folder of the masks (default: pseudo_labels in the folder)"
    )
    labels.set_defaults(command=_make_cam_labels)

    student = commands.add_parser(
        "self-training",
        help="pseudo labels from a trained network",
        description="Self-training: a trained network, the teacher, labels the unlabelled images. "
        "`cac-ext compare CONFIG --methods sup_only,self_training` does all of it.",
    )
    actions = student.add_subparsers(title="actions", required=True, metavar="ACTION")
    labels = actions.add_parser(
        "make-labels",
        help="write a trained network's predictions as pseudo labels",
        description="Writes a mask for each unlabelled image; pixels of which the network is less "
        "sure than self_training.confidence_threshold get no label (255). Masks that are already "
        "there are kept.",
    )
    labels.add_argument("folder", metavar="RUN_FOLDER", type=Path, help="of the teacher")
    labels.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="e.g. self_training.confidence_threshold=0.7",
    )
    labels.add_argument(
        "--output", type=Path, help="folder of the masks (default: pseudo_labels in the folder)"
    )
    labels.set_defaults(command=_make_teacher_labels)


def _train_classifier(options: argparse.Namespace) -> None:
    from cac_ext.train.loop import find_device
    from cac_ext.train.weak.classifier import train_classifier

    config = configuration.load(options.config, options.overrides)
    folder = options.folder or Path(config.output) / f"{config.name}-classifier"
    model = train_classifier(config, folder, find_device(config.device))
    print(f"image classifier from {model.initial_weights}: {folder / 'classifier.pt'}")
    print(f"make the pseudo labels: cac-ext weak make-labels {folder}")


def _make_cam_labels(options: argparse.Namespace) -> None:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.loop import find_device
    from cac_ext.train.weak.cam import write_cam_labels
    from cac_ext.train.weak.classifier import load_classifier

    config = _load(options, "of an image classifier")
    splits = build_datasets(config.data)
    device = find_device(config.device)
    classifier = load_classifier(config, splits.num_classes, options.folder, device)
    output = options.output or options.folder / "pseudo_labels"
    print(f"{output}: {write_cam_labels(config, classifier, splits, output)}")
    print(f"train with them: cac-ext train CONFIG weak.pseudo_labels={output}")


def _make_teacher_labels(options: argparse.Namespace) -> None:
    from cac_ext.train.checkpoint import read_checkpoint
    from cac_ext.train.data import build_datasets
    from cac_ext.train.loop import find_device
    from cac_ext.train.networks import build_network
    from cac_ext.train.self_training import load_network, write_teacher_labels

    config = _load(options, "of a run")
    splits = build_datasets(config.data)
    state = read_checkpoint(options.folder / "checkpoint.pt")
    network = build_network(config.network, splits.num_classes, pretrained=False)
    load_network(network, state).to(find_device(config.device))
    output = options.output or options.folder / "pseudo_labels"
    threshold = config.self_training.confidence_threshold
    print(f"{output}: {write_teacher_labels(network, splits, threshold, output)}")
    print(
        "train with them: cac-ext train CONFIG method.unsupervised_weight=0 "
        f"self_training.pseudo_labels={output}"
    )


def _load(options: argparse.Namespace, what: str) -> configuration.Config:
    saved = options.folder / "config.yaml"
    if not saved.is_file():
        raise ConfigError(f"{options.folder} is no folder {what}: it holds no config.yaml")
    return configuration.load(str(saved), options.overrides)
