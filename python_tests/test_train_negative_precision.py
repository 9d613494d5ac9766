"""The precision of the selected negatives equals a count of all pairs, and changes no result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from image_trees import SIZE, draw_image, draw_mask, folder_overrides, folder_tree
from method_steps import balance_classes, make_cac, random_labelled, random_pairs, step_of
from run_folders import assert_identical
from torch import Tensor
from torch.utils.data import Dataset

from cac_ext.train.cli.main import main
from cac_ext.train.config import AugmentConfig, load
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.augment import CropPairAugment
from cac_ext.train.data.batches import CropPairBatch
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.truth import WithTruth
from cac_ext.train.errors import DataError
from cac_ext.train.loop import train
from cac_ext.train.methods.consistency import Anchors, Overlap
from cac_ext.train.methods.directional_contrast import Rows, Truth
from cac_ext.train.methods.negative_precision import count_classes, negative_precision
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runtime.distributed import current, process_group

CLASSES, SIDE, IMAGES = 5, 33, 2
KEYS = ("negative_precision", "negative_precision_random")


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def counted_pairs(anchors: Tensor, negatives: Tensor) -> tuple[float, float]:
    """Both precisions, pair by pair; rows are (pseudo label, true class), ``[A, 2]``, ``[N, 2]``.

    The true class -1 is not known.
    """
    anchors, negatives = (rows[rows[:, 1] >= 0] for rows in (anchors, negatives))
    selected = anchors[:, None, 0] != negatives[None, :, 0]  # [A, N]
    true = anchors[:, None, 1] != negatives[None, :, 1]
    total = true.numel()
    nan = float("nan")
    return (
        int((selected & true).sum()) / int(selected.sum()) if selected.any() else nan,
        int(true.sum()) / total if total else nan,
    )


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[float, float]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.item() == pytest.approx(other, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize(("num_anchors", "num_negatives"), [(60, 90), (0, 40), (30, 0), (1, 1)])
def test_tables_of_classes_give_what_all_pairs_give(
    num_anchors: int, num_negatives: int, seed: int
) -> None:
    torch.manual_seed(seed)
    for classes in (1, 2, 7):
        rows = [
            torch.stack(
                [torch.randint(0, classes, (count,)), torch.randint(-1, classes, (count,))], dim=1
            )
            for count in (num_anchors, num_negatives)
        ]
        tables = [count_classes(*part.T, classes) for part in rows]
        assert_same(negative_precision(*tables), counted_pairs(*rows))


def test_counts_of_a_million_negatives_do_not_overflow() -> None:
    tables = [torch.zeros(2, 2, dtype=torch.int64) for _ in range(2)]
    tables[0][0, 0], tables[1][1, 1], tables[1][1, 0] = 10**6, 3 * 10**6, 10**6
    assert_same(negative_precision(*tables), (0.75, 0.75))


def make_pairs(side: int, *, empty: bool = False) -> CropPairBatch:
    """Random views with padding, an overlap of half the positions, and a truth with gaps."""
    count = IMAGES * side * side
    overlaps = [torch.randperm(count)[: 0 if empty else count // 2] for _ in range(2)]
    valid = torch.rand(2, IMAGES, side, side) < 0.8
    truths = torch.randint(-1, CLASSES, (2, IMAGES, side, side)).int()
    return random_pairs(IMAGES, SIDE, tuple(overlaps), tuple(valid), truths=tuple(truths))


def make_method(*overrides: str):
    small = ["network.width=16", f"augment.crop_size={SIDE}", "method.confidence_threshold=0.05"]
    config = load("synthetic", [*small, *overrides])
    method = make_cac(config, CLASSES)
    torch.nn.init.normal_(method.model.network.classifier.weight)  # several pseudo labels
    return method, random_labelled(IMAGES, SIDE, CLASSES)


@pytest.mark.parametrize("sampling", ["true", "false"])
@pytest.mark.parametrize("directional", ["true", "false"])
def test_a_step_pairs_its_active_anchors_with_the_negatives_of_the_bank(
    sampling: str, directional: str, seed: int
) -> None:
    torch.manual_seed(seed)
    method, labelled = make_method(
        f"method.negative_sampling={sampling}", f"method.directional={directional}"
    )
    side = method.model.network.pooled_grid.size(SIDE)
    kept: list[Tensor] = []
    for step in range(4):
        pairs = make_pairs(side, empty=step == 3)  # in the last step nothing to compare
        phase = step_of(method, labelled, pairs, step)
        outputs = method.contrast._latest
        anchors, negatives = [], []
        views = zip(pairs[:2], outputs.pseudo_labels.chunk(2), outputs.anchors, strict=True)
        for view, labels, active in views:
            rows = torch.stack([labels, view.truth], dim=-1)  # [B, h, w, 2]
            negatives.append(rows[view.valid])
            anchors.append(rows.flatten(0, 2)[view.overlap][active])
        kept = [*kept[-1:], torch.cat(negatives)]  # this step's and one before
        assert sum(map(len, kept)) == phase.metrics["negatives"]
        selected, random = counted_pairs(torch.cat(anchors), torch.cat(kept))
        precision = [phase.metrics[key] for key in KEYS]
        assert_same(precision, (selected if sampling == "true" else random, random))
        assert (step == 3) == (random != random)
        scalars = phase.scalars()
        assert [scalars[key] for key in KEYS] == pytest.approx(
            [selected if sampling == "true" else random, random], nan_ok=True
        )


def test_drawn_negatives_keep_their_truth(seed: int) -> None:
    """If the true class is the pseudo label itself, each selected pair is a true negative."""
    torch.manual_seed(seed)
    for truth, expected in (("pseudo label", 1.0), ("one class", 0.0)):
        method, labelled = make_method("method.selected_num=20", "network.dropout=0")
        side = method.model.network.pooled_grid.size(SIDE)
        for step in range(3):
            pairs = make_pairs(side)
            images = torch.cat([pairs.view1.images, pairs.view2.images])
            balance_classes(method.model, pairs)  # so that there are negatives of another label
            labels = method.model.view_outputs(images).pseudo_labels
            known = labels if truth == "pseudo label" else torch.zeros_like(labels)
            halves = zip(pairs[:2], known.int().chunk(2), strict=True)
            views = [view._replace(truth=truth_of_view) for view, truth_of_view in halves]
            phase = step_of(method, labelled, CropPairBatch(*views, *pairs[2:]), step)
            assert phase.metrics[KEYS[0]].item() == expected


def test_several_processes_count_the_pairs_of_all(seed: int) -> None:
    alone = _precisions(seed, 0, 2)
    assert processes.run_together(2, _precisions_of_share, seed) == [alone, alone]


def _precisions_of_share(seed: int) -> list[list[float]]:
    with process_group("cpu") as group:
        return _precisions(seed, group.rank, 1)


def _precisions(seed: int, first: int, count: int) -> list[list[float]]:
    """Of three steps with ``count`` of two shares; each share's values follow from the seed."""
    found = []
    method, _ = make_method("method.step_save=1")
    method.contrast.context = replace(method.context, processes=current())
    for step in range(3):
        shares = []
        for share in range(first, first + count):
            generator = torch.Generator().manual_seed(seed + 10 * step + share)
            classes = torch.randint(0, CLASSES, (6, 50), generator=generator)
            shares.append((classes, torch.rand(2, 50, generator=generator) < 0.4))
        classes = torch.cat([share[0] for share in shares], dim=1)  # [6, 50 count]
        active = torch.cat([share[1] for share in shares], dim=1)
        empty = torch.zeros(0)
        rows = Rows(
            Overlap(empty, empty, classes[2]),
            Overlap(empty, empty, classes[3]),
            features=empty,
            labels=torch.cat([classes[0], classes[1]]),
            chosen=empty,
        )
        truth = Truth(torch.cat([classes[4], classes[5]]), first=classes[5], second=classes[4])
        precision = method.contrast._precision(rows, truth, Anchors(active[0], active[1]))
        found.append([precision[key].item() for key in KEYS])
    return found


