"""The network of a run alone, in one file that needs no run folder.

    .safetensors    weights, the network's settings and the classes; `load_exported` rebuilds it
    .pt2            a program of torch.export, for images of one size; it needs torch alone
    .onnx           the same for ONNX runtimes

The programs turn images ``[B, C, H, W]`` uint8, by default RGB, into logits ``[B, K, H, W]``, for
any B. What `inference.predict_logits` does around the network is inside: normalization, padding,
cropping.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cac_ext.train.config import Config, DataConfig, NetworkConfig
from cac_ext.train.data.classes import Classes
from cac_ext.train.errors import CheckpointError, ConfigError
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.networks.normalization import Normalization
from cac_ext.train.runs.folder import Run
from cac_ext.train.runtime.distributed import find_device

_FORMAT = "cac_ext network 1"
#: Settings of the data that say what the network takes.
_OF_IMAGES = ("channels", "mean", "std", "value_low", "value_high")
_TOLERANCE = 1e-3  # of the logits' largest value, between a program and the network


class Predictor(nn.Module):
    """``[B, C, H, W]`` uint8 images of one size to logits ``[B, K, H, W]`` float32.

    Args:
        network: in evaluation mode.
        size: H, W.
    """

    def __init__(self, network: SegmentationNetwork, size: tuple[int, int]) -> None:
        super().__init__()
        height, width = size
        self.network = network
        self.size = size
        self.missing = (
            network.grid.fitting_size(width) - width,
            network.grid.fitting_size(height) - height,
        )
        fits = self.missing[0] < width and self.missing[1] < height
        self.mode = "reflect" if fits else "replicate"
        for name, values in zip(("mean", "std"), network.normalization.tensors(), strict=True):
            self.register_buffer(name, values)

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.size
        batch = (images.float() / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        batch = F.pad(batch, (0, self.missing[0], 0, self.missing[1]), mode=self.mode)
        logits: Tensor = self.network(batch)
        return logits[..., :height, :width]


def export(run: Run, path: str | Path, size: tuple[int, int] | None = None) -> None:
    """Writes the network of a run; the suffix of ``path`` chooses the format.

    What was written is read again and run, on the CPU.

    Args:
        run: from `load_run`.
        path: of the file, ``.safetensors``, ``.pt2`` or ``.onnx``.
        size: H, W of the images, for the latter two.

    Raises:
        ConfigError: the suffix is another one, a size is needed, or a package is missing.
        CheckpointError: the file gives other logits than the network.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ConfigError(
            f"{path}: a network is exported to a file that ends in {', '.join(_WRITERS)}"
        )
    needs_size = path.suffix != ".safetensors"
    if needs_size and size is None:
        raise ConfigError(f"{path}: a program is made for images of one size: give it by --size")
    path.parent.mkdir(parents=True, exist_ok=True)
    network = run.network.cpu()
    try:
        predictor = Predictor(network, size or (97, 129)).eval()
        channels = network.normalization.channels
        images = torch.randint(256, (2, channels, *predictor.size), dtype=torch.uint8)
        with torch.no_grad():
            expected = predictor(images)
            found = _WRITERS[path.suffix](run, predictor, images, path)
    finally:
        network.to(find_device(run.config.device))
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error <= _TOLERANCE:
        raise CheckpointError(
            f"{path} gives logits that differ from those of the network by {error:.1e} of their "
            "largest value: do not use it"
        )


def load_exported(path: str | Path, device: str = "auto") -> Run:
    """The network in a ``.safetensors`` file of `export`, as a run without a folder of its own.

    A custom network is built by its own function, which must be importable.

    Args:
        path: of the file.
        device: auto, cpu, cuda, ...

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by `export`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the network {path}: {error}") from error
    if about.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a network written by this version of cac_ext")
    classes = Classes(**json.loads(about["classes"]))
    config = Config(
        data=DataConfig(**json.loads(about.get("images", "{}"))),
        network=NetworkConfig(**json.loads(about["network"])),
        device=device,
    )
    network = build_network(
        config.network,
        classes.num_classes,
        pretrained=False,
        normalization=Normalization.of(config.data),
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {config.network.name}: {error}") from error
    network = network.to(find_device(device)).eval()
    return Run(config, classes, network, int(about["iteration"]), path.parent)


def _write_safetensors(run: Run, predictor: Predictor, images: Tensor, path: Path) -> Tensor:
    from safetensors.torch import save_file

    about = {
        "format": _FORMAT,
        "images": json.dumps({key: getattr(run.config.data, key) for key in _OF_IMAGES}),
        "network": json.dumps(asdict(run.config.network)),
        "classes": json.dumps(asdict(run.classes)),
        "iteration": str(run.iteration),
    }
    state = run.network.state_dict()
    save_file({name: x.contiguous().clone() for name, x in state.items()}, path, about)
    return Predictor(load_exported(path, "cpu").network, predictor.size)(images)


def _program(predictor: Predictor, images: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(predictor, (images,), dynamic_shapes=({0: batch},))


def _write_pt2(run: Run, predictor: Predictor, images: Tensor, path: Path) -> Tensor:
    torch.export.save(_program(predictor, images), path)
    return torch.export.load(path).module()(images)


def _write_onnx(run: Run, predictor: Predictor, images: Tensor, path: Path) -> Tensor:
    runtime: Any
    try:
        import_module("onnxscript")
        runtime = import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(
            f"{path}: ONNX needs pip install onnx onnxscript onnxruntime ({error})"
        ) from error
    torch.onnx.export(
        _program(predictor, images),
        f=str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(np.asarray(logits))


_WRITERS: dict[str, Callable[[Run, Predictor, Tensor, Path], Tensor]] = {
    ".safetensors": _write_safetensors,
    ".pt2": _write_pt2,
    ".onnx": _write_onnx,
}
