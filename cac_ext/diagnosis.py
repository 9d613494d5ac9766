"""Diagnosis of an installation, for ``python -m cac_ext``.

Prints versions and what was built, runs each operator once on every device against the oracle in
float64, and lists the packages of the extras. Below whatever is wrong stands what to do about it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import cac_ext
from cac_ext import reference
from cac_ext._load import _C
from cac_ext.ops import DTYPE_NUMBERS

#: Largest relative error of values and gradients, by the type of the features. Several times the
#: rounding of the type, far below what a wrong kernel gives.
_TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
    torch.float16: 5e-2,
}
_ANCHORS, _NEGATIVES, _CHANNELS, _CLASSES = 37, 211, 32, 5
#: Extras of the package that a user may want, and the names of modules that differ from packages'.
_EXTRAS = ("train", "timm")
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}


class Line(NamedTuple):
    """A line of the report.

    Attributes:
        text: what was found.
        wrong: whether it is a fault of the installation.
        remedy: what to do about it; shown below the text.
    """

    text: str
    wrong: bool = False
    remedy: str = ""


def main() -> int:
    """Prints the diagnosis; returns the exit code, 1 if something is wrong."""
    faults = 0
    for line in diagnose():
        print(f"{'WRONG: ' if line.wrong else ''}{line.text}", flush=True)
        if line.remedy:
            print(f"  -> {line.remedy}", flush=True)
        faults += line.wrong
    print(f"\n{faults} fault(s) found" if faults else "\nno fault found")
    return 1 if faults else 0


def diagnose() -> Iterator[Line]:
    """The lines of the report, each as soon as it is known."""
    yield from _versions()
    yield Line("\noperators against the oracle in float64, relative error of value and gradient")
    for device in _devices():
        for operator in _OPERATORS:
            for dtype in _TOLERANCE:
                yield _check(operator, device, dtype)
    for extra in _EXTRAS:
        yield Line(f"\nextra {extra}")
        yield from _packages(extra)


def _versions() -> Iterator[Line]:
    info = cac_ext.build_info()
    yield Line(
        f"cac_ext {info['version']}, built for torch {info['torch_built']} by {info['compiler']}"
    )
    yield Line(
        f"torch {info['torch_running']}, numpy {np.__version__}, "
        f"Python {platform.python_version()}, {platform.platform()}"
    )
    yield Line(
        f"CPU: {info['cpu_capability']} in use, of {', '.join(info['cpu_capabilities'])}; "
        f"{torch.get_num_threads()} threads"
    )
    yield Line(f"  at most, without memory: {_peaks()}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(gpus) or "none found"
    if info["cuda"]:
        architectures = ", ".join(info["cuda_architectures"])
        yield Line(
            f"CUDA: kernels for {architectures} (CUDA {info['cuda_version']}); GPUs: {found}"
        )
    elif gpus:
        yield Line(
            f"CUDA: no kernels were built, but there are GPUs: {found}",
            True,
            f"install the toolkit of CUDA {torch.version.cuda} (nvcc) and reinstall cac_ext with "
            "CAC_CUDA=ON",
        )
    else:
        yield Line(
            f"CUDA: no kernels were built; GPUs: {found}",
            remedy="for a GPU: install torch for CUDA and the toolkit of its version, then "
            "reinstall cac_ext",
        )


def _peaks() -> str:
    """Operations a second of the instruction sets that multiply each type themselves."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        rates = [
            f"{cac_ext.cpu_peak(dtype, name) / 1e9:.0f} ({name})"
            for name in _C.cpu_peak_capabilities(DTYPE_NUMBERS[dtype])
        ]
        if rates:
            found.append(f"{str(dtype).removeprefix('torch.')} {', '.join(rates)}")
    return f"{'; '.join(found)} Gop/s"


def _devices() -> list[torch.device]:
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [torch.device("cpu"), *(gpus if cac_ext.build_info()["cuda"] else [])]


class _Inputs(NamedTuple):
    """Two views of A pixels and N negatives."""

    features: Tensor  # [2, A, C]
    confidences: Tensor  # [2, A]
    labels: Tensor  # [2, A]
    negatives: Tensor  # [N, C]
    negative_labels: Tensor  # [N]


def _inputs(device: torch.device, dtype: torch.dtype) -> _Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def labels(*shape: int) -> Tensor:
        return torch.randint(_CLASSES, shape, generator=generator).to(device)

    return _Inputs(
        normal(2, _ANCHORS, _CHANNELS),
        torch.rand(2, _ANCHORS, generator=generator).to(device),
        labels(2, _ANCHORS),
        normal(_NEGATIVES, _CHANNELS),
        labels(_NEGATIVES),
    )


