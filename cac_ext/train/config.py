"""Configuration: typed, from YAML files shipped in `cac_ext/configs` or the user's own.

`load` merges, in this order: the defaults below, the file named by the YAML's ``base:`` (a shipped
name or a path beside the file), the YAML, and ``key=value`` overrides. A key that does not exist
and a value of the wrong type are errors that name the key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Optional  # Optional: OmegaConf reads these annotations

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cac_ext.train.errors import ConfigError

# ruff: noqa: UP045


@dataclass(frozen=True)
class SyntheticConfig:
    """The built-in data (`data/synthetic.py`), drawn on the fly."""

    seed: int = 0  # of the images
    image_size: int = 96  # pixels a side
    labelled: int = 64  # number of images with masks
    unlabelled: int = 448  # number of images without
    validation: int = 128


@dataclass(frozen=True)
class DataConfig:
    """Which images (`data/__init__.py`)."""

    name: str = "synthetic"  # a data set of cac_ext.train.data, or package.module:function
    root: Optional[str] = None  # folder to which the lists' paths are relative
    labelled_list: Optional[str] = None  # file of lines "image mask"
    unlabelled_list: Optional[str] = None  # file of lines "image"; a second column is not read
    validation_list: Optional[str] = None  # file of lines "image mask"
    labelled_ratio: Optional[str] = None  # "1/8", ...: of the training images; the rest unlabelled
    # Which images these are (`data/split.py`), whatever the run's seed; ${seed}: others for each,
    # as for the paper's means over three lists.
    split_seed: int = 0
    num_classes: Optional[int] = None
    class_names: Optional[list[str]] = None
    ignore_index: int = 255  # mask value that is left out of loss and mIoU
    # Of a folder's classes the one that stands for "none of the others", if there is one: for
    # image-level labels. null: the class called "background".
    background_class: Optional[int] = None
    num_workers: int = 0  # processes that load images, for each of the two branches
    # Pixels that an image may have, so that no small file fills the memory; null: any number.
    max_image_pixels: Optional[int] = 178_956_970
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class AugmentConfig:
    """Crops and their augmentation (`data/augment.py`), paper section 4.1."""

    crop_size: int = 320  # pixels a side, of labelled crops and of both views
    base_size: Optional[int] = None  # long side in pixels before scaling; null: as in the file
    labelled_scale: tuple[float, float] = (0.5, 2.0)
    unlabelled_scale: tuple[float, float] = (0.8, 2.0)
    flip: float = 0.5  # probability, independent in the two views
    blur: float = 0.5  # probability of the 5x5 Gaussian blur of a view
    jitter: float = 0.8  # probability of colour jitter of a view
    jitter_strength: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    grey: float = 0.2  # probability of turning a view grey


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network (`networks/__init__.py`)."""

    name: str = "small"  # a network of cac_ext.train.networks, or package.module:function
    width: int = 64  # channels of the small network's features
    dropout: float = 0.1  # in front of the classifier, supervised branch only
    backbone: str = "resnet50"  # of deeplabv3plus (resnet101) and pspnet (resnet101, vgg16)
    # Of the backbone: a file (.safetensors, .pth) or a name of torchvision's, e.g. IMAGENET1K_V1.
    weights: Optional[str] = None
    # Where a ResNet's stages are strided: torchvision's weights 3x3, the original ResNet's 1x1.
    stride_in: Literal["3x3", "1x1"] = "3x3"
    options: dict[str, Any] = field(default_factory=dict)  # of a network of your own


