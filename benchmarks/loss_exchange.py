"""Exchange the trainer's loss for another, as a user would who compares the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from torch import Tensor

import cac_ext


@contextmanager
def training_with(loss: Callable[..., Tensor] | None) -> Iterator[None]:
    """Inside, ``loss`` stands in for `cac_ext.directional_contrastive_loss`; None leaves ours."""
    if loss is None:
        yield
        return
    with mock.patch.object(cac_ext, "directional_contrastive_loss", loss):
        yield
