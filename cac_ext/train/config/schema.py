"""Every key of a configuration: its type, default, meaning, and the bounds of numbers.

The text below a field is its documentation: `explain.py` prints it, editors and documentation
generators show it. A number's field holds its bounds (`bounds.number`), which `load` checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional  # Optional: OmegaConf reads these annotations

from cac_ext.train.config.bounds import above, below, bounded, number, within
from cac_ext.train.config.methods import (
    CctConfig,
    EcsConfig,
    FixMatchConfig,
    GctConfig,
    MeanTeacherConfig,
    S4ganConfig,
    UniMatchConfig,
)

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
_MOST_CHANNELS = 1024
_VALUE = within(-1e30, 1e30)  # of an image in a file
_CLASSES = within(
    2,
    _MOST_CLASSES,
    too_low="the background is a class too, and one class alone leaves nothing to tell apart; for "
    "one kind of object the masks hold 0 (background) and 1 (object), and data.num_classes is 2",
)


@dataclass(frozen=True)
class SyntheticConfig:
    """The built-in images, drawn during training (`data/datasets/synthetic.py`)."""

    seed: int = number(0, _SEED)
    """Seed of the images."""
    image_size: int = number(96, within(32, 4096))
    """Side of an image in pixels."""
    labelled: int = number(64, _COUNT)
    """Number of training images with masks."""
    unlabelled: int = number(448, within(0, 10**6))
    """Number of training images without masks."""
    validation: int = number(128, _COUNT)
    """Number of validation images."""


@dataclass(frozen=True)
class DataConfig:
    """Images and masks (`data/`)."""

    name: str = "synthetic"
    """A data set of cac_ext (synthetic, voc, cityscapes, camvid, folder), or your own as
    package.module:function or package.module:Class."""
    root: Optional[str] = None
    """Folder of the data; paths in list files are relative to it. null: for data without files."""
    labelled_list: Optional[str] = None
    """File of lines "image mask": the labelled images. null: those of the data set."""
    unlabelled_list: Optional[str] = None
    """File of lines "image": the unlabelled images; a second column is not read. null: those of the
    data set, or none."""
    validation_list: Optional[str] = None
    """File of lines "image mask": the validation images. null: those of the data set."""
    labelled_ratio: Optional[str] = None
    """Share of the training images that keeps its labels, such as 1/8; the others become unlabelled
    images. null: the lists decide."""
    split_seed: int = number(0, _SEED)
    """Seed of the choice of labelled images for labelled_ratio; the run's seed does not change it.
    ${seed}: other images for each seed, as in the paper's means over three lists."""
    num_classes: Optional[int] = number(None, _CLASSES)
    """Number of classes, the background included. null: that of the data set; folder needs it."""
    class_names: Optional[list[str]] = None
    """Name of each class, in the order of the ids. null: those of the data set, or numbers."""
    ignore_index: int = number(255, within(-(2**31), 2**31 - 1))
    """Mask value that counts neither in the loss nor in the mIoU; a class of this id is never
    learned."""
    background_class: Optional[int] = number(None, within(0, _MOST_CLASSES - 1))
    """Id of the class that stands for "none of the others", needed for image-level labels of your
    own data. null: the class called "background"."""
    mask_colors: Optional[list[str]] = None
    """Color of each class in masks that hold colors in place of ids, in the order of the ids:
    [804080, 00ff00] or ['#804080', '#00ff00']; for data.name=folder. null: masks hold ids."""
    ignored_colors: Optional[list[str]] = None
    """Further colors of such masks: pixels without a class. A color that is not listed is an error.
    null: none."""
    max_image_pixels: Optional[int] = number(178_956_970, above(0, 2**62))
    """Most pixels an image may have, so that a small file cannot fill the memory. null: no
    limit."""
    channels: int = number(3, within(1, _MOST_CHANNELS))
    """Channels of an image: 3 for RGB, 1 for gray, any other number for multispectral images, color
    with depth, ... Files with another number are refused; for 3, gray and palettes become RGB and
    alpha is dropped."""
    value_low: Optional[list[float]] = field(default=None, metadata=bounded(_VALUE))
    """Value in image files that becomes black, as lower ones do: one for all channels or one for
    each. It needs value_high. null: 0 in files of 8 or 16 bits; other types need both."""
    value_high: Optional[list[float]] = field(default=None, metadata=bounded(_VALUE))
    """Value in image files that becomes white, as higher ones do. null: the largest of 8 or 16
    bits."""
    mean: Optional[list[float]] = field(default=None, metadata=bounded(_SHARE))
    """Mean of each channel, black being 0 and white 1, that is subtracted from the network's input.
    null: ImageNet's, for other than 3 channels 0.449 for each."""
    std: Optional[list[float]] = field(default=None, metadata=bounded(above(0, 1)))
    """Standard deviation of each channel, by which the input is then divided. null: ImageNet's, for
    other than 3 channels 0.226 for each."""
    num_workers: int = number(0, within(0, 1024))
    """Processes that load images, for each stream of training images (labelled, unlabelled). 0: the
    training process loads them."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class AugmentConfig:
    """Crops and their augmentation (paper section 4.1, `data/augment.py`)."""

    crop_size: int = number(320, _SIDE)
    """Side in pixels of labelled crops and of both views of an unlabelled image."""
    base_size: Optional[int] = number(None, _SIDE)
    """Long side in pixels to which an image is resized before scaling. null: its size in the
    file."""
    labelled_scale: tuple[float, float] = number((0.5, 2.0), _SCALE, ordered=True)
    """Range of the random scale of labelled images."""
    unlabelled_scale: tuple[float, float] = number((0.8, 2.0), _SCALE, ordered=True)
    """Range of the random scale of unlabelled images, one for both views."""
    flip: float = number(0.5, _SHARE)
    """Probability of mirroring, independent in the two views."""
    blur: float = number(0.5, _SHARE)
    """Probability of the 5x5 Gaussian blur of a view."""
    jitter: float = number(0.8, _SHARE)
    """Probability of the color jitter of a view. For other than 3 channels it changes brightness
    and contrast alone."""
    jitter_strength: tuple[float, float, float, float] = number(
        (0.4, 0.4, 0.4, 0.1), (*[within(0, 10)] * 3, within(0, 0.5))
    )
    """Strength of the jitter of brightness, contrast, saturation and hue; hue 0.5 covers the whole
    color circle."""
    gray: float = number(0.2, _SHARE)
    """Probability of turning a view gray, if it has 3 channels."""


@dataclass(frozen=True)
class NetworkConfig:
    """The segmentation network (`networks/`)."""

    name: str = "small"
    """A network of cac_ext (small, deeplabv3plus, pspnet), or your own as
    package.module:function."""
    width: int = number(64, within(16, 65536))
    """Channels of the small network's features."""
    dropout: float = number(0.1, below(1))
    """Probability of dropping a channel in front of the classifier, wherever it learns; pseudo
    labels are predicted without."""
    backbone: str = "resnet50"
    """Backbone of deeplabv3plus (resnet50, resnet101) or pspnet (also vgg16, vgg16_bn); of both
    also timm/NAME, a network of the package timm, such as timm/tf_efficientnet_lite0."""
    weights: Optional[str] = None
    """Pretrained weights of the backbone: a file (.safetensors, .pth), or a name of torchvision's
    such as IMAGENET1K_V1, for timm/NAME pretrained or a tag of timm's such as a1_in1k, downloaded
    on first use. null: random weights."""
    start_from: Optional[str] = None
    """A trained run, its folder or the best.pt in it: the network starts with its weights. With
    another number of classes the classifier alone starts anew. null: see network.weights."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Convolution that is strided in each stage of a ResNet: 3x3 in torchvision's weights, 1x1 in
    those of the original ResNet."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of your own network, below network.options."""


