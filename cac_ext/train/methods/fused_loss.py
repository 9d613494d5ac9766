"""Checks before training, rather than after the warm-up, that the fused loss runs here."""

from __future__ import annotations

import torch

import cac_ext
from cac_ext.train.config import Config
from cac_ext.train.errors import ConfigError
from cac_ext.train.methods.consistency import Overlap, consistency_loss
from cac_ext.train.runtime.distributed import find_device
from cac_ext.train.runtime.precision import autocast


def require_fused_loss(config: Config) -> None:
    """Compute the loss of the run and its gradient once, for two pixels, on the run's device.

    Draws nothing at random. Does nothing if the run never needs the loss.

    Raises:
        ConfigError: the loss was not built for the device, or fails on it.
    """
    method = config.method
    needs_pairs = method.unsupervised_weight > 0 or config.weak.pseudo_labels
    if not needs_pairs or method.loss != "contrastive":
        return
    device = find_device(config.device)
    try:
        value = _gradient(config, device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the fused loss does not run on this device, {_describe(device)}: {reason}. "
            f"{_built()}. {_remedy(device)}, or train on the CPU by device=cpu"
        ) from error
    if not torch.tensor(value).isfinite():
        raise ConfigError(
            f"the fused loss gives {value} on this device, {_describe(device)}. {_built()}. "
            "Reinstall cac_ext for it, or train on the CPU by device=cpu"
        )


def _gradient(config: Config, device: torch.device) -> float:
    channels = config.method.projector_channels
    rows = torch.zeros(4, channels, device=device)
    rows[:, 0] = 1.0  # unit length
    labels = torch.zeros(2, dtype=torch.long, device=device)
    features = rows[:2].clone().requires_grad_(), rows[2:].clone().requires_grad_()
    first, second = (
        Overlap(projections, torch.full((2,), confidence, device=device), labels)
        for projections, confidence in zip(features, (0.8, 0.9), strict=True)
    )
    weights = torch.full((2,), 0.5, device=device)
    negative_labels = torch.ones(4, dtype=torch.long, device=device)
    with autocast(config.run.precision, device):
        loss, _ = consistency_loss(
            config.method, first, second, weights, rows.clone(), negative_labels
        )
    gradients = torch.autograd.grad(loss, features)
    # The value is waited for: a GPU reports its faults late.
    return float(loss.detach() + sum(gradient.sum() for gradient in gradients))


def _describe(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    major, minor = torch.cuda.get_device_capability(device)
    return f"{device} ({torch.cuda.get_device_name(device)}, sm_{major}{minor})"


def _built() -> str:
    built = cac_ext.build_info()
    kernels = "the CPU alone"
    if built["cuda"]:
        kernels = f"CUDA {built['cuda_version']}, {', '.join(built['cuda_architectures'])}"
    return f"cac_ext {built['version']} was built for {kernels}"


def _remedy(device: torch.device) -> str:
    if device.type != "cuda":
        return "There are kernels for CPUs and CUDA devices: use one"
    if not cac_ext.build_info()["cuda"]:
        return f"Install the toolkit of CUDA {torch.version.cuda} and reinstall cac_ext"
    major, minor = torch.cuda.get_device_capability(device)
    return f"Reinstall cac_ext with TORCH_CUDA_ARCH_LIST={major}.{minor}, if it is at least 7.5"