@pytest.mark.parametrize(("stride", "offset", "pool"), [(4, 0.0, 1), (4, 1.5, 1), (4, 0.0, 2)])
@pytest.mark.parametrize("scale", [0.4, 1.0, 1.37])
def test_the_truth_of_a_feature_is_that_of_the_pixel_on_which_it_is_centerd(
    stride: int, offset: float, pool: int, scale: float, seed: int
) -> None:
    """Each pixel is a class: the views agree at the overlap and with their images."""
    torch.manual_seed(seed)
    grid = FeatureGrid(stride, offset).pooled(pool)
    height, width = 90, 110
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    truth = (rows * width + columns).int()
    image = torch.stack([rows + 100, columns + 100, rows + columns]).to(torch.uint8)
    sample = {"image": image, "name": "coordinates", "truth": truth, "mask": truth}
    config = AugmentConfig(
        crop_size=64, unlabelled_scale=(scale, scale), flip=0.5, blur=0.0, jitter=0.0, gray=0.0
    )
    augment = CropPairAugment(config, CropPairSampler(64, grid, (0.1, 1.0), 0.5), -1)
    for _ in range(12):
        pair = augment(sample)
        seen = [view.truth.flatten()[view.overlap] for view in pair]
        assert torch.equal(*seen)
        assert len(seen[0]) > 0
        assert (seen[0] >= 0).all()
        for view in pair:
            shown = view.truth  # [h, w]
            assert torch.equal(shown >= 0, view.valid)
            # The view's own mask, sampled at the centers; halves of a pixel go to either side.
            centers = grid.offset + grid.stride * torch.arange(grid.size(64))
            near = []
            for shift in (0.0, 0.5):
                places = (centers + shift).floor().long()
                for columns_shift in (0.0, 0.5):
                    across = (centers + columns_shift).floor().long()
                    near.append(view.mask[places[:, None], across])
            agree = torch.stack([one == shown for one in near]).any(dim=0)
            assert agree[shown >= 0].all()