@dataclass(frozen=True)
class MethodConfig:
    """The training method (`methods/`), with a switch for each column of the paper's Table 3."""

    name: str = "cac"
    """A method of cac_ext (docs/methods.md lists them), or your own as package.module:Class."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of your own method, below method.options."""
    unsupervised_weight: float = number(0.1, _WEIGHT)
    """Weight lambda of the consistency loss (Eq. 9). 0: no such loss, which leaves cac the
    supervised loss alone (SupOnly)."""
    directional_contrast: bool = False
    """Add the loss of cac, on crop pairs, to fixmatch, mean_teacher or unimatch,
    unsupervised_weight times. The settings below are its switches."""
    loss: Literal["contrastive", "l2"] = "contrastive"
    """Consistency loss: contrastive, the paper's, or l2, experiment I of Table 3."""
    temperature: float = number(0.1, within(0.001, 100))
    """Temperature tau, by which cosine similarities are divided."""
    confidence_threshold: float = number(0.75, _SHARE)
    """Confidence gamma that the positive of an anchor needs with positive_filtering (Eq. 7)."""
    iou_range: tuple[float, float] = number((0.1, 1.0), above(0, 1), ordered=True)
    """Range of the intersection over union of the two crops. [1, 1]: equal crops, "no context" in
    Table 3."""
    directional: bool = True
    """Align only the less confident feature of a pair to the other one (directional mask, Eq. 2).
    false: each to the other."""
    negative_sampling: bool = True
    """Leave out negatives of the anchor's own pseudo label (Eq. 5)."""
    positive_filtering: bool = True
    """Leave out pairs whose positive is less confident than confidence_threshold (Eq. 7)."""
    projector: bool = True
    """Compare features behind a projector. false: compare the encoder's features themselves."""
    projector_channels: int = number(128, above(0, 65536))
    """Output channels of the projector."""
    normalizer: Literal["overlap", "active"] = "overlap"
    """Divisor of the sum over anchors: overlap, B N_b, the paper's (Eq. 1 and 8), or active, the
    number of active anchors of each direction, as in the authors' code."""
    selected_num: Optional[int] = number(None, above(0, 10**9))
    """Negatives taken from each view and step, of all processes together. null: all features."""
    step_save: int = number(1, within(0, 10**4))
    """Earlier steps whose negatives the memory bank keeps."""


