"""Every key of a configuration: its type, default and meaning, and the bounds of the numbers.

A number's field holds its bounds (`bounds.number`), which `load` checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional  # Optional: OmegaConf reads these annotations

from cac_ext.train.config.bounds import above, below, bounded, number, within

# ruff: noqa: UP045

_COUNT = above(0, 10**6)  # of epochs, images, ...
_SEED = within(0, 2**63 - 1)
_SHARE = within(0, 1)
_SIDE = above(0, 16384)  # pixels
_SCALE = within(0.01, 100)
_RATE = above(0, 1000)  # learning rates
_WEIGHT = within(0, 1000)  # of a loss beside the supervised one, which has 1
_BATCH = above(0, 65536)
# An evaluation counts the pixels of each pair of classes, num_classes squared of them.
_MOST_CLASSES = 8192
_CLASSES = within(
    2,
    _MOST_CLASSES,
    too_low="the background is a class too, and one class alone leaves nothing to tell apart; for "
    "one kind of object the masks hold 0 (background) and 1 (object), and data.num_classes is 2",
)


@dataclass(frozen=True)
class SyntheticConfig:
    """The built-in data (`data/synthetic.py`), drawn on the fly."""

    seed: int = number(0, _SEED)  # of the images
    image_size: int = number(96, within(32, 4096))  # pixels a side
    labelled: int = number(64, _COUNT)  # number of images with masks
    unlabelled: int = number(448, within(0, 10**6))  # number of images without
    validation: int = number(128, _COUNT)


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
    split_seed: int = number(0, _SEED)
    num_classes: Optional[int] = number(None, _CLASSES)
    class_names: Optional[list[str]] = None
    # Mask value that is left out of loss and mIoU; a class of this id is never learned.
    ignore_index: int = number(255, within(-(2**31), 2**31 - 1))
    # Of a folder's classes the one that stands for "none of the others", if there is one: for
    # image-level labels. null: the class called "background".
    background_class: Optional[int] = number(None, within(0, _MOST_CLASSES - 1))
    # Processes that load images, for each of the two branches.
    # Pixels that an image may have, so that no small file fills the memory; null: any number.
    max_image_pixels: Optional[int] = number(178_956_970, above(0, 2**62))
    num_workers: int = number(0, within(0, 1024))
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class AugmentConfig:
    """Crops and their augmentation (`data/augment.py`), paper section 4.1."""

    crop_size: int = number(320, _SIDE)  # pixels a side, of labelled crops and of both views
    # Long side in pixels before scaling; null: as in the file.
    base_size: Optional[int] = number(None, _SIDE)
    labelled_scale: tuple[float, float] = number((0.5, 2.0), _SCALE, ordered=True)
    unlabelled_scale: tuple[float, float] = number((0.8, 2.0), _SCALE, ordered=True)
    flip: float = number(0.5, _SHARE)  # probability, independent in the two views
    blur: float = number(0.5, _SHARE)  # probability of the 5x5 Gaussian blur of a view
    jitter: float = number(0.8, _SHARE)  # probability of colour jitter of a view
    # Of brightness, contrast, saturation and hue; hue runs through the whole circle at 0.5.
    jitter_strength: tuple[float, float, float, float] = number(
        (0.4, 0.4, 0.4, 0.1), (*[within(0, 10)] * 3, within(0, 0.5))
    )
    grey: float = number(0.2, _SHARE)  # probability of turning a view grey


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network (`networks/__init__.py`)."""

    name: str = "small"  # a network of cac_ext.train.networks, or package.module:function
    width: int = number(64, within(16, 65536))  # channels of the small network's features
    dropout: float = number(0.1, below(1))  # in front of the classifier, supervised branch only
    backbone: str = "resnet50"  # of deeplabv3plus (resnet101) and pspnet (resnet101, vgg16)
    # Of the backbone: a file (.safetensors, .pth) or a name of torchvision's, e.g. IMAGENET1K_V1.
    weights: Optional[str] = None
    # Where a ResNet's stages are strided: torchvision's weights 3x3, the original ResNet's 1x1.
    stride_in: Literal["3x3", "1x1"] = "3x3"
    options: dict[str, Any] = field(default_factory=dict)  # of a network of your own


