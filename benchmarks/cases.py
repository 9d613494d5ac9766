"""Problem sizes, and inputs that look like those of a real training step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CONFIDENCE_THRESHOLD = 0.75
TEMPERATURE = 0.1
#: Numbers of negatives in Table 4 of the paper.
TABLE4 = (500, 1_000, 2_000, 6_400, 12_800, 19_200, 25_600)


@dataclass(frozen=True)
class Case:
    """One problem size; ``active_share`` is per direction, so 0.5 at most."""

    name: str
    A: int = 6_400
    N: int = 51_200
    C: int = 128
    K: int = 21
    active_share: float = 0.38
    background_share: float = 0.57
    group: str = "paper"

    def __post_init__(self) -> None:
        if min(self.A, self.N, self.C, self.K) < 1:
            raise ValueError(f"A, N, C and K of a case must be at least 1, but got {self}")
        if not 0 <= self.active_share <= 0.5:
            raise ValueError(
                "active_share is a share of the anchors per direction and no anchor is active in "
                f"both, so it must lie in [0, 0.5], but got {self.active_share}"
            )
        if not 0 <= self.background_share <= 1:
            raise ValueError(
                f"background_share must lie in [0, 1], but got {self.background_share}"
            )

    def class_shares(self) -> Tensor:
        """``[K]``: the background, then the other classes, which fall like 1 / (2 + rank)."""
        if self.K == 1:
            return torch.ones(1)
        others = 1 / torch.arange(2, self.K + 1, dtype=torch.float64)
        others *= (1 - self.background_share) / others.sum()
        return torch.cat([torch.tensor([self.background_share], dtype=torch.float64), others])

    def to_json(self) -> dict[str, Any]:
        """The arguments that make it again."""
        return dataclasses.asdict(self)


def _scaling() -> dict[str, list[Case]]:
    """Series in which one size changes and all others are those of ``voc``."""
    series = {
        "table4": [Case(f"table4-{n}", N=n) for n in TABLE4],
        "scale-n": [
            Case(f"n-{n}", N=n) for n in (3_200, 12_800, 51_200, 204_800, 500_000, 1_000_000)
        ],
        "scale-a": [Case(f"a-{a}", A=a) for a in (400, 1_600, 6_400, 25_600)],
        "channels": [Case(f"c-{c}", C=c) for c in (64, 96, 128, 192, 256)],
        # Of DINOv2, CIRKD and ProtoSeg.
        "wide": [Case(f"c-{c}", C=c) for c in (384, 512, 720, 768, 1024)],
        "classes": [Case(f"k-{k}", K=k) for k in (2, 5, 21, 50, 150)],
        "active": [Case(f"active-{s}", active_share=s) for s in (0.02, 0.1, 0.38, 0.5)],
        "skew": [Case(f"skew-{s}", background_share=s) for s in (0.05, 0.3, 0.57, 0.9)],
    }
    return {
        group: [dataclasses.replace(case, group=group) for case in cases]
        for group, cases in series.items()
    }


def _quick_scaling() -> list[Case]:
    """Three values of each size in seconds, to see that the laws are fitted: not to be believed."""
    middle = {"A": 800, "N": 6_400, "C": 64, "K": 21}
    others = {"A": (400, 1_600), "N": (3_200, 12_800), "C": (32, 128), "K": (5, 80)}
    sizes = [middle] + [{**middle, name: x} for name, pair in others.items() for x in pair]
    return [
        Case("quick-" + "-".join(map(str, size.values())), **size, group="quick") for size in sizes
    ]


#: Every name that ``--cases`` takes, with the cases it stands for.
CASES: dict[str, list[Case]] = {
    "quick": [Case("quick", A=800, N=9_600, group="quick")],
    "quick-scaling": _quick_scaling(),
    "voc": [Case("voc")],
    "voc-r101": [Case("voc-r101", N=76_800)],
    "cityscapes": [Case("cityscapes", A=13_000, N=129_600, K=19)],
    **_scaling(),
}


def find_cases(names: list[str]) -> list[Case]:
    """The cases behind ``names``, each once; ``all`` stands for every one but quick ones."""
    if "all" in names:
        names = [name for name in CASES if not name.startswith("quick")]
    found: dict[str, Case] = {}
    for name in names:
        if name in CASES:
            found.update((case.name, case) for case in CASES[name])
            continue
        single = [case for cases in CASES.values() for case in cases if case.name == name]
        if not single:
            raise ValueError(f"no case is called {name!r}; there are: {', '.join(CASES)}, all")
        found[name] = single[0]
    return list(found.values())


@dataclass
class Inputs:
    """The arguments of the loss. Features are raw: every implementation normalizes them itself."""

    features1: Tensor  # [A, C]
    features2: Tensor  # [A, C]
    confidences1: Tensor  # [A]
    confidences2: Tensor  # [A]
    pseudo_labels1: Tensor  # [A]
    pseudo_labels2: Tensor  # [A]
    negatives: Tensor  # [N, C]
    negative_labels: Tensor  # [N]

    def to(self, device: str | torch.device, dtype: torch.dtype) -> Inputs:
        """A copy with the features in ``dtype`` and everything on ``device``."""
        features = {"features1", "features2", "negatives"}
        return Inputs(
            **{
                field.name: getattr(self, field.name).to(
                    device, dtype if field.name in features else None
                )
                for field in dataclasses.fields(self)
            }
        )

    def requiring_grad(self, required: bool = True) -> Inputs:
        """The same tensors; the features of both views require a gradient or not."""
        return dataclasses.replace(
            self,
            features1=self.features1.detach().requires_grad_(required),
            features2=self.features2.detach().requires_grad_(required),
        )

    def active(self) -> Tensor:
        """``[2, A]`` bool: the anchors that take part, per direction (paper Eq. 7)."""
        first, second = self.confidences1, self.confidences2
        return torch.stack(
            [
                (first < second) & (second > CONFIDENCE_THRESHOLD),
                (second < first) & (first > CONFIDENCE_THRESHOLD),
            ]
        )


def make_inputs(case: Case, seed: int) -> Inputs:
    """Clustered features like those of a half-trained encoder, float32 on the CPU.

    A feature is the sum of a class mean, a part of its pixel and, in the two views, the change by
    the context. Positives then have a cosine near 0.8, other pixels of the class near 0.4 and other
    classes near 0, so that neither the loss nor its gradient is degenerate.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    shares = case.class_shares()

    def draw_labels(count: int) -> Tensor:
        return torch.multinomial(shares, count, replacement=True, generator=generator)

    class_means = noise(case.K, case.C)  # [K, C]
    truth = draw_labels(case.A)  # [A]
    pixel = class_means[truth] + noise(case.A, case.C)  # [A, C]
    views = [pixel + 0.7 * noise(case.A, case.C) for _ in range(2)]
    labels = []
    for _ in range(2):
        wrong = torch.rand(case.A, generator=generator) < 0.05
        labels.append(torch.where(wrong, draw_labels(case.A), truth))

    negative_labels = draw_labels(case.N)  # [N]
    negatives = noise(case.N, case.C).mul_(1.2)  # [N, C]
    for start in range(0, case.N, 65_536):  # in slices: no second copy of a million features
        rows = slice(start, start + 65_536)
        negatives[rows] += class_means[negative_labels[rows]]

    # u decides the direction: 1 -> 2, 2 -> 1, or neither because both views are unsure.
    u = torch.rand(case.A, generator=generator)
    sure = 0.8 + 0.2 * torch.rand(case.A, generator=generator)
    unsure = 0.7 * torch.rand(case.A, generator=generator)
    first_to_second = u < case.active_share
    second_to_first = (u >= case.active_share) & (u < 2 * case.active_share)
    return Inputs(
        features1=views[0],
        features2=views[1],
        confidences1=torch.where(second_to_first, sure, unsure),
        confidences2=torch.where(first_to_second, sure, 0.9 * unsure),
        pseudo_labels1=labels[0],
        pseudo_labels2=labels[1],
        negatives=negatives,
        negative_labels=negative_labels,
    )
