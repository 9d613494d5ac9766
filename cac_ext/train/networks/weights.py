"""Initial weights of a backbone, from torchvision or a file, and a report of which fitted."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from cac_ext.train.config import nearest
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks.normalization import RGB
from cac_ext.train.runtime.progress import on_terminal

_SAFETENSORS, _PICKLES = (".safetensors",), (".pth", ".pt", ".tar", ".bin", ".ckpt")
_NAMES_SHOWN = 6


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors of a file of weights were loaded.

    Attributes:
        source: the file or torchvision's name.
        loaded, wanted: number of the backbone's tensors that were set, and of all.
        converted: number of those that the file holds in another dtype (fp16).
        prefix: of the backbone's names in the file.
        missing: the backbone's tensors that the file does not hold.
        adapted: first convolutions that the file holds for RGB, each with both shapes.
        mismatched: tensors of another shape, each with both shapes.
        unused: the file's tensors that the backbone does not have, such as the classifier.
    """

    source: str
    loaded: int
    wanted: int
    converted: int
    prefix: str
    missing: Sequence[str]
    adapted: Sequence[str]
    mismatched: Sequence[str]
    unused: Sequence[str]

    def __str__(self) -> str:
        parts = [f"backbone weights from {self.source}: {self.loaded} of {self.wanted} tensors"]
        if self.converted:
            parts.append(f"{self.converted} converted from another dtype")
        if self.prefix:
            parts.append(f"found behind the prefix {self.prefix!r}")
        for what, names in (
            ("missing", self.missing),
            ("adapted to the channels of the images", self.adapted),
            ("of another shape", self.mismatched),
            ("not used", self.unused),
        ):
            if names:
                parts.append(f"{what}: {_shorten(names)}")
        return "; ".join(parts)


def load_backbone_weights(backbone: nn.Module, architecture: str, weights: str) -> WeightsReport:
    """Sets a backbone's parameters and statistics from ``weights``.

    Args:
        backbone: its parameters have torchvision's names.
        architecture: torchvision's name of it, e.g. "resnet50".
        weights: a file (``.safetensors``, or written by `torch.save`: a state dict, alone or inside
            a checkpoint, under any prefix and in any floating-point dtype), or a name such as
            "IMAGENET1K_V1" or "ResNet50_Weights.IMAGENET1K_V2", which is downloaded once.

    Raises:
        ConfigError: there is no such file or name, it cannot be read or downloaded, it holds values
            that are not finite, or nothing in it fits.

    Warns:
        UserWarning: only a part fits.
    """
    if is_weights_file(weights):
        state: Mapping[str, Tensor] = read_weights_file(weights)
    else:
        state = _download(architecture, weights)
    return set_weights(backbone, architecture, state, weights)


def is_weights_file(weights: str) -> bool:
    """Whether ``network.weights`` is a path, which need not exist, and no name of weights."""
    path = Path(weights).expanduser()
    return path.suffix in _SAFETENSORS + _PICKLES or path.exists() or "/" in weights


def set_weights(
    backbone: nn.Module,
    architecture: str,
    state: Mapping[str, Tensor],
    source: str,
    names: Mapping[str, str] | None = None,
) -> WeightsReport:
    """Sets a backbone's parameters and statistics from tensors by name.

    Args:
        backbone: its tensors are looked up by their names, behind a prefix that they share.
        architecture: its name, for errors.
        state: of the file.
        source: of ``state``, for the report.
        names: the backbone's names -> those in ``state``, where they differ.

    Raises:
        ConfigError: a value is not finite, or nothing fits.

    Warns:
        UserWarning: only a part fits.
    """
    names = {} if names is None else names
    report = _copy(backbone, state, source, names)
    if not report.loaded:
        wanted = [names.get(name, name) for name, _ in backbone.named_parameters()]
        raise ConfigError(
            f"network.weights: nothing in {source} fits the {architecture} backbone. It needs "
            f"tensors such as {_shorten(wanted, 3)}, and holds {_shorten(list(state), 3)}"
            + (f"; of another shape: {_shorten(report.mismatched)}" if report.mismatched else "")
        )
    if report.missing or report.mismatched:
        warnings.warn(f"only a part of the weights fits: {report}", stacklevel=3)
    return report


