"""Every implementation by its name; to add one, write its file and name it here."""

from __future__ import annotations

from benchmarks.implementations.base import Implementation
from benchmarks.implementations.flash_attention import FlashAttention
from benchmarks.implementations.flex_attention import FlexAttention
from benchmarks.implementations.naive import Naive
from benchmarks.implementations.official import Official, OfficialCompiled
from benchmarks.implementations.ours import Ours, OursAvx2, OursAvx512
from benchmarks.implementations.tiled import Tiled

IMPLEMENTATIONS: dict[str, type[Implementation]] = {
    implementation.name: implementation
    for implementation in (
        Ours,
        OursAvx512,
        OursAvx2,
        Official,
        OfficialCompiled,
        Naive,
        Tiled,
        FlashAttention,
        FlexAttention,
    )
}

__all__ = ["IMPLEMENTATIONS", "Implementation"]
