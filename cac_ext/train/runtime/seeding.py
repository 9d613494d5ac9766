"""Random numbers that depend on their purpose alone.

The seed of a crop, an order or a choice of negatives is made of the run's seed, a name and a
position. So no draw depends on the number of workers or processes, and a resumed run draws the same
numbers as an unbroken one without keeping any state.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *positions: int) -> int:
    """A 63-bit seed for ``purpose`` at these positions (integers >= 0)."""
    words = [seed, zlib.crc32(purpose.encode()), *positions]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int, purpose: str, *positions: int) -> Iterator[None]:
    """Inside, torch's CPU generator draws from a derived seed; afterwards its state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, purpose, *positions))
        yield
