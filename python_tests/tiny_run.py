"""A training on the built-in data that takes a second: overrides of `synthetic`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

TINY_RUN = [
    "device=cpu",
    "network.width=16",
    "augment.crop_size=33",
    "data.synthetic.image_size=48",
    "data.synthetic.labelled=6",
    "data.synthetic.unlabelled=10",
    "data.synthetic.validation=4",
    "schedule.epochs=2",
    "schedule.iterations_per_epoch=2",
    "schedule.warmup_epochs=1",
    "schedule.evaluate_every=2",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
    "schedule.log_every=1",
]

#: The same for runs with image-level labels; their classifier starts from random weights.
TINY_WEAK = [
    *TINY_RUN,
    "data.synthetic.labelled=4",
    "data.synthetic.unlabelled=6",
    "data.synthetic.validation=2",
    "schedule.epochs=3",
    "schedule.evaluate_every=3",
    "image_classifier.epochs=2",
    "image_classifier.batch=3",
    "image_classifier.weights=null",
]


def draw_no_pictures(patch: pytest.MonkeyPatch) -> None:
    """Trainings draw no pictures until the patch is undone: they take most of a tiny run's time."""
    from cac_ext.train import loop
    from cac_ext.train.runs.log import RunLog

    patch.setattr(RunLog, "pictures", lambda *_: None)
    patch.setattr(loop, "save_panel", lambda *_, **__: None)


@contextmanager
def interrupted_before(iteration: int) -> Iterator[None]:
    """A training inside stops before this iteration, as by a second Ctrl-C."""
    from cac_ext.train import loop

    take_step = loop.take_step

    def stop(*arguments):
        if arguments[1].iteration == iteration:
            raise KeyboardInterrupt
        return take_step(*arguments)

    loop.take_step = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        loop.take_step = take_step
