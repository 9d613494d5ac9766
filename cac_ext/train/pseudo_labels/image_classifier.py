"""The image classifier whose class activation maps become pseudo labels (paper section 3.5, [62]).

It is a fully convolutional network without background class: features, a 1x1 convolution to class
scores, and their mean over the image. It is trained on image-level labels for a few epochs, with
binary cross entropy and SGD with poly decay (recipe of CCT, the paper's [41]). A few epochs suffice
from pretrained weights: those of ImageNet, or of a network trained on the labelled images. From
random weights it learns next to nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.config import Config, NetworkConfig, to_mapping
from cac_ext.train.data import build_datasets
from cac_ext.train.data.stream import IterationSampler, stream_loader
from cac_ext.train.errors import CheckpointError, ConfigError, NonFiniteError
from cac_ext.train.networks.backbones import RESNETS, build_backbone
from cac_ext.train.networks.normalization import IMAGENET, Normalization
from cac_ext.train.networks.small import SmallEncoder
from cac_ext.train.networks.weights import load_backbone_weights
from cac_ext.train.preflight import require_batch_statistics
from cac_ext.train.pseudo_labels.classifier_images import (
    ImageWithClasses,
    classifier_crop_size,
    classifier_stream,
)
from cac_ext.train.pseudo_labels.image_labels import (
    foreground_classes,
    read_image_labels,
    require_images_of_classes,
)
from cac_ext.train.runs.folder import write_config
from cac_ext.train.runs.log import RunLog
from cac_ext.train.runtime.signals import StopRequest, TrainingStopped
from cac_ext.train.runtime.whole_files import read_saved, write_whole

#: In place of a file: the encoder of the supervised run with the same data and seed (`prepare.py`).
SUP_ONLY = "sup_only"

_FORMAT = "cac_ext image classifier 1"
_WHAT = "classifier checkpoint"
_RESNET_STRIDE = 16
_OPTIMIZER_KEYS = ("momentum", "weight_decay", "poly_power")
_AUGMENT_KEYS = ("crop_size", "base_size", "labelled_scale", "flip")


class ImageClassifier(nn.Module):
    """Scores of the K - 1 classes that are not background.

    Args:
        features: ``[B, C, H, W] -> [B, F, h, w]``.
        channels: F.
        stride: pixels from one feature to the next.
        num_classes: K.
        initial_weights: origin of the weights, for the log.
        normalization: of the images.
    """

    def __init__(
        self,
        features: nn.Module,
        channels: int,
        stride: int,
        num_classes: int,
        initial_weights: str,
        normalization: Normalization = IMAGENET,
    ) -> None:
        super().__init__()
        self.normalization = normalization
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
    """The deepest features of a backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)["high"]


