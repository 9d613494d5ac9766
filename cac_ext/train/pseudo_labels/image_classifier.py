"""The image classifier whose class activation maps become pseudo labels (paper section 3.5, [62]).

A fully convolutional network without background class: features, a 1x1 convolution to class scores,
and their mean over the image. Trained with binary cross entropy on image-level labels, SGD with
poly decay, for a few epochs (recipe of CCT, the paper's [41]). So few suffice where it starts from
pretrained weights: ImageNet's, or, where there are none, those of a network that was trained on the
labelled images. From random weights it learns next to nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import tv_tensors

from cac_ext.train.config import AugmentConfig, Config, NetworkConfig, to_mapping
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.augment import LabelledAugment
from cac_ext.train.data.stream import IterationSampler, Stream, stream_loader
from cac_ext.train.errors import CheckpointError, ConfigError, NonFiniteError
from cac_ext.train.networks.backbones import RESNETS, build_backbone
from cac_ext.train.networks.small import SmallEncoder
from cac_ext.train.networks.weights import load_backbone_weights
from cac_ext.train.preflight import require_batch_statistics
from cac_ext.train.pseudo_labels.image_labels import (
    foreground_classes,
    read_image_labels,
    require_images_of_classes,
)
from cac_ext.train.runs.folder import write_config
from cac_ext.train.runs.log import RunLog
from cac_ext.train.runtime.signals import StopRequest, TrainingStopped
from cac_ext.train.runtime.whole_files import read_saved, write_whole

#: In place of a file: the encoder of the same data's and seed's supervised run (`prepare.py`).
SUP_ONLY = "sup_only"

_FORMAT = "cac_ext image classifier 1"
_WHAT = "classifier checkpoint"
_RESNET_STRIDE = 16
_VOC_CROP = 1.6  # times 320 is 512
_OPTIMIZER_KEYS = ("momentum", "weight_decay", "poly_power")
_AUGMENT_KEYS = ("crop_size", "base_size", "labelled_scale", "flip")


class ImageClassifier(nn.Module):
    """Scores of the K - 1 classes that are not background.

    Args:
        features: ``[B, 3, H, W] -> [B, F, h, w]``.
        channels: F.
        stride: pixels from one feature to the next.
        num_classes: K.
        initial_weights: what the log says about where the weights come from.
    """

    def __init__(
        self,
        features: nn.Module,
        channels: int,
        stride: int,
        num_classes: int,
        initial_weights: str,
    ) -> None:
        super().__init__()
        self.features = features
        self.stride = stride
        self.initial_weights = initial_weights
        self.scores = nn.Conv2d(channels, num_classes - 1, 1, bias=False)

    def activations(self, images: Tensor) -> Tensor:
        """Class activation maps before ReLU, ``[B, K - 1, h, w]``."""
        return self.scores(self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, K - 1]``."""
        return self.activations(images).mean(dim=(2, 3))


class _HighFeatures(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)["high"]


def build_classifier(config: Config, num_classes: int, *, pretrained: bool) -> ImageClassifier:
    """The classifier that ``image_classifier.network`` names.

    Args:
        config: a whole configuration.
        num_classes: K, background included.
        pretrained: whether ``image_classifier.weights`` are read.
    """
    name = _network_name(config)
    if name == "small":
        encoder = SmallEncoder(config.network.width)
        initial_weights = "random weights"
        if pretrained and config.image_classifier.weights is not None:
            path = config.image_classifier.weights
            if not Path(path).is_file():  # of this network nobody else has weights
                raise ConfigError(
                    f"image_classifier.weights: there is no file {path}; for the small network "
                    f"give the checkpoint.pt of a run, or {SUP_ONLY}"
                )
            initial_weights = str(load_backbone_weights(encoder, name, path))
        return ImageClassifier(
            encoder, encoder.out_channels, encoder.stride, num_classes, initial_weights
        )
    network = NetworkConfig(
        name="image_classifier",
        backbone=name,
        weights=config.image_classifier.weights if pretrained else None,
        stride_in=config.network.stride_in,
    )
    backbone, initial_weights = build_backbone(network, RESNETS, output_stride=_RESNET_STRIDE)
    features = _HighFeatures(backbone)
    return ImageClassifier(
        features, backbone.channels["high"], _RESNET_STRIDE, num_classes, initial_weights
    )