@dataclass(frozen=True)
class MethodConfig:
    """The unlabelled branch (`step.py`), with a switch for each column of the paper's Table 3."""

    unsupervised_weight: float = 0.1  # lambda of Eq. 9; 0 is SupOnly
    loss: Literal["contrastive", "l2"] = "contrastive"
    temperature: float = 0.1  # tau
    confidence_threshold: float = 0.75  # gamma of Eq. 7
    iou_range: tuple[float, float] = (0.1, 1.0)  # of the two crops; [1, 1] is "no context"
    directional: bool = True  # Eq. 2
    negative_sampling: bool = True  # Eq. 5
    positive_filtering: bool = True  # Eq. 7
    projector: bool = True
    projector_channels: int = 128
    # overlap: 1 / (B N_b), the paper's Eq. 1 and 8; active: by the number of active anchors of
    # each direction, the authors' code.
    normalizer: Literal["overlap", "active"] = "overlap"
    selected_num: Optional[int] = None  # negatives of each view and step; null: all there are
    step_save: int = 1  # earlier steps that the memory bank keeps


@dataclass(frozen=True)
class WeakConfig:
    """Image-level labels of the unlabelled images (`weak/`), paper section 3.5."""

    # Masks of the unlabelled images, a folder that `cac-ext weak make-labels` wrote; null: the
    # semi-supervised setting; auto: made before training, in the run folder.
    pseudo_labels: Optional[str] = None
    weight: float = 0.4  # lambda_w of Eq. 10, at its full height
    rampup: float = 0.1  # share of the iterations in which it rises
    image_labels: Optional[str] = None  # file of lines "image id id ..."; null: from known masks


@dataclass(frozen=True)
class ImageClassifierConfig:
    """The classifier whose class activation maps become `weak`'s masks (`weak/classifier.py`)."""

    network: Literal["auto", "resnet50", "small"] = "auto"  # auto: small for the small network
    # As network.weights; sup_only: the encoder of the supervised run, which is trained first.
    weights: Optional[str] = None
    crop_size: Optional[int] = None  # pixels; null: 1.6 augment.crop_size, which is 512 for VOC
    epochs: int = 5
    batch: int = 16
    learning_rate: float = 0.1
    scales: list[float] = field(default_factory=lambda: [1.0, 0.5, 1.5, 2.0])
    foreground: float = 0.30  # an activation above is of its class,
    background: float = 0.05  # all of them below: background; what is between is ignored


@dataclass(frozen=True)
class SelfTrainingConfig:
    """A student of a supervised teacher ("ST" of Table 3, `self_training.py`)."""

    # Masks of the unlabelled images, a folder that `cac-ext self-training make-labels` wrote;
    # null: none; auto: made before training, in the run folder.
    pseudo_labels: Optional[str] = None
    confidence_threshold: float = 0.5  # pixels of which the teacher is less sure are ignored


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with poly decay (`optimizer.py`)."""

    learning_rate: float = 0.01
    backbone_factor: float = 0.1  # learning rate of the backbone, relative to the rest
    momentum: float = 0.9
    weight_decay: float = 1e-4
    poly_power: float = 0.9


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, in what batches, and what happens how often (`loop.py`)."""

    epochs: int = 80
    iterations_per_epoch: int = 1157
    warmup_epochs: int = 5  # supervised loss only
    labelled_batch: int = 8
    unlabelled_batch: int = 8
    evaluate_every: int = 1  # epochs; the last epoch is always evaluated
    log_every: int = 10  # iterations


@dataclass(frozen=True)
class RunConfig:
    """How it is computed: arithmetic, memory layout, several processes; what is measured."""

    # bf16, fp16: mixed precision (autocast), fp16 with loss scaling. The weights stay fp32.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False  # torch.compile; the first steps take longer
    channels_last: bool = False  # memory layout that tensor cores prefer
    nonfinite: Literal["stop", "skip"] = "stop"  # a step whose loss or gradient is nan or inf
    # Losses are means over all processes' pixels and anchors, not means of each process's means.
    normalize_over_ranks: bool = True
    # Precision of the selected negatives (paper Fig. 6, `negative_precision.py`). It needs masks of
    # the unlabelled images, which nothing else looks at; they change nothing of the training.
    negative_precision: bool = False