def build_classifier(config: Config, num_classes: int, *, pretrained: bool) -> ImageClassifier:
    """The classifier that ``image_classifier.network`` names.

    Args:
        config: the whole configuration.
        num_classes: K, background included.
        pretrained: whether to read ``image_classifier.weights``.
    """
    name, normalization = _network_name(config), Normalization.of(config.data)
    if name == "small":
        encoder = SmallEncoder(config.network.width, config.data.channels)
        initial_weights = "random weights"
        if pretrained and config.image_classifier.weights is not None:
            path = config.image_classifier.weights
            if not Path(path).is_file():  # nobody publishes weights of this network
                raise ConfigError(
                    f"image_classifier.weights: there is no file {path}; for the small network "
                    f"give the checkpoint.pt of a run, or {SUP_ONLY}"
                )
            initial_weights = str(load_backbone_weights(encoder, name, path))
        return ImageClassifier(
            encoder,
            encoder.out_channels,
            encoder.stride,
            num_classes,
            initial_weights,
            normalization,
        )
    network = NetworkConfig(
        name="image_classifier",
        backbone=name,
        weights=config.image_classifier.weights if pretrained else None,
        stride_in=config.network.stride_in,
    )
    backbone, initial_weights = build_backbone(
        network, RESNETS, output_stride=_RESNET_STRIDE, channels=config.data.channels
    )
    return ImageClassifier(
        _HighFeatures(backbone),
        backbone.channels["high"],
        _RESNET_STRIDE,
        num_classes,
        initial_weights,
        normalization,
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
    """Trains the classifier in ``folder``, or resumes its training there.

    Writes config.yaml, classifier.pt (after each epoch), metrics.jsonl and tensorboard/.

    Args:
        config: the whole configuration.
        folder: of the classifier.
        device: to compute on.
        sup_only: the run that provides the first encoder if ``image_classifier.weights`` is
            ``sup_only``.
        label: prefix of the progress bar.
        progress: whether to show the progress bar.

    Raises:
        ConfigError: the data has no background class or no image-level labels.
        CheckpointError: the classifier in the folder was trained with other settings.
        NonFiniteError: the loss is not finite.
        TrainingStopped: SIGTERM or Ctrl-C came; the step was finished and the classifier saved.
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
        state = read_saved(path, (_FORMAT,), _WHAT)
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

    loader = stream_loader(
        classifier_stream(config, splits, labels),
        IterationSampler(iteration, iterations, options.batch),
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
    )
    model.train()
    log = RunLog(folder, label, iteration, iterations, progress=progress)
    with StopRequest() as stop, log:
        batch: ImageWithClasses
        for batch in loader:
            decay = (1 - iteration / iterations) ** config.optimizer.poly_power
            optimizer.param_groups[0]["lr"] = options.learning_rate * decay
            logits = model(batch.image.to(device, non_blocking=True))  # [B, K - 1]
            truth = batch.classes.to(device, non_blocking=True)
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
                        f"{iteration}: set image_classifier.learning_rate below "
                        f"{options.learning_rate}"
                    )
                _save(path, config, model, optimizer, iteration, iteration // epoch_length)
            if stopping:
                raise TrainingStopped(
                    f"stopped after iteration {iteration} of {iterations} of the image classifier"
                )
    return model.eval()


def require_classifier_batch(config: Config, num_classes: int) -> None:
    """ConfigError if a batch is too small for the batch normalization of the classifier."""
    batch = config.image_classifier.batch
    if batch == 1:
        with torch.random.fork_rng(devices=[]):  # draws weights that are not used
            model = build_classifier(config, num_classes, pretrained=False)
        require_batch_statistics(
            model,
            batch,
            classifier_crop_size(config),
            "image_classifier.batch",
            config.data.channels,
        )


def load_classifier(
    config: Config, num_classes: int, folder: Path, device: torch.device
) -> ImageClassifier:
    """The classifier that `train_classifier` wrote into ``folder``, in evaluation mode.

    Raises:
        CheckpointError: there is no classifier, or its training is unfinished.
    """
    path = folder / "classifier.pt"
    state = read_saved(path, (_FORMAT,), _WHAT)
    if state["epochs"] < config.image_classifier.epochs:
        raise CheckpointError(
            f"{path} was trained for {state['epochs']} of {config.image_classifier.epochs} epochs: "
            f"run `cac-ext weak train-classifier {folder / 'config.yaml'} --folder {folder}` first"
        )
    model = build_classifier(config, num_classes, pretrained=False)
    model.load_state_dict(state["model"])
    return model.to(device).eval()


def _network_name(config: Config) -> str:
    name = config.image_classifier.network
    if name == "auto":
        name = "small" if config.network.name == "small" else "resnet50"
    return name


def _settings(config: Config) -> dict[str, Any]:
    """The settings on which the classifier depends; all others may differ."""
    whole = to_mapping(config)
    free = ("root", "num_workers", "max_image_pixels")
    data = {key: value for key, value in whole["data"].items() if key not in free}
    optimizer = {key: whole["optimizer"][key] for key in _OPTIMIZER_KEYS}
    classifier = {
        key: value
        for key, value in whole["image_classifier"].items()
        if key not in ("scales", "foreground", "background")  # used by the maps alone
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


def _require_equal(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    differing = [
        f"{section}: {saved.get(section)} there and {current[section]} here"
        for section in current
        if saved.get(section) != current[section]
    ]
    if differing:
        raise CheckpointError(
            f"{path} was trained with other settings ({'; '.join(differing)}): choose another "
            "folder, or use the earlier settings"
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
