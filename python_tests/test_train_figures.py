"""`cac-ext figures`: the same pixels in two contexts, and the regions that features depend on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import folder_overrides, folder_tree
from PIL import Image
from tiny_run import TINY_RUN, draw_no_pictures
from torch import Tensor, nn

from cac_ext.train.cli.main import main
from cac_ext.train.config import NetworkConfig, load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.augment import denormalize
from cac_ext.train.experiments.methods import method_overrides
from cac_ext.train.figures import contexts as feature_figures
from cac_ext.train.figures.contexts import (
    draw_crops,
    grad_cam_figure,
    mean_distances,
    overlap_features,
    tsne_figure,
)
from cac_ext.train.figures.grad_cam import grad_cam
from cac_ext.train.figures.panels import class_colors
from cac_ext.train.loop import train
from cac_ext.train.networks import SegmentationNetwork, build_network
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.runs.folder import load_run

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["features_tsne.png", "grad_cam.png"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A supervised run and one of the method, of the same data."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        draw_no_pictures(patch)
        _train_both(folder)
    return [str(folder / "sup_only"), str(folder / "cac")]


def _train_both(folder: Path) -> None:
    for method in ("sup_only", "cac"):
        config = load("synthetic", [*TINY_RUN, *method_overrides(method)])
        train(config, folder / method, progress=False)


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.array(Image.open(folder / name).convert("RGB")) for name in NAMES]


def test_pictures_of_several_runs_depend_on_the_seed_alone(
    runs: list[str], tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    seed %= 2**31 - 1
    printed = []
    for name, number in (("one", seed), ("again", seed), ("other", seed + 1)):
        command = ["figures", *runs, "device=cpu", "--images", "2", "--seed", str(number)]
        assert main([*command, "--output", str(tmp_path / name)]) == 0
        printed.append(capsys.readouterr().out.replace(str(tmp_path / name), ""))
    one, again, other = (pictures(tmp_path / name) for name in ("one", "again", "other"))
    for first, second, third in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(first, second)
        assert first.shape != third.shape or (first != third).any()
    assert printed[0] == printed[1] != printed[2]
    loaded = {Path(run).name: load_run(Path(run)) for run in runs}
    config = loaded["cac"].config
    splits = build_datasets(config.data)
    crops = draw_crops(config, splits, loaded["cac"].network.pooled_grid, 2, seed)
    for name, run in loaded.items():
        features = torch.cat([overlap_features(run.network, part) for part in crops], dim=1)
        (line,) = [line for line in printed[0].splitlines() if line.startswith(name)]
        shown = [float(value) for value in line.split()[1:]]
        expected = mean_distances(features)
        assert shown == pytest.approx(
            [expected.context, expected.recolored, expected.any_two], abs=2e-4
        )


def test_one_run_keeps_its_pictures_in_its_folder(runs: list[str], tmp_path: Path) -> None:
    assert main(["figures", runs[1], "--images", "1"]) == 0
    run = load_run(Path(runs[1]))
    splits, networks = build_datasets(run.config.data), {"cac": run.network}
    crops = draw_crops(run.config, splits, run.network.pooled_grid, 1, 0)
    tsne_figure(splits, networks, crops, 0)[0].savefig(tmp_path / NAMES[0], dpi=110)
    grad_cam_figure(splits, networks, crops).savefig(tmp_path / NAMES[1], dpi=110)
    for found, expected in zip(
        pictures(Path(runs[1]) / "figures"), pictures(tmp_path), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_the_pictures_show_crops_contributions_and_features_in_the_colors_of_their_classes(
    runs: list[str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contents of the axes, for one image and one network; two channels replace t-SNE."""
    monkeypatch.setattr(feature_figures, "_embed", lambda features, _: features[..., 3:5].numpy())
    run = load_run(Path(runs[1]))
    splits, networks = build_datasets(run.config.data), {"cac": run.network}
    grid = run.network.pooled_grid
    crops = draw_crops(run.config, splits, grid, 1, seed)
    (part,) = crops
    views = [denormalize(view).permute(1, 2, 0).numpy() for view in part.views]

    axes = grad_cam_figure(splits, networks, crops).axes
    assert len(axes) == 4
    for view, (crop, cam) in enumerate(zip(axes[:2], axes[2:], strict=True)):
        np.testing.assert_allclose(crop.images[0].get_array(), views[view])
        (marked,) = crop.lines
        column, row = (round((float(x[0]) - grid.offset) / grid.stride) for x in marked.get_data())
        position = row * grid.size(part.views.shape[-1]) + column
        assert position in part.overlap[view]
        expected, class_id = grad_cam(run.network, part.views[view], position)
        np.testing.assert_allclose(cam.images[0].get_array(), views[view].mean(axis=2))
        np.testing.assert_allclose(cam.images[1].get_array(), expected.sqrt(), atol=1e-6)
        assert splits.class_names[class_id] in cam.get_title()

    figure, _ = tsne_figure(splits, networks, crops, seed)
    *above, first, second = figure.axes
    for axis, view in zip(above, views, strict=True):
        np.testing.assert_allclose(axis.images[0].get_array(), view)
    features = overlap_features(run.network, part)[..., 3:5].numpy()  # [3, L, 2]
    palette = class_colors(splits) / 255
    for other, axis in ((1, first), (2, second)):
        lines, dots, crosses = axis.collections
        assert len(dots.get_offsets()) == len(part.truth) <= 500
        pixels = [np.abs(features[0] - place).sum(axis=1).argmin() for place in dots.get_offsets()]
        assert sorted(pixels) == list(range(len(part.truth)))
        np.testing.assert_allclose(dots.get_offsets(), features[0, pixels])
        np.testing.assert_allclose(crosses.get_offsets(), features[other, pixels])
        ends = np.stack([dots.get_offsets(), crosses.get_offsets()], axis=1)
        np.testing.assert_allclose(np.stack(lines.get_segments()), ends)
        colors = palette[part.truth[pixels]]
        np.testing.assert_allclose(dots.get_facecolors()[:, :3], colors)
        np.testing.assert_allclose(crosses.get_edgecolors()[:, :3], colors)