@dataclass(frozen=True)
class WeakConfig:
    """Image-level labels of the unlabelled images (paper section 3.5, `pseudo_labels/`)."""

    pseudo_labels: Optional[str] = None
    """Folder of masks that `cac-ext weak make-labels` wrote; auto makes them in the run folder
    before training. null: no image-level labels."""
    weight: float = number(0.4, _WEIGHT)
    """Weight lambda_w of the loss on these masks after its ramp (Eq. 10)."""
    rampup: float = number(0.1, _SHARE)
    """Share of the iterations in which the weight rises from near 0 to its full value."""
    image_labels: Optional[str] = None
    """File of lines "image id id ...": the classes in each image. null: read from masks, if
    known."""


@dataclass(frozen=True)
class ImageClassifierConfig:
    """The classifier whose class activation maps become the masks of `weak` (section 3.5)."""

    network: Literal["auto", "resnet50", "small"] = "auto"
    """Network of the classifier. auto: small if network.name is small, otherwise resnet50."""
    weights: Optional[str] = None
    """Initial weights, a file or name as for network.weights; sup_only takes the encoder of a
    supervised run, which is trained first. null: random weights."""
    crop_size: Optional[int] = number(None, _SIDE)
    """Side of a crop in pixels. null: 1.6 augment.crop_size, which is 512 for VOC."""
    epochs: int = number(5, _COUNT)
    """Passes over the images."""
    batch: int = number(16, _BATCH)
    """Images in a batch."""
    learning_rate: float = number(0.1, _RATE)
    """Initial learning rate."""
    scales: list[float] = field(
        default_factory=lambda: [1.0, 0.5, 1.5, 2.0], metadata=bounded(_SCALE)
    )
    """Factors of the image size at which activation maps are computed and averaged."""
    foreground: float = number(0.30, _SHARE)
    """Activation above which a pixel gets its class."""
    background: float = number(0.05, _SHARE)
    """Activation below which, in all classes, a pixel is background; pixels in between are
    ignored. At most image_classifier.foreground."""


