"""A small training whose loss curve is kept: a change of the loss shows here.

Two views of fixed random pixels pass an MLP as projector. Pseudo labels and confidences come from a
fixed classifier. The other pixels are the negatives. Everything but the loss runs in float64, so
that the curves of two machines differ by the accuracy of the loss alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cac_ext import reference
from cac_ext.train.runtime.json_files import read_json, write_json

GOLDEN_FILE = Path(__file__).parent / "golden_curve.json"
#: Largest relative distance of a float32 implementation from the golden curve.
TOLERANCE = 1e-5

STEPS = 60
_A, _N, _INPUTS, _C, _K = 256, 600, 24, 32, 7
_LEARNING_RATE = 0.05

#: Takes the positional arguments of `cac_ext.directional_contrastive_loss`.
Loss = Callable[..., Tensor]


def train_curve(loss: Loss, dtype: torch.dtype, steps: int = STEPS) -> list[float]:
    """The loss before each update, computed from features of type ``dtype``."""
    generator = torch.Generator().manual_seed(20210)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    classes = noise(_K, _INPUTS)
    content = torch.randint(_K, (_A + _N,), generator=generator)
    pixels = classes[content] + 0.8 * noise(_A + _N, _INPUTS)
    views = [pixels[:_A] + 0.6 * noise(_A, _INPUTS) for _ in range(2)]
    probabilities = [(1.5 * view @ classes.T / _INPUTS**0.5).softmax(1) for view in views]
    confidences, labels = zip(*(p.max(1) for p in probabilities), strict=True)

    projector = nn.Sequential(nn.Linear(_INPUTS, 48), nn.ReLU(), nn.Linear(48, _C)).double()
    for parameter in projector.parameters():
        parameter.data = 0.3 * noise(*parameter.shape)
    optimizer = torch.optim.SGD(projector.parameters(), lr=_LEARNING_RATE, momentum=0.9)

    curve = []
    for _ in range(steps):
        features = [projector(view).to(dtype) for view in views]
        with torch.no_grad():
            negatives = projector(pixels[_A:]).to(dtype)
        value = loss(
            *features, *(c.to(dtype) for c in confidences), *labels, negatives, content[_A:]
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(value.item())
    return curve


def oracle(*arguments: Tensor) -> Tensor:
    """The reference loss with its default settings."""
    loss = reference.directional_contrastive_loss(*arguments)
    assert isinstance(loss, Tensor)
    return loss


def read_golden() -> list[float]:
    return read_json(GOLDEN_FILE)["loss"]


def write_golden() -> None:
    """Write the curve of the float64 oracle; nothing else may write it."""
    curve = train_curve(oracle, torch.float64)
    data = {
        "written_by": "python -m benchmarks convergence --update-golden",
        "loss": [round(value, 9) for value in curve],
    }
    write_json(GOLDEN_FILE, data)


def deviation(curve: list[float], golden: list[float]) -> float:
    """Largest relative distance between two curves."""
    pairs = zip(curve, golden, strict=True)
    return max(abs(value - expected) / abs(expected) for value, expected in pairs)