def test_the_truth_draws_nothing(seed: int) -> None:
    image, truth = torch.randint(0, 256, (3, 70, 80), dtype=torch.uint8), torch.zeros(70, 80)
    augment = CropPairAugment(
        AugmentConfig(crop_size=33), CropPairSampler(33, FeatureGrid(4), (0.1, 1.0), 0.5)
    )
    results = []
    for sample in ({"image": image}, {"image": image, "truth": truth.int()}):
        torch.manual_seed(seed)
        pair = augment({**sample, "name": "noise"})
        views = [view._replace(truth=None)._asdict() for view in pair]
        results.append({"views": views, "next": torch.rand(3)})
    assert_identical(*results, "pair")


class Images(Dataset):
    """Two images of noise whose masks are known, of one size or another."""

    def __init__(self, mask: Tensor | None) -> None:
        self.known = mask

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        return {"image": torch.zeros(3, 4, 6, dtype=torch.uint8), "name": f"image {index}"}

    def known_mask(self, index: int) -> Tensor | None:
        return self.known


def splits_of(unlabelled: Dataset | None) -> DatasetSplits:
    return DatasetSplits(Images(None), unlabelled, Images(None), ("a", "b"), ignore_index=1)


def test_ignored_pixels_have_no_truth_and_the_known_mask_stays_as_it_is() -> None:
    mask = torch.tensor([0, 1], dtype=torch.uint8).repeat(4, 3)
    images = Images(mask)
    truth = WithTruth(images, splits_of(images), "run.negative_precision")[1]["truth"]
    assert torch.equal(truth, torch.tensor([0, -1]).repeat(4, 3).int())
    assert mask.max() == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [(None, "has no mask to measure by"), (torch.zeros(4, 5), r"shape \[4, 5\].*\[4, 6\]")],
)
def test_images_without_a_fitting_mask_are_named(mask: Tensor | None, message: str) -> None:
    images = Images(mask)
    with pytest.raises(DataError, match=rf"(?s)run\.negative_precision.*image 0.*{message}"):
        WithTruth(images, splits_of(images), "run.negative_precision")


