"""Images of 1, 4 and 5 channels train, resume, evaluate, predict and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from channel_files import KINDS, channel_tree, draw_channels
from image_trees import SIZE
from PIL import Image
from run_folders import assert_same_run
from tiny_run import draw_no_pictures, interrupted_before
from torch import nn

from cac_ext import train
from cac_ext.train.cli.main import main
from cac_ext.train.config import NetworkConfig
from cac_ext.train.data import build_datasets
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.figures.contexts import draw_crops, grad_cam_figure
from cac_ext.train.figures.panels import as_rgb
from cac_ext.train.networks import build_network
from cac_ext.train.networks.normalization import usual_normalization
from cac_ext.train.networks.weights import adapted_to, set_weights

QUICK = [
    "device=cpu",
    "network.width=16",
    "augment.crop_size=17",
    "schedule.epochs=2",
    "schedule.iterations_per_epoch=1",
    "schedule.warmup_epochs=1",
    "schedule.evaluate_every=2",
    "schedule.labelled_batch=2",
    "schedule.unlabelled_batch=2",
    "schedule.log_every=1",
    "method.confidence_threshold=0.1",
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=sorted(KINDS))
def channels(request: pytest.FixtureRequest) -> int:
    return request.param


def test_a_run_of_any_channels_from_training_to_export(
    channels: int, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    settings = [*channel_tree(tmp_path, rng, channels), *QUICK]
    config = train.load_config("folder", settings)
    result = train.train(config, tmp_path / "run", progress=False)
    assert result.network.normalization.channels == channels
    assert (tmp_path / "run/picture.png").is_file()

    run = train.load_run(tmp_path / "run")
    assert run.network.normalization == usual_normalization(channels)
    assert train.evaluate_run(run, progress=False).miou == pytest.approx(result.miou)
    path = tmp_path / f"val/0{KINDS[channels][0]}"
    values = draw_channels(path, rng, channels)
    of_file = train.predict(run, path)
    assert of_file.shape == SIZE
    np.testing.assert_array_equal(of_file, train.predict(run, values))
    with pytest.raises(ValueError, match=rf"\[H, W, {channels}\] \(data.channels\)"):
        train.predict(run, np.zeros((*SIZE, 3), np.uint8))

    assert main(["predict", str(tmp_path / "run"), str(path.parent),
                 "--output", str(tmp_path / "out")]) == 0  # fmt: skip
    assert "2 of 2 images" in capsys.readouterr().out
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out/ids/0.png")), of_file)
    assert Image.open(tmp_path / "out/overlays/0.png").size == SIZE[::-1]

    train.export(run, tmp_path / "net.safetensors")
    again = train.load_exported(tmp_path / "net.safetensors", "cpu")
    np.testing.assert_array_equal(train.predict(again, path), of_file)


def test_a_program_takes_the_channels_of_the_run(tmp_path: Path, rng: np.random.Generator) -> None:
    own = ["data.mean=[0.1,0.2,0.3,0.4]", "data.std=[0.5,0.6,0.7,0.8]"]
    settings = [*channel_tree(tmp_path, rng, 4), *QUICK, *own, "method.name=sup_only"]
    train.train(train.load_config("folder", settings), tmp_path / "run", progress=False)
    run = train.load_run(tmp_path / "run")
    assert run.network.normalization.mean == (0.1, 0.2, 0.3, 0.4)
    train.export(run, tmp_path / "net.pt2", SIZE)
    values = draw_channels(tmp_path / "a.png", rng, 4)
    images = torch.from_numpy(values).permute(2, 0, 1)[None]
    logits = torch.export.load(tmp_path / "net.pt2").module()(images)
    agree = (logits[0].argmax(0).numpy() == train.predict(run, values)).mean()
    assert agree > 0.99  # up to rounding of equal scores
    splits = build_datasets(run.config.data)
    crops = draw_crops(run.config, splits, run.network.pooled_grid, count=1, seed=0)
    assert crops[0].picture(0).shape == (17, 17, 3)
    assert len(grad_cam_figure(splits, {"run": run.network}, crops).axes) == 4
    with pytest.raises(ConfigError, match="the network has been trained with the run's own"):
        train.load_run(tmp_path / "run", ["data.mean=[0,0,0,0]"])


def test_it_resumes_bit_for_bit(tmp_path: Path, rng: np.random.Generator, monkeypatch) -> None:
    draw_no_pictures(monkeypatch)
    settings = [*channel_tree(tmp_path, rng, 5), *QUICK]
    config = train.load_config("folder", settings)
    train.train(config, tmp_path / "whole", progress=False)
    with interrupted_before(1):
        train.train(config, tmp_path / "parts", progress=False)
    train.resume(tmp_path / "parts", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("method", ["unimatch", "cct", "s4gan", "gct", "ecs", "weak"])
def test_every_method_takes_other_channels(
    method: str, tmp_path: Path, rng: np.random.Generator, monkeypatch
) -> None:
    draw_no_pictures(monkeypatch)
    settings = [*channel_tree(tmp_path, rng, 4), *QUICK, "data.background_class=0"]
    if method == "weak":
        (tmp_path / "labels.txt").write_text("more/0.png 1\nmore/1.png 2\n")
        settings += ["weak.pseudo_labels=auto", "weak.image_labels=labels.txt"]
        settings += ["image_classifier.weights=null", "image_classifier.epochs=1"]
        settings += ["image_classifier.batch=2"]
    else:
        settings += [f"method.name={method}", "augment.crop_size=65"]
        settings += ["augment.labelled_scale=[1,1]", "augment.unlabelled_scale=[3,3]"]
    result = train.train(train.load_config("folder", settings), tmp_path / "run", progress=False)
    weights = [p for p in result.network.parameters() if p.ndim == 4]
    assert weights[0].shape[1] == 4
    assert all(p.isfinite().all() for p in weights)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize(
    ("name", "backbone"),
    [("deeplabv3plus", "resnet50"), ("pspnet", "vgg16_bn"), ("deeplabv3plus", "timm/resnet10t")],
)
def test_every_backbone_takes_other_channels(name: str, backbone: str, channels: int) -> None:
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    network = build_network(
        NetworkConfig(name=name, backbone=backbone),
        3,
        normalization=usual_normalization(channels),
    ).eval()
    with torch.no_grad():
        assert network(torch.randn(1, channels, 33, 40)).shape == (1, 3, 33, 40)


def test_a_custom_network_without_the_argument_is_named(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(ConfigError, match=r"give it an argument `channels: int = 3`"):
        build_network(
            NetworkConfig(name="own_network:build"), 3, normalization=usual_normalization(4)
        )


def test_pretrained_weights_are_adapted_as_timm_does(seed: int) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(8, 3, 7, 7)
    gray, rgb = torch.randn(1, 1, 20, 20), torch.nn.functional.conv2d
    torch.testing.assert_close(
        rgb(gray, adapted_to(1, weight)), rgb(gray.expand(-1, 3, -1, -1), weight)
    )
    five = adapted_to(5, weight)
    assert torch.equal(five, weight[:, [0, 1, 2, 0, 1]] * (3 / 5))
    timm = pytest.importorskip("timm")
    for channels in (1, 2, 4, 5, 7):
        theirs = timm.models.adapt_input_conv(channels, weight)
        torch.testing.assert_close(adapted_to(channels, weight), theirs)


def test_the_report_names_the_adapted_convolution(seed: int) -> None:
    torch.manual_seed(seed)
    rgb, own = (nn.Sequential(nn.Conv2d(inputs, 8, 3), nn.Conv2d(8, 4, 1)) for inputs in (3, 5))
    report = set_weights(own, "tiny", rgb.state_dict(), "rgb.pth")
    assert report.loaded == report.wanted
    assert "adapted to the channels of the images: 0.weight ([8, 3, 3, 3] to [8, 5, 3, 3])" in str(
        report
    )
    assert torch.equal(own[0].weight, adapted_to(5, rgb[0].weight))
    assert torch.equal(own[1].weight, rgb[1].weight)


def test_pictures_show_the_first_channels() -> None:
    image = torch.arange(5)[:, None, None].expand(5, 2, 2)
    assert as_rgb(image)[:, 0, 0].tolist() == [0, 1, 2]
    assert as_rgb(image[3:])[:, 0, 0].tolist() == [3, 3, 3]
    assert as_rgb(image[4:])[:, 0, 0].tolist() == [4, 4, 4]


def test_files_of_other_channels_are_refused_by_a_run(
    tmp_path: Path, rng: np.random.Generator, run_folder: Path
) -> None:
    run = train.load_run(run_folder)
    draw_channels(tmp_path / "a.npy", rng, 5)
    with pytest.raises(DataError, match=r"has 5 channels, but data\.channels is 3"):
        train.predict(run, tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", rng.integers(0, 256, (*SIZE, 3), np.uint8))
    assert train.predict(run, tmp_path / "b.npy").shape == SIZE