@dataclass(frozen=True)
class Config:
    """A whole run.

    On a CPU the same configuration gives the same result bit for bit, on the same machine with as
    many threads. On a GPU it does up to rounding: of the layers around the loss some, as torch's
    bilinear upsampling and adaptive pooling, add up their gradients in no fixed order. The loss
    itself is bitwise repeatable there too.
    """

    name: str = "run"  # of the run folder
    seed: int = 0  # initial weights, order, crops, augmentation, choice of negatives
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    output: str = "runs"  # folder in which run folders are made
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    weak: WeakConfig = field(default_factory=WeakConfig)
    image_classifier: ImageClassifierConfig = field(default_factory=ImageClassifierConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def iterations(self) -> int:
        """Optimiser steps of the whole run."""
        return self.schedule.epochs * self.schedule.iterations_per_epoch


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a shipped name or a YAML file, with ``key=value`` overrides.

    Raises:
        ConfigError: no such file, an unknown key, a wrong type, or a value out of range.
    """
    merged = OmegaConf.structured(Config)
    for layer, source in _layers(name_or_path):
        merged = _merge(merged, layer, source)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"an override must look like key=value, but got {override!r}")
        try:
            layer = OmegaConf.from_dotlist([override])
        except Exception as error:  # yaml has its own exceptions
            raise ConfigError(f"cannot read the override {override!r}: {error}") from error
        merged = _merge(merged, layer, f"override {override!r}")
    return _finish(merged)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, which `load` reads again."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_mapping(config: Config) -> dict[str, Any]:
    """The whole configuration as plain dicts and lists."""
    return OmegaConf.to_container(OmegaConf.structured(config))


def shipped() -> list[str]:
    """Names of the configurations that come with the package."""
    files = resources.files("cac_ext").joinpath("configs").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing where no allowed name is near."""
    matches = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _layers(name_or_path: str, beside: Path | None = None) -> list[tuple[DictConfig, str]]:
    """The YAML and all its bases, the deepest base first."""
    if name_or_path in shipped():
        path = Path(str(resources.files("cac_ext").joinpath("configs", f"{name_or_path}.yaml")))
    else:
        path = (beside or Path()) / name_or_path
    if not path.is_file():
        raise ConfigError(
            f"there is no configuration {name_or_path!r}{nearest(name_or_path, shipped())}: "
            f"give a path to a YAML file or one of {', '.join(shipped())}"
        )
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # yaml has its own exceptions
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(layer, DictConfig):
        raise ConfigError(f"{path} must hold keys and values, but holds a list")
    base = layer.pop("base", None)
    return (_layers(base, path.parent) if base else []) + [(layer, str(path))]


def _merge(merged: DictConfig, layer: DictConfig, source: str) -> DictConfig:
    _check_keys(OmegaConf.to_container(layer, resolve=False), Config, "", source)
    try:
        return OmegaConf.merge(merged, layer)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{source}: {key}{error.msg or error}") from error


def _check_keys(layer: Mapping[str, Any], schema: type, prefix: str, source: str) -> None:
    """Raises for a key the schema does not have, or a value where it has a section."""
    sections = {
        f.name: f.default_factory for f in fields(schema) if is_dataclass(f.default_factory)
    }
    allowed = [f.name for f in fields(schema)]
    for key, value in layer.items():
        if key not in allowed:
            hint = nearest(f"{prefix}{key}", _all_keys(Config)) or nearest(str(key), allowed)
            raise ConfigError(
                f"{source}: there is no key {prefix}{key}{hint}; "
                f"{prefix.rstrip('.') or 'the top level'} has {', '.join(allowed)}"
            )
        if key in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{source}: {prefix}{key} is a section and takes no value of its own; set one "
                    f"of {', '.join(f'{prefix}{key}.{f.name}' for f in fields(sections[key]))}"
                )
            _check_keys(value, sections[key], f"{prefix}{key}.", source)


def _all_keys(schema: type, prefix: str = "") -> list[str]:
    keys = []
    for f in fields(schema):
        if is_dataclass(f.default_factory):
            keys += _all_keys(f.default_factory, f"{prefix}{f.name}.")
        keys.append(f"{prefix}{f.name}")
    return keys


