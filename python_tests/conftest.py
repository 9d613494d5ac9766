"""Fixtures shared by all tests: a seed that is drawn anew and printed, devices and dtypes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
def rng(seed: int) -> np.random.Generator:
    """NumPy's generator of the test's seed."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run whose network, of three classes, has seen one step."""
    from folder_run import trained_on_a_folder

    with trained_on_a_folder(tmp_path_factory.mktemp("trained")) as folder:
        yield folder


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a training reaches its first step."""
    from cac_ext.train import loop
    from cac_ext.train.pseudo_labels import image_classifier

    def began(*_: object, **__: object) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr(loop, "take_step", began)
    monkeypatch.setattr(image_classifier, "RunLog", began)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: on feature maps as small as here, several mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws no pictures, for tests that do not look at them."""
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