def train_classifier(
    config: Config,
    folder: Path,
    device: torch.device,
    *,
    sup_only: Path | None = None,
    label: str = "image classifier",
    progress: bool = True,
) -> ImageClassifier:
    """Trains the classifier into ``folder``, or goes on with the one that is there.

    ``folder`` receives config.yaml, classifier.pt (after each epoch), metrics.jsonl and
    tensorboard/.

    Args:
        config: a whole configuration.
        folder: of the classifier.
        device: where to compute.
        sup_only: the run whose encoder it starts from, where ``image_classifier.weights`` asks for
            that.
        label: stands in front of the progress bar.
        progress: whether to show it.

    Raises:
        ConfigError: the data has no background class, or no image-level labels.
        CheckpointError: the folder's classifier was trained with other settings.
        TrainingStopped: SIGTERM came; the step was finished and the classifier saved.
    """
    torch.manual_seed(config.seed)
    splits = build_datasets(config.data)
    foreground_classes(splits, config.data)
    path = folder / "classifier.pt"
    options = config.image_classifier
    start = config
    if sup_only is not None and options.weights == SUP_ONLY:
        start = replace(
            config, image_classifier=replace(options, weights=f"{sup_only}/checkpoint.pt")
        )
    model = build_classifier(start, splits.num_classes, pretrained=not path.is_file())
    model = model.to(device)
    state = None
    if path.is_file():
        state = read_saved(path, _FORMAT, _WHAT)
        _require_equal(state["settings"], _settings(config), path)
        model.load_state_dict(state["model"])
        if state["epochs"] == options.epochs:
            return model.eval()
    require_classifier_batch(config, splits.num_classes)
    labels = read_image_labels(config.weak, config.data, splits, progress=progress)
    require_images_of_classes(labels, splits, config.data)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=options.learning_rate,
        momentum=config.optimizer.momentum,
        weight_decay=config.optimizer.weight_decay,
    )
    epoch_length = max(1, round(len(labels) / options.batch))
    iterations = options.epochs * epoch_length
    iteration = 0
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        iteration = state["iteration"]
    write_config(folder, config)

    stream = Stream(
        _WithClasses(splits, labels), _ImageAugment(config, splits), config.seed, "image classifier"
    )
    loader = stream_loader(
        stream,
        IterationSampler(iteration, iterations, options.batch),
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
    )
    model.train()
    log = RunLog(folder, label, iteration, iterations, progress=progress)
    with StopRequest() as stop, log:
        for batch in loader:
            rate = (1 - iteration / iterations) ** config.optimizer.poly_power
            optimizer.param_groups[0]["lr"] = options.learning_rate * rate
            logits = model(batch["image"].to(device, non_blocking=True))  # [B, K - 1]
            truth = batch["classes"].to(device, non_blocking=True)
            loss = F.binary_cross_entropy_with_logits(logits, truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            iteration += 1
            log.step()
            if iteration % config.schedule.log_every == 0 or iteration == iterations:
                right = ((logits > 0) == (truth > 0)).float().mean().item()
                log.train(iteration, {"loss": loss.item(), "accuracy": right}, options.batch)
            stopping = stop.requested and iteration < iterations
            if iteration % epoch_length == 0 or stopping:
                if not loss.isfinite():
                    raise NonFiniteError(
                        f"the loss of the image classifier is {loss.item()} in iteration "
                        f"{iteration}: lower image_classifier.learning_rate, "
                        f"{options.learning_rate}"
                    )
                _save(path, config, model, optimizer, iteration, iteration // epoch_length)
            if stopping:
                raise TrainingStopped(
                    f"stopped after iteration {iteration} of {iterations} of the image classifier"
                )
    return model.eval()


def require_classifier_batch(config: Config, num_classes: int) -> None:
    """ConfigError where a batch is too small for the classifier's batch normalisation."""
    batch = config.image_classifier.batch
    if batch == 1:
        with torch.random.fork_rng(devices=[]):  # its weights are drawn, and not used
            model = build_classifier(config, num_classes, pretrained=False)
        require_batch_statistics(model, batch, _crop_size(config), "image_classifier.batch")


def load_classifier(
    config: Config, num_classes: int, folder: Path, device: torch.device
) -> ImageClassifier:
    """The classifier that `train_classifier` wrote into ``folder``, in evaluation mode.

    Raises:
        CheckpointError: there is none, or its training did not come to its end.
    """
    path = folder / "classifier.pt"
    state = read_saved(path, _FORMAT, _WHAT)
    if state["epochs"] < config.image_classifier.epochs:
        raise CheckpointError(
            f"{path} was trained for {state['epochs']} of {config.image_classifier.epochs} epochs; "
            f"go on with `cac-ext weak train-classifier {folder / 'config.yaml'} --folder {folder}`"
        )
    model = build_classifier(config, num_classes, pretrained=False)
    model.load_state_dict(state["model"])
    return model.to(device).eval()


def _network_name(config: Config) -> str:
    name = config.image_classifier.network
    if name == "auto":
        name = "small" if config.network.name == "small" else "resnet50"
    return name


class _WithClasses(torch.utils.data.Dataset):
    """Unlabelled images with their image-level labels, and a mask that augmentation expects."""

    def __init__(self, splits: DatasetSplits, labels: Tensor) -> None:
        self.images = splits.unlabelled
        self.labels = labels  # [M, K - 1]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        sample = self.images[index]
        mask = torch.zeros(sample["image"].shape[1:], dtype=torch.uint8)
        return {**sample, "mask": tv_tensors.Mask(mask), "classes": self.labels[index]}


class _ImageAugment:
    """Scale, crop and mirroring as of labelled images, with larger crops: objects stay in."""

    def __init__(self, config: Config, splits: DatasetSplits) -> None:
        augment = AugmentConfig(
            crop_size=_crop_size(config),
            base_size=config.augment.base_size,
            labelled_scale=config.augment.labelled_scale,
            flip=config.augment.flip,
        )
        self.augment = LabelledAugment(augment, splits.ignore_index)

    def __call__(self, sample: dict) -> dict[str, Tensor]:
        return {"image": self.augment(sample).image, "classes": sample["classes"]}


def _crop_size(config: Config) -> int:
    return config.image_classifier.crop_size or round(_VOC_CROP * config.augment.crop_size)


def _settings(config: Config) -> dict:
    """What the classifier depends on: any other setting may differ."""
    whole = to_mapping(config)
    free = ("root", "num_workers", "max_image_pixels")
    data = {key: value for key, value in whole["data"].items() if key not in free}
    optimizer = {key: whole["optimizer"][key] for key in _OPTIMIZER_KEYS}
    classifier = {
        key: value
        for key, value in whole["image_classifier"].items()
        if key not in ("scales", "foreground", "background")  # of the maps alone
    }
    labels = whole["weak"]["image_labels"]
    augment = {key: whole["augment"][key] for key in _AUGMENT_KEYS}
    return {
        "seed": config.seed,
        "network": _network_name(config),
        "network.width": config.network.width,
        "network.stride_in": config.network.stride_in,
        "data": data,
        "image_classifier": classifier,
        "optimizer": optimizer,
        "augment": augment,
        "image_labels": labels,
    }


def _require_equal(saved: dict, current: dict, path: Path) -> None:
    differing = [
        f"{section}: {saved.get(section)} there and {current[section]} here"
        for section in current
        if saved.get(section) != current[section]
    ]
    if differing:
        raise CheckpointError(
            f"{path} was trained with other settings ({'; '.join(differing)}): take another folder"
        )


def _save(
    path: Path,
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    iteration: int,
    epochs: int,
) -> None:
    state = {
        "format": _FORMAT,
        "settings": _settings(config),
        "iteration": iteration,
        "epochs": epochs,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_whole(path, lambda file: torch.save(state, file))