def _logsumexp(function: Callable[..., Tensor], x: _Inputs) -> Tensor:
    return function(x.features[0], x.negatives, x.labels[0], x.negative_labels)


def _one_direction(function: Callable[..., Tensor], x: _Inputs) -> Tensor:
    first, second = x.features
    return function(first, second.detach(), x.negatives, x.labels[0], x.negative_labels)


def _both_directions(function: Callable[..., Tensor], x: _Inputs) -> Tensor:
    return function(
        *(*x.features, *x.confidences, *x.labels),
        x.negatives,
        x.negative_labels,
        confidence_threshold=0.5,
        reduction="none",
    )


#: Name of an operator -> the call of a function that takes its arguments.
_OPERATORS: dict[str, Callable[[Callable[..., Tensor], _Inputs], Tensor]] = {
    "masked_logsumexp": _logsumexp,
    "masked_contrastive_loss": _one_direction,
    "directional_contrastive_loss": _both_directions,
}


def _check(operator: str, device: torch.device, dtype: torch.dtype) -> Line:
    """Runs the operator with its gradient, and the oracle on the same numbers in float64."""
    name = f"  {operator:30}{device!s:8}{str(dtype).removeprefix('torch.'):10}"
    inputs = _inputs(device, dtype)
    exact = inputs._replace(
        features=inputs.features.double().cpu(),
        confidences=inputs.confidences.cpu(),
        labels=inputs.labels.cpu(),
        negatives=inputs.negatives.double().cpu(),
        negative_labels=inputs.negative_labels.cpu(),
    )
    try:
        found = _value_and_gradient(operator, getattr(cac_ext, operator), inputs)
    except Exception as error:  # whatever a broken build raises
        reason = str(error).strip().partition("\n")[0]
        return Line(f"{name}{type(error).__name__}: {reason}", True, _remedy(device))
    expected = _value_and_gradient(operator, getattr(reference, operator), exact)
    errors = [
        ((x.double().cpu() - y).norm() / y.norm()).item()
        for x, y in zip(found, expected, strict=True)
    ]
    text = f"{name}{errors[0]:.1e}  {errors[1]:.1e}"
    if all(error <= _TOLERANCE[dtype] for error in errors):  # false for nan
        return Line(text)
    return Line(f"{text}, more than {_TOLERANCE[dtype]:.0e}", True, _remedy(device))


def _value_and_gradient(
    operator: str, function: Callable[..., Tensor], inputs: _Inputs
) -> tuple[Tensor, Tensor]:
    features = inputs.features.detach().requires_grad_()  # [2, A, C]
    value = _OPERATORS[operator](function, inputs._replace(features=features))
    (gradient,) = torch.autograd.grad(value.sum(), features)
    return value.detach(), gradient


def _remedy(device: torch.device) -> str:
    if device.type != "cuda":
        return "reinstall cac_ext for this processor and torch: pip install --no-build-isolation"
    major, minor = torch.cuda.get_device_capability(device)
    return (
        f"reinstall cac_ext with TORCH_CUDA_ARCH_LIST={major}.{minor} for "
        f"{torch.cuda.get_device_name(device)}; it needs 7.5 or more"
    )


def _packages(extra: str) -> Iterator[Line]:
    """A line for each package of the extra: its version, or how to get it."""
    try:
        required = metadata.requires("cac_ext") or []
    except metadata.PackageNotFoundError:
        yield Line(
            "  unknown: cac_ext runs from its source tree and is not installed",
            remedy=f'pip install --no-build-isolation ".[{extra}]" in that tree',
        )
        return
    packages = [
        package.strip().split(">")[0].split("=")[0].strip()
        for package, _, condition in (requirement.partition(";") for requirement in required)
        if f'extra == "{extra}"' in condition.replace("'", '"')
    ]
    if not packages:
        yield Line(
            "  unknown to the installed cac_ext, which is older than this code",
            remedy=f'pip install --no-build-isolation ".[{extra}]" in the source tree',
        )
    missing = []
    for name in packages:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        yield _import(name, version)
    if missing:
        yield Line(
            f"  missing: {', '.join(missing)}", remedy=f'pip install "cac_ext[{extra}]" gets them'
        )


def _import(name: str, version: str) -> Line:
    try:
        import_module(_MODULES.get(name.lower(), name.replace("-", "_")))
    except Exception as error:  # e.g. a torchvision that was built for another torch
        reason = str(error).strip().partition("\n")[0]
        return Line(
            f"  {name} {version} does not load: {type(error).__name__}: {reason}",
            True,
            f"reinstall {name} for torch {torch.__version__}",
        )
    return Line(f"  {name} {version}")