@dataclass(frozen=True)
class SelfTrainingConfig:
    """A student of a supervised teacher, "ST" in Table 3 (`pseudo_labels/self_training.py`)."""

    pseudo_labels: Optional[str] = None
    """Folder of masks that `cac-ext self-training make-labels` wrote; auto trains a teacher and
    makes them in the run folder before training. null: no teacher."""
    confidence_threshold: float = number(0.5, _SHARE)
    """Confidence of the teacher at or below which a pixel is ignored."""


@dataclass(frozen=True)
class SupervisedConfig:
    """The loss on true masks, in every method: cross entropy by default."""

    class_weights: Optional[list[float]] = field(default=None, metadata=bounded(within(0, 10**6)))
    """Weight of each class in the cross entropy, in the order of the ids; the mean is weighted,
    too. null: all alike."""
    ohem_threshold: Optional[float] = number(None, above(0, 1))
    """Cross entropy of the hardest pixels alone (OHEM): those whose true class has at most this
    probability, such as 0.7. null: of all pixels."""
    ohem_share: float = number(0.0625, _SHARE)
    """Share of the pixels of a batch that count at least with ohem_threshold, hard or not."""
    dice_weight: float = number(0.0, _WEIGHT)
    """Weight of the Dice loss that is added to the cross entropy. 0: none."""


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD or AdamW with poly decay: learning_rate (1 - iteration / iterations)^poly_power."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of the networks: sgd, or adamw, whose steps have the size of the learning rate: it
    needs one of about 1e-4."""
    learning_rate: float = number(0.01, _RATE)
    """Initial learning rate."""
    backbone_factor: float = number(0.1, within(0, 1000))
    """Learning rate of the backbone relative to the rest. 0: the backbone is not trained."""
    momentum: float = number(0.9, below(1))
    """Momentum of SGD."""
    betas: tuple[float, float] = number((0.9, 0.999), below(1))
    """Decay of AdamW's running means of the gradient and of its square."""
    weight_decay: float = number(1e-4, within(0, 10))
    """Weight decay: the L2 penalty of SGD; decoupled in AdamW, where 0.01 is usual."""
    decay_norms_and_biases: bool = True
    """Apply weight decay to biases and to the scales of normalization layers too. false: only to
    weights of two or more dimensions, as timm and others do with AdamW."""
    poly_power: float = number(0.9, within(0, 100))
    """Power of the poly decay. 0: a constant learning rate."""
    clip_norm: Optional[float] = number(None, above(0, 10**6))
    """Largest norm of a gradient, for each optimizer of a method: a longer one is scaled down to
    it. The log has the norms. null: gradients are not clipped."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of the run, batches, and what happens how often (`loop.py`)."""

    epochs: int = number(80, _COUNT)
    """Epochs of the run."""
    iterations_per_epoch: int = number(1157, _COUNT)
    """Iterations (optimizer steps) in an epoch, whatever the number of images."""
    warmup_epochs: int = number(5, within(0, 10**6))
    """Epochs at the start with the supervised loss alone."""
    labelled_batch: int = number(8, _BATCH)
    """Labelled images in a step, of all processes together."""
    unlabelled_batch: int = number(8, _BATCH)
    """Unlabelled images in a step, of all processes together; each gives two views."""
    accumulation: int = number(1, _BATCH)
    """Parts into which the batches of a step are divided, one after the other: less memory, one
    optimizer step. Means and batch statistics are those of a part. It must divide the batches."""
    evaluate_every: int = number(1, _COUNT)
    """Epochs between evaluations; the last epoch is always evaluated."""
    patience: Optional[int] = number(None, _COUNT)
    """Evaluations in a row without a better validation mIoU after which the run ends. null: the run
    takes all its epochs."""
    log_every: int = number(10, _COUNT)
    """Iterations between log entries."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How the network sees large images, in evaluations while training and by default in
    `cac-ext evaluate` and `cac-ext predict` (`inference.py`). It does not change the training."""

    window: Optional[int] = number(None, above(0, 10**6))
    """Side in pixels of a window that slides over an image, with an overlap of at least a third;
    class probabilities are averaged. null: the whole image at once."""
    window_memory: int = number(1024, above(0, 2**20))
    """Most memory in MiB for sums of overlapping windows, on the network's device. Wide images with
    many classes that need more are predicted in parts, whose edges are computed twice."""