def _finish(merged: DictConfig) -> Config:
    try:
        config: Config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {error.msg or error}") from error
    _check_values(config)
    return config


def _check_values(config: Config) -> None:
    """Raises for values of the right type that cannot work."""
    synthetic, augment, method = config.data.synthetic, config.augment, config.method
    positive = {
        "data.synthetic.image_size": synthetic.image_size,
        "data.synthetic.labelled": synthetic.labelled,
        "data.synthetic.validation": synthetic.validation,
        "augment.crop_size": augment.crop_size,
        "network.width": config.network.width,
        "method.temperature": method.temperature,
        "method.projector_channels": method.projector_channels,
        "image_classifier.epochs": config.image_classifier.epochs,
        "image_classifier.batch": config.image_classifier.batch,
        "image_classifier.learning_rate": config.image_classifier.learning_rate,
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "schedule.epochs": config.schedule.epochs,
        "schedule.iterations_per_epoch": config.schedule.iterations_per_epoch,
        "schedule.labelled_batch": config.schedule.labelled_batch,
        "schedule.unlabelled_batch": config.schedule.unlabelled_batch,
        "schedule.evaluate_every": config.schedule.evaluate_every,
        "schedule.log_every": config.schedule.log_every,
    }
    not_negative = {
        "seed": config.seed,
        "data.num_workers": config.data.num_workers,
        "data.synthetic.seed": synthetic.seed,
        "data.synthetic.unlabelled": synthetic.unlabelled,
        "data.background_class": config.data.background_class or 0,
        "method.unsupervised_weight": method.unsupervised_weight,
        "method.step_save": method.step_save,
        "weak.weight": config.weak.weight,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "schedule.warmup_epochs": config.schedule.warmup_epochs,
    }
    probabilities = {
        "augment.flip": augment.flip,
        "augment.blur": augment.blur,
        "augment.jitter": augment.jitter,
        "augment.grey": augment.grey,
        "network.dropout": config.network.dropout,
        "method.confidence_threshold": method.confidence_threshold,
        "self_training.confidence_threshold": config.self_training.confidence_threshold,
        "weak.rampup": config.weak.rampup,
        "image_classifier.foreground": config.image_classifier.foreground,
    }
    ranges = {
        "augment.labelled_scale": augment.labelled_scale,
        "augment.unlabelled_scale": augment.unlabelled_scale,
        "method.iou_range": method.iou_range,
    }
    for key, value in positive.items():
        _require(value > 0, key, value, "greater than 0")
    for key, value in not_negative.items():
        _require(value >= 0, key, value, "0 or greater")
    for key, value in probabilities.items():
        _require(0 <= value <= 1, key, value, "within 0 and 1")
    for key, (low, high) in ranges.items():
        _require(0 < low <= high, key, [low, high], "[low, high] with 0 < low <= high")
    _require(method.iou_range[1] <= 1, "method.iou_range", list(method.iou_range), "at most 1")
    maps = config.image_classifier
    _require(
        0 <= maps.background <= maps.foreground,
        "image_classifier.background",
        maps.background,
        f"within 0 and image_classifier.foreground, {maps.foreground}",
    )
    scales = maps.scales
    _require(bool(scales) and min(scales) > 0, "image_classifier.scales", scales, "greater than 0")
    if maps.crop_size is not None:
        _require(maps.crop_size > 0, "image_classifier.crop_size", maps.crop_size, "> 0 or null")
    if config.data.max_image_pixels is not None:
        pixels = config.data.max_image_pixels
        _require(pixels > 0, "data.max_image_pixels", pixels, "> 0 or null")
    if method.selected_num is not None:
        _require(method.selected_num > 0, "method.selected_num", method.selected_num, "> 0 or null")


def _require(satisfied: bool, key: str, value: object, needed: str) -> None:
    if not satisfied:
        raise ConfigError(f"{key} must be {needed}, but is {value}")