def weights_digest(module: nn.Module) -> str:
    """16 hexadecimal digits that identify a module's weights and statistics."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _copy(
    backbone: nn.Module, state: Mapping[str, Tensor], source: str, names: Mapping[str, str]
) -> WeightsReport:
    # Batch counters have no influence, and files from before 2018 lack them.
    own = {
        names.get(name, name): tensor
        for name, tensor in backbone.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    prefix = _common_prefix(own, state)
    found, missing, adapted, mismatched = [], [], [], []
    for name, tensor in own.items():
        given = state.get(prefix + name)
        if given is not None and _is_for_rgb(given, tensor):
            adapted.append(f"{name} ({list(given.shape)} to {list(tensor.shape)})")
            given = adapted_to(tensor.shape[1], given)
        if given is None:
            missing.append(name)
        elif given.shape != tensor.shape:
            shapes = f"{list(given.shape)} in the file, {list(tensor.shape)} in the network"
            mismatched.append(f"{name} ({shapes})")
        elif not given.isfinite().all():
            raise ConfigError(f"network.weights: {prefix + name} in {source} is not finite")
        else:
            found.append((tensor, given))
    for tensor, given in found:
        tensor.copy_(given)
    known = {prefix + names.get(name, name) for name in backbone.state_dict()}
    return WeightsReport(
        source=source,
        loaded=len(found),
        wanted=len(own),
        converted=sum(given.dtype != tensor.dtype for tensor, given in found),
        prefix=prefix,
        missing=missing,
        adapted=adapted,
        mismatched=mismatched,
        unused=[name for name in state if name not in known],
    )


def adapted_to(channels: int, weight: Tensor) -> Tensor:
    """A first convolution's weights for RGB, ``[O, 3, k, k]``, for images of other channels.

    For one channel the sum over RGB, so that a gray image gives what the same image in RGB gives.
    Otherwise R, G, B, R, G, ... times 3 / channels, which keeps the size of the output. timm does
    the same (``adapt_input_conv``).
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // RGB), 1, 1)[:, :channels]
    return repeated * (RGB / channels)


def _is_for_rgb(given: Tensor, own: Tensor) -> bool:
    """Whether ``own`` is a first convolution for other channels, and ``given`` the same for RGB."""
    if given.ndim != 4 or own.ndim != 4 or given.shape[1] != RGB or own.shape[1] == RGB:
        return False
    return given.shape[:1] + given.shape[2:] == own.shape[:1] + own.shape[2:]


def _common_prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The prefix with which most of the backbone's names are in the file.

    E.g. "module." in a DDP checkpoint, "features." in VGG, "backbone." in a segmentation network.
    """
    first = next(iter(own))
    candidates = [""] + [
        name.removesuffix(first) for name in state if name.endswith(f".{first}") and name != first
    ]
    return max(candidates, key=lambda prefix: sum(prefix + name in state for name in own))


def read_weights_file(weights: str) -> dict[str, Tensor]:
    """The tensors of a file by name; of a checkpoint, its largest state dict.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ConfigError(f"network.weights: there is no file {path}")
    try:
        if path.suffix in _SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"network.weights: {path} holds more than tensors; save the state_dict of the model "
            f"instead of the model itself ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # safetensors and zip files have their own exceptions
        raise ConfigError(f"network.weights: cannot read {path}: {error}") from error
    state = _largest_state(content)
    if not state:
        raise ConfigError(f"network.weights: {path} holds no tensors with names")
    return state


def _largest_state(content: object) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the largest one anywhere inside a checkpoint."""
    if not isinstance(content, Mapping):
        return {}
    own = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return max([own, *map(_largest_state, content.values())], key=len)


def _download(architecture: str, name: str) -> Mapping[str, Tensor]:
    enum = torchvision.models.get_model_weights(architecture)
    # Others need inputs of another mean and deviation than the trainer's.
    usable = [entry for entry in enum if "std" not in entry.transforms.keywords]
    names = [entry.name for entry in usable] + ["DEFAULT"]
    _, _, short = name.rpartition(".")
    if name not in (short, f"{enum.__name__}.{short}") or short not in names:
        raise ConfigError(
            f"network.weights: torchvision has no weights {name!r} for {architecture}"
            f"{nearest(short, names)}; allowed are {', '.join(names)}, and a file (.safetensors, "
            ".pth)"
        )
    entry = enum[short]
    cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    try:
        # weights_only: the hash is checked at the download alone, and anybody may have put a file
        # into the cache.
        return entry.get_state_dict(progress=on_terminal(), check_hash=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"network.weights: the file of {entry.url} in torch's cache holds more than tensors: "
            f"remove {cache}, so that it is downloaded again ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError) as error:  # no network; a damaged download
        raise ConfigError(
            f"network.weights: cannot download {entry.url}: {error}. If this machine is offline, "
            f"download it elsewhere and put it at {cache}, or give its path as network.weights"
        ) from error


def _shorten(names: Sequence[str], shown: int = _NAMES_SHOWN) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