@dataclass(frozen=True)
class RunConfig:
    """Arithmetic, memory layout, several processes, and what is measured."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic, also of evaluations: bf16 and fp16 are mixed precision (autocast), fp16 with loss
    scaling. Weights stay fp32."""
    compile: bool = False
    """Use torch.compile; the first steps take longer."""
    channels_last: bool = False
    """Memory layout that tensor cores prefer."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What to do with a step whose loss or gradient is nan or infinite: stop the run or skip the
    step."""
    ema_decay: Optional[float] = number(None, below(1))
    """Evaluate the running mean of the network's weights, of which each step keeps this share, such
    as 0.99; training itself does not change. null: evaluate the network."""
    keep_best: bool = False
    """Also keep best.pt, the network of the highest validation mIoU so far; evaluate and predict
    take it with --best."""
    trackers: list[str] = field(default_factory=list)
    """Services that get the log beside TensorBoard: wandb, mlflow, set up by their environment
    variables. [] for none."""
    normalize_over_ranks: bool = True
    """Average losses over the pixels and anchors of all processes. false: average the means of the
    processes."""
    max_gathered_negatives: Optional[int] = number(None, above(0, 10**9))
    """Most negatives that a process gathers at once: it computes the loss in chunks, equal up to
    rounding, keeps the memory bank of its own images alone, and sends that bank in every step.
    null: gather the negatives of each step once and keep all of them."""
    negative_precision: bool = False
    """Log the precision of the selected negatives (paper Fig. 6). It needs masks of the unlabelled
    images, which do not influence the training."""


@dataclass(frozen=True)
class Config:
    """A whole run.

    On a CPU the same configuration gives the same result bit for bit, on the same machine with the
    same number of threads. On a GPU it does so up to rounding: some layers around the loss, such as
    torch's bilinear upsampling and adaptive pooling, sum their gradients in no fixed order. The
    loss itself is bitwise repeatable there too.
    """

    name: str = "run"
    """Name of the run, the first part of its folder's name."""
    seed: int = number(0, _SEED)
    """Seed of initial weights, order of images, crops, augmentation and choice of negatives."""
    device: str = "auto"
    """Device: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""
    output: str = "runs"
    """Folder in which run folders are made."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    weak: WeakConfig = field(default_factory=WeakConfig)
    image_classifier: ImageClassifierConfig = field(default_factory=ImageClassifierConfig)
    self_training: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    mean_teacher: MeanTeacherConfig = field(default_factory=MeanTeacherConfig)
    fixmatch: FixMatchConfig = field(default_factory=FixMatchConfig)
    unimatch: UniMatchConfig = field(default_factory=UniMatchConfig)
    cct: CctConfig = field(default_factory=CctConfig)
    s4gan: S4ganConfig = field(default_factory=S4ganConfig)
    gct: GctConfig = field(default_factory=GctConfig)
    ecs: EcsConfig = field(default_factory=EcsConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def iterations(self) -> int:
        """Optimizer steps of the whole run."""
        return self.schedule.epochs * self.schedule.iterations_per_epoch

    @property
    def warmup_iterations(self) -> int:
        """Steps at the start of the run without unlabelled images."""
        return self.schedule.warmup_epochs * self.schedule.iterations_per_epoch
