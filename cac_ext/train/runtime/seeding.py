"""Random numbers as a function of what they are for.

A crop, an order or a choice of negatives is drawn from a seed made of the run's seed, a name and a
position. So nothing of it depends on the number of workers or processes, and a resumed run draws
what an unbroken one would have drawn without any state being kept.
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
    """Within it torch's CPU generator draws from a derived seed; after it, as if nothing was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, purpose, *positions))
        yield