def test_the_pixel_can_be_chosen(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["figures", runs[0], "--images", "1"]
    assert main([*command, "--pixel", "999,999"]) == 2
    message = capsys.readouterr().err
    (x, y) = re.search(r"x = (\d+) to \d+, y = (\d+) to", message).groups()
    for name, pixel in (("center", []), ("corner", ["--pixel", f"{x},{y}"])):
        assert main([*command, *pixel, "--output", str(tmp_path / name)]) == 0
    center, corner = (pictures(tmp_path / name) for name in ("center", "corner"))
    np.testing.assert_array_equal(center[0], corner[0])
    assert center[1].shape != corner[1].shape or (center[1] != corner[1]).any()


def test_what_cannot_be_shown_is_said(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def error(*arguments: str) -> str:
        assert main(["figures", *arguments]) == 2
        return capsys.readouterr().err

    assert f"{tmp_path} is no run folder" in error(str(tmp_path))
    assert "needs a run folder" in error("device=cpu")
    assert "--images takes a number > 0" in error(runs[0], "--images", "0")
    assert "--pixel takes X,Y" in error(runs[0], "--pixel", "3")
    assert "not in the overlap, which crop 1" in error(runs[0], "--pixel", "999,3")
    assert "only data.*" in error(runs[0], "seed=3")


def test_the_overlaps_are_the_same_pixels_and_truth(tmp_path: Path, seed: int) -> None:
    folder_tree(tmp_path, np.random.default_rng(seed), 2, 3)
    config = load("folder", [*folder_overrides(tmp_path), "augment.crop_size=17"])
    splits = build_datasets(config.data)
    grid = FeatureGrid(4)
    drawn = draw_crops(config, splits, grid, 5, seed)
    assert [crops.name for crops in drawn] == [f"images/val{k}.png" for k in range(3)]
    for index, crops in enumerate(drawn):
        cells = grid.size(17)
        rows, columns = crops.overlap // cells * 4, crops.overlap % cells * 4
        colors = [denormalize(crops.views[view])[:, rows[view], columns[view]] for view in range(2)]
        torch.testing.assert_close(*colors)
        sample = splits.validation[index]
        image = (sample["image"].float() / 255).flatten(1)  # noise: every pixel is its own
        for color, truth in zip(colors[0].T, crops.truth.tolist(), strict=True):
            (place,) = (image.T - color).abs().amax(1).lt(1e-3).nonzero()[0].tolist()
            mask = int(sample["mask"].flatten()[place])
            assert truth == (-1 if mask == 255 else mask)
        assert not torch.equal(crops.views[0], crops.views[2])


class _Shifted(nn.Module):
    """Features that are pixels of the image, shifted: ``[B, 3, H, W]``."""

    out_channels, stride = 3, 1

    def __init__(self, right: int, down: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Identity())
        self.right, self.down = right, down

    def forward(self, images: Tensor) -> Tensor:
        return self.first(images).roll((-self.down, -self.right), (2, 3))


def test_contributions_lie_where_the_score_reads(seed: int) -> None:
    rng = np.random.default_rng(seed)
    right, down, x, y = (int(value) for value in rng.integers(0, 8, 4))
    classifier = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([1.0, 0.5])[:, None, None, None].expand(2, 3, 1, 1))
    network = SegmentationNetwork(_Shifted(right, down), classifier).eval()
    view = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) + 0.1
    cam, class_id = grad_cam(network, view, 16 * y + x)
    expected = torch.zeros(16, 16)
    expected[y + down, x + right] = 1
    assert class_id == 0
    torch.testing.assert_close(cam, expected)


@pytest.mark.parametrize("name", ["small", "deeplabv3plus"])
def test_every_network_has_contributions_and_keeps_no_hook(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = build_network(NetworkConfig(name=name, weights=None), 5).eval()
    # Positive weights behind the last activations: every activation supports every class.
    if name == "deeplabv3plus":
        for module in (network.classifier, *network.encoder.children()):
            if module is not network.encoder.backbone:
                for weights in module.parameters():
                    weights.data.abs_()
    else:
        network.classifier.weight.data.abs_()
    cells = network.pooled_grid.size(65)
    cam, _ = grad_cam(network, torch.randn(3, 65, 65), cells * (cells // 2) + cells // 2)
    assert cam.shape == (65, 65)
    assert cam.min() >= 0
    assert cam.max() == pytest.approx(1, abs=1e-5)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_distances_are_means_over_the_whole_overlap(runs: list[str], seed: int) -> None:
    config = load("synthetic", TINY_RUN)
    splits = build_datasets(config.data)
    torch.manual_seed(seed)
    network = build_network(config.network, splits.num_classes).eval()
    (crops,) = draw_crops(config, splits, network.pooled_grid, 1, seed)
    features = overlap_features(network, crops)
    found = mean_distances(features)
    one, other = (torch.cosine_similarity(features[0], features[k], dim=1) for k in (1, 2))
    assert found.context == pytest.approx(1 - one.mean().item(), abs=1e-5)
    assert found.recolored == pytest.approx(1 - other.mean().item(), abs=1e-5)
    every_two = 1 - features[0] @ features[0].T
    assert found.any_two == pytest.approx(every_two.mean().item(), abs=1e-5)
