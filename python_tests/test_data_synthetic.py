"""The built-in data: the same scenes from the same seed, and context that misleads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.datasets import synthetic
from cac_ext.train.data.datasets.synthetic import CLASS_NAMES, SURROUNDINGS, draw_scene


def splits(seed: int, *overrides: str):
    return build_datasets(load("synthetic", [f"data.synthetic.seed={seed}", *overrides]).data)


def test_a_scene_is_a_function_of_seed_split_and_index(seed: int) -> None:
    first, second = splits(seed), splits(seed)
    for name in ("labelled", "unlabelled", "validation"):
        one, other = getattr(first, name), getattr(second, name)
        other[0]  # the order of drawing must not matter
        assert torch.equal(one[5]["image"], other[5]["image"])
        assert not torch.equal(one[5]["image"], one[6]["image"])
    assert not torch.equal(first.labelled[0]["image"], splits(seed + 1).labelled[0]["image"])


def test_splits_have_the_configured_sizes_and_unlabelled_images_no_masks(seed: int) -> None:
    data = splits(seed, "data.synthetic.labelled=3", "data.synthetic.image_size=64")
    assert (len(data.labelled), len(data.unlabelled), len(data.validation)) == (3, 448, 128)
    assert "mask" not in data.unlabelled[0]
    sample = data.labelled[0]
    assert sample["image"].shape == (3, 64, 64)
    assert sample["image"].dtype == torch.uint8
    assert sample["mask"].shape == (64, 64)
    assert int(sample["mask"].max()) < len(CLASS_NAMES)
    with pytest.raises(IndexError):
        data.labelled[3]


@pytest.mark.parametrize("matching", [True, False])
def test_context_tells_the_class_in_labelled_scenes_only(matching: bool, seed: int) -> None:
    """How often an object lies in the matching surroundings of its class."""
    rng = np.random.default_rng(seed)
    table = np.zeros((len(CLASS_NAMES), len(SURROUNDINGS)))
    for _ in range(300):
        _, mask, surroundings = draw_scene(rng, 96, matching)
        for class_id in np.unique(mask[mask > 0]):
            table[class_id] += np.bincount(
                surroundings[mask == class_id], minlength=len(SURROUNDINGS)
            )
    agreement = table[1:].diagonal().sum() / table.sum()
    chance = 1 / len(SURROUNDINGS)
    if matching:
        assert agreement > 0.8
    else:
        assert abs(agreement - chance) < 0.1


def test_appearance_does_not_depend_on_the_split(seed: int) -> None:
    """Labelled and other scenes differ in the places of objects, not in how often classes occur."""
    rng = np.random.default_rng(seed)
    shares = []
    for matching in (True, False):
        counts = np.zeros(len(CLASS_NAMES))
        for _ in range(400):
            counts += np.bincount(draw_scene(rng, 64, matching)[1].ravel(), minlength=len(counts))
        shares.append(counts / counts.sum())
    np.testing.assert_allclose(shares[0], shares[1], atol=0.05)


def test_surroundings_that_others_cover_get_no_object(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two or three kinds drawn for a scene, one may be the largest field nowhere."""
    fields: list[float] = []

    def level(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
        fields.append(float(not fields))  # the first field is 1 everywhere, all others are 0
        return np.full((size, size), fields[-1])

    monkeypatch.setattr(synthetic, "_smooth_noise", level)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        fields.clear()
        _, mask, surroundings = draw_scene(rng, 32, matching=True)
        (kind,) = np.unique(surroundings)
        assert set(np.unique(mask)) <= {0, kind + 1}