@dataclass(frozen=True)
class MethodConfig:
    """The training method (`methods/`), with a switch for each column of the paper's Table 3."""

    name: str = "cac"  # a method of cac_ext.train.methods, or package.module:Class
    options: dict[str, Any] = field(default_factory=dict)  # of a custom method
    unsupervised_weight: float = number(0.1, _WEIGHT)  # lambda of Eq. 9; 0 is SupOnly
    loss: Literal["contrastive", "l2"] = "contrastive"
    temperature: float = number(0.1, within(0.001, 100))  # tau
    confidence_threshold: float = number(0.75, _SHARE)  # gamma of Eq. 7
    # Of the two crops; [1, 1] is "no context".
    iou_range: tuple[float, float] = number((0.1, 1.0), above(0, 1), ordered=True)
    directional: bool = True  # Eq. 2
    negative_sampling: bool = True  # Eq. 5
    positive_filtering: bool = True  # Eq. 7
    projector: bool = True
    projector_channels: int = number(128, above(0, 65536))
    # overlap: 1 / (B N_b), the paper's Eq. 1 and 8; active: by the number of active anchors of
    # each direction, the authors' code.
    normalizer: Literal["overlap", "active"] = "overlap"
    # Negatives of each view and step; null: all there are.
    selected_num: Optional[int] = number(None, above(0, 10**9))
    step_save: int = number(1, within(0, 10**4))  # earlier steps that the memory bank keeps


@dataclass(frozen=True)
class WeakConfig:
    """Image-level labels of the unlabelled images (`weak/`), paper section 3.5."""

    # Masks of the unlabelled images, a folder that `cac-ext weak make-labels` wrote; null: the
    # semi-supervised setting; auto: made before training, in the run folder.
    pseudo_labels: Optional[str] = None
    weight: float = number(0.4, _WEIGHT)  # lambda_w of Eq. 10, at its full height
    rampup: float = number(0.1, _SHARE)  # share of the iterations in which it rises
    image_labels: Optional[str] = None  # file of lines "image id id ..."; null: from known masks


@dataclass(frozen=True)
class ImageClassifierConfig:
    """The classifier whose class activation maps become `weak`'s masks (`weak/classifier.py`)."""

    network: Literal["auto", "resnet50", "small"] = "auto"  # auto: small for the small network
    # As network.weights; sup_only: the encoder of the supervised run, which is trained first.
    weights: Optional[str] = None
    # Pixels; null: 1.6 augment.crop_size, which is 512 for VOC.
    crop_size: Optional[int] = number(None, _SIDE)
    epochs: int = number(5, _COUNT)
    batch: int = number(16, _BATCH)
    learning_rate: float = number(0.1, _RATE)
    scales: list[float] = field(
        default_factory=lambda: [1.0, 0.5, 1.5, 2.0], metadata=bounded(_SCALE)
    )
    foreground: float = number(0.30, _SHARE)  # an activation above is of its class,
    # All of them below: background; what is between is ignored.
    background: float = number(0.05, _SHARE)


@dataclass(frozen=True)
class SelfTrainingConfig:
    """A student of a supervised teacher ("ST" of Table 3, `self_training.py`)."""

    # Masks of the unlabelled images, a folder that `cac-ext self-training make-labels` wrote;
    # null: none; auto: made before training, in the run folder.
    pseudo_labels: Optional[str] = None
    # Pixels of which the teacher is less sure are ignored.
    confidence_threshold: float = number(0.5, _SHARE)


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with poly decay (`optimizer.py`)."""

    learning_rate: float = number(0.01, _RATE)
    # Learning rate of the backbone, relative to the rest; 0 leaves it as it is.
    backbone_factor: float = number(0.1, within(0, 1000))
    momentum: float = number(0.9, below(1))
    weight_decay: float = number(1e-4, within(0, 10))
    poly_power: float = number(0.9, within(0, 100))


@dataclass(frozen=True)
class ScheduleConfig:
    """How long, in what batches, and what happens how often (`loop.py`)."""

    epochs: int = number(80, _COUNT)
    iterations_per_epoch: int = number(1157, _COUNT)
    warmup_epochs: int = number(5, within(0, 10**6))  # supervised loss only
    labelled_batch: int = number(8, _BATCH)
    unlabelled_batch: int = number(8, _BATCH)
    # Epochs; the last epoch is always evaluated.
    evaluate_every: int = number(1, _COUNT)
    log_every: int = number(10, _COUNT)  # iterations


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
    seed: int = number(0, _SEED)  # initial weights, order, crops, augmentation, choice of negatives
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

    @property
    def warmup_iterations(self) -> int:
        """Steps at the start of the run that look at no unlabelled image."""
        return self.schedule.warmup_epochs * self.schedule.iterations_per_epoch
