"""Fixtures shared by all tests: a seed that is drawn anew and printed, devices and dtypes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed drawn at random, printed when the test fails; ``CAC_TEST_SEED=n`` repeats a run."""
    given = os.environ.get("CAC_TEST_SEED")
    value = int(given) if given else random.SystemRandom().randrange(2**31)
    print(f"seed {value} (repeat: CAC_TEST_SEED={value} pytest '{request.node.nodeid}')")
    return value


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On feature maps as small as the tests', threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that train and look at no picture."""
    from tiny_run import draw_no_pictures

    draw_no_pictures(monkeypatch)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        gpu = pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        )
        metafunc.parametrize("device", ["cpu", gpu])