def test_where_all_images_are_labelled_their_masks_are_the_truth() -> None:
    splits = build_datasets(load("synthetic", ["data.synthetic.unlabelled=0"]).data)
    sample = WithTruth(splits.labelled, splits, "run.negative_precision")[3]
    assert torch.equal(sample["truth"].long(), splits.labelled[3]["mask"].long())


TINY = [
    "network.width=16",
    "network.name=small",
    "augment.crop_size=17",
    "augment.base_size=32",
    "schedule.epochs=2",
    "schedule.iterations_per_epoch=3",
    "schedule.warmup_epochs=1",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
    "schedule.log_every=1",
    "method.selected_num=null",
    "method.confidence_threshold=0.1",
]


def metrics(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "train"]


def test_unlabelled_images_need_no_masks_unless_they_are_measured(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(seed)
    folder_tree(tmp_path, rng, train=2, validation=2)
    for number in range(3):
        draw_image(tmp_path / f"unlabelled{number}.png", rng)
    lists = {"plain": "", "masks": " unlabelled_mask{0}.png"}
    for name, column in lists.items():
        lines = [f"unlabelled{number}.png{column.format(number)}\n" for number in range(3)]
        (tmp_path / f"{name}.txt").write_text("".join(lines))

    def run(name: str, measured: str, output: str) -> int:
        arguments = ["train", "folder", *folder_overrides(tmp_path), *TINY, f"seed={seed}"]
        arguments += [f"data.unlabelled_list={name}.txt", f"run.negative_precision={measured}"]
        return main([*arguments, "--folder", str(tmp_path / output)])

    assert run("plain", "false", "off") == 0
    assert run("plain", "true", "refused") == 2
    message = capsys.readouterr().err
    assert "run.negative_precision" in message
    assert "unlabelled0.png" in message
    for number in range(3):
        draw_mask(tmp_path / f"unlabelled_mask{number}.png", rng, [0, 1, 2, 255], SIZE)
    assert run("masks", "true", "on") == 0

    lines = {name: metrics(tmp_path / name) for name in ("off", "on")}
    assert [KEYS[1] in line for line in lines["on"]] == [False] * 3 + [True] * 3
    for line in lines["on"][3:]:
        # All images have three classes at random, and so have the pairs: two thirds differ.
        assert line[KEYS[1]] == pytest.approx(2 / 3, abs=0.15)
        # With one pseudo label everywhere no negative is selected.
        assert line[KEYS[0]] is None or line[KEYS[0]] == pytest.approx(2 / 3, abs=0.15)
    assert not any(key in line for line in lines["off"] for key in KEYS)
    # Measured or not, it is the same training.
    assert [line["loss"] for line in lines["on"]] == [line["loss"] for line in lines["off"]]
    states = [read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("off", "on")]
    assert_identical(states[0]["modules"], states[1]["modules"], "modules")


def test_without_negatives_nothing_is_measured(tmp_path: Path) -> None:
    small = ["data.synthetic.image_size=32", "data.synthetic.labelled=2"]
    small += ["data.synthetic.unlabelled=2", "data.synthetic.validation=1"]
    train(load("synthetic", [*TINY, *small, "method.loss=l2"]), tmp_path, progress=False)
    assert not any(key in line for line in metrics(tmp_path) for key in KEYS)
