"""Images of other than three channels: read for what they hold, augmented, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from channel_files import KINDS, channel_tree, draw_channels
from folder_run import one_image
from image_trees import SIZE, draw_mask
from PIL import Image
from torchvision import tv_tensors

from cac_ext.train.cli.main import main
from cac_ext.train.config import AugmentConfig, DataConfig, load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.augment import denormalize, low_level_augmentation, normalize
from cac_ext.train.data.files.images import ImageForm, read_image, read_size
from cac_ext.train.data.rescale import Scaled
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.networks.normalization import IMAGENET, Normalization


def form(channels: int, low: float | None = None, high: float | None = None) -> ImageForm:
    return ImageForm(channels, None if low is None else (low,), None if high is None else (high,))


def read(path: Path, wanted: ImageForm) -> np.ndarray:
    """As ``[H, W, C]``; its size is known from the header."""
    image = read_image(path, None, wanted)
    assert image.dtype == torch.uint8
    assert read_size(path, wanted) == tuple(image.shape[1:])
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_the_channels_of_a_picture_are_those_it_stores(
    channels: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    values = draw_channels(tmp_path / "a.png", rng, channels)
    np.testing.assert_array_equal(read(tmp_path / "a.png", form(channels)), values)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32, ">u2"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_range_is_spread_over_eight_bits(
    kind: Any, channels: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.integers(0, 200, (*SIZE, channels)).astype(kind)
    np.save(tmp_path / "a.npy", values)
    found = read(tmp_path / "a.npy", form(channels, 20, 120))
    expected = np.rint((values.astype(float).clip(20, 120) - 20) / 100 * 255)
    np.testing.assert_array_equal(found, expected)
    if channels == 1:
        np.save(tmp_path / "b.npy", values[..., 0])
        np.testing.assert_array_equal(read(tmp_path / "b.npy", form(1, 20, 120)), expected)
        gray = read(tmp_path / "b.npy", form(3, 20, 120))  # counts as RGB
        np.testing.assert_array_equal(gray, expected.repeat(3, axis=2))


def test_each_channel_may_have_its_own_range(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 3, 2), [10.0, 3000.0]))
    wanted = ImageForm(2, (0.0, 1000.0), (20.0, 5000.0))
    assert read(tmp_path / "a.npy", wanted).tolist() == [[[128, 128]] * 3] * 2


def test_sixteen_bits_have_the_range_of_their_type(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    values = rng.integers(0, 65536, (*SIZE, 1)).astype(np.uint16)
    np.save(tmp_path / "a.npy", values)
    Image.fromarray(values[..., 0]).save(tmp_path / "a.png")
    expected = np.rint(values / 65535 * 255)
    for name in ("a.npy", "a.png"):
        np.testing.assert_array_equal(read(tmp_path / name, form(1)), expected)
    ranged = read(tmp_path / "a.png", form(1, 0, 1000))
    np.testing.assert_array_equal(ranged, np.rint(values.clip(0, 1000) / 1000 * 255))


@pytest.mark.parametrize("planar", [False, True], ids=["interleaved", "planes"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_tiff_of_many_channels_is_read_upright(
    kind: Any, planar: bool, tmp_path: Path, rng: np.random.Generator
) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = rng.integers(0, 200, (*SIZE, 6)).astype(kind)
    stored, layout = (np.moveaxis(values, 2, 0), "separate") if planar else (values, "contig")
    options = {"photometric": "minisblack", "planarconfig": layout}
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    found = read(tmp_path / "a.tif", form(6, 0, 255))
    np.testing.assert_array_equal(found, values)
    turned = [(274, "H", 1, 6, True)]  # the first row is shown on the right
    tifffile.imwrite(tmp_path / "b.tiff", stored, **options, extratags=turned)
    upright = read(tmp_path / "b.tiff", form(6, 0, 255))
    np.testing.assert_array_equal(upright, np.rot90(values, -1))


def test_a_tiff_of_several_pages_is_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pages = np.zeros((4, *SIZE), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    with pytest.raises(DataError, match="4 pages, but the channels of an image must be in one"):
        read_image(tmp_path / "a.tif", None, form(4))


def test_a_tiff_with_a_palette_is_refused(tmp_path: Path) -> None:
    """Its indices would pass for gray."""
    pytest.importorskip("tifffile")
    Image.new("P", SIZE).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="colors of the kind PALETTE"):
        read_image(tmp_path / "a.tif", None, form(3, 0, 9))


def test_without_tifffile_the_package_is_named(tmp_path: Path, monkeypatch) -> None:
    Image.new("RGBA", SIZE).save(tmp_path / "a.tif")
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(DataError, match="pip install tifffile"):
        read_image(tmp_path / "a.tif", None, form(4))


@pytest.mark.parametrize(
    ("mode", "channels", "message"),
    [
        ("RGB", 1, "has 3 channels, but data.channels is 1: set data.channels=3"),
        ("RGB", 4, "has 3 channels, but data.channels is 4"),
        ("L", 2, "has 1 channel, but data.channels is 2"),
        ("RGBA", 1, "has 4 channels, but data.channels is 1"),
        ("P", 1, "colors of the kind P"),
        ("CMYK", 4, "colors of the kind CMYK"),
    ],
)
def test_another_number_of_channels_is_refused(
    mode: str, channels: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, SIZE[::-1]).save(path)
    with pytest.raises(DataError, match=message) as error:
        read_image(path, None, form(channels))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 30, 40), np.uint8), r"must be \[H, W, C\]: save np.moveaxis"),
        (np.zeros((30, 40, 5), np.uint8), "has 5 channels, but data.channels is 4"),
        (np.zeros((3, 30, 40, 4), np.uint8), r"is an array \[3, 30, 40, 4\] of uint8"),
        (np.zeros((0, 40, 4), np.uint8), r"is an array \[0, 40, 4\]"),
        (np.zeros((30, 40, 4), complex), "of complex128"),
        (np.ones((30, 40, 4), np.float32), "float32 from 1 to 1, and nothing says which value"),
        (np.ones((30, 40, 4), np.int64), "set data.value_low and data.value_high"),
        (np.array([[{}]]), "cannot read the image"),
    ],
)
def test_an_array_of_another_form_is_refused(
    array: np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "a.npy", None, form(4))


def test_what_has_no_number_or_no_range_is_refused(tmp_path: Path) -> None:
    values = np.zeros((3, 4, 2), np.float32)
    values[1, 1, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match="holds nan"):
        read_image(tmp_path / "a.npy", None, form(2, 0, 1))
    with pytest.raises(DataError, match="4 x 3 = 12 pixels, more than the 11 allowed"):
        read_image(tmp_path / "a.npy", 11, form(2, 0, 1))
    with pytest.raises(DataError, match="there is no image"):
        read_image(tmp_path / "b.npy", None, form(2))
    from picture_files import write_png

    write_png(tmp_path / "deep.png", np.full((2, 2, 3), 700, np.uint16), 16, color_type=2)
    with pytest.raises(DataError, match="Pillow can only read scaled to 8 bits"):
        read_image(tmp_path / "deep.png", None, form(3, 0, 1000))


def test_a_mask_is_read_without_its_image(tmp_path: Path, rng: np.random.Generator) -> None:
    images = one_image(tmp_path / "a.npy", tmp_path / "m.png")
    images.form = form(5, -1, 1)
    draw_channels(tmp_path / "a.npy", rng, 5)
    mask = draw_mask(tmp_path / "m.png", rng, 3)
    known = images.known_mask(0)
    assert known is not None
    np.testing.assert_array_equal(known.numpy(), mask)
    draw_mask(tmp_path / "m.png", rng, 3, SIZE[::-1])
    with pytest.raises(DataError, match=r"a.npy is 32 x 24$"):
        images[0]


@pytest.mark.parametrize("channels", KINDS)
def test_a_data_set_of_other_channels_is_checked(
    channels: int, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    settings = channel_tree(tmp_path, rng, channels)
    splits = build_datasets(load("folder", settings).data)
    assert splits.channels == channels
    assert splits.labelled[0]["image"].shape == (channels, *SIZE)
    assert main(["data", "check", "folder", *settings, "augment.crop_size=9"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "data.mean=" in line]
    unlabelled = splits.unlabelled
    assert unlabelled is not None
    images = torch.cat([part[i]["image"].flatten(1) for part in (splits.labelled, unlabelled)
                        for i in range(2)], dim=1) / 255  # fmt: skip
    found = load("folder", [*settings, *line.split(": ")[1].split()]).data
    assert found.mean == pytest.approx(images.mean(1).tolist(), abs=1e-4)
    assert found.std == pytest.approx(images.std(1, correction=0).tolist(), abs=1e-4)


def test_files_of_another_number_name_their_line(tmp_path: Path, rng: np.random.Generator) -> None:
    settings = channel_tree(tmp_path, rng, 4)
    with pytest.raises(DataError, match=r"train.txt, line 1: the image .*0.png has 4 channels"):
        build_datasets(load("folder", [*settings, "data.channels=2"]).data)
    with pytest.raises(DataError, match=r"uint8 \[4, H, W\].*set data.channels=3, or give"):
        build_datasets(load("synthetic", ["data.channels=4"]).data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.channels=0"], "data.channels must be between 1 and 1024"),
        (["data.channels=4", "data.mean=[0.5]"], "data.mean has 1 numbers, but data.channels is 4"),
        (["data.mean=[0.5,0.5]"], "data.mean has 2 numbers, but data.channels is 3"),
        (["data.std=[0.5,0,0.5]"], "data.std must be numbers greater than 0"),
        (["data.value_low=[0]"], "data.value_high is missing"),
        (["data.value_high=[0]"], "data.value_low is missing"),
        (["data.value_low=[0,0]", "data.value_high=[1]"], "data.value_low has 2 numbers"),
        (["data.value_low=[5]", "data.value_high=[9,5,9]"], "must be below data.value_high"),
        (["data.value_low=[5,9,5]", "data.value_high=[9]"], "must be below data.value_high"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("folder", settings)


def test_the_usual_normalization_is_imagenet_s() -> None:
    assert Normalization.of(DataConfig()) == IMAGENET
    assert Normalization.of(DataConfig(channels=2)) == Normalization((0.449,) * 2, (0.226,) * 2)
    own = DataConfig(channels=2, mean=[0.1, 0.2], std=[0.3, 0.4])
    assert Normalization.of(own) == Normalization((0.1, 0.2), (0.3, 0.4))
    with pytest.raises(ValueError, match="as many deviations as means"):
        Normalization((0.1,), ())


def test_normalization_of_any_channels_can_be_undone(seed: int) -> None:
    torch.manual_seed(seed)
    image = torch.randint(256, (4, 5, 7), dtype=torch.uint8)
    own = Normalization((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    network_input = normalize(image, own)
    expected = (image[2].double() / 255 - 0.3) / 0.7
    torch.testing.assert_close(network_input[2].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(denormalize(network_input, own), image / 255)
    with pytest.raises(ValueError, match="4 channels cannot be normalized by the mean of 3"):
        normalize(image)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_get_brightness_and_contrast_alone(channels: int, seed: int) -> None:
    """Channels are not mixed: each is changed as if it were the only one."""
    strong = AugmentConfig(jitter=1.0, gray=1.0, blur=0.0, jitter_strength=(0.8, 0.8, 0.8, 0.5))
    torch.manual_seed(seed)
    image = torch.randint(256, (channels, 12, 9), dtype=torch.uint8)
    apply = low_level_augmentation(strong)
    torch.manual_seed(seed)
    found = apply(image)
    assert found.shape == image.shape
    assert found.dtype == torch.uint8
    assert not torch.equal(found, image)
    for channel in range(channels):
        torch.manual_seed(seed)
        assert torch.equal(apply(image[channel : channel + 1]), found[channel : channel + 1])
        order = image[channel].flatten().long().argsort()
        assert (found[channel].flatten()[order].long().diff() >= 0).all()


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_scaling_treats_each_channel_alike(
    channels: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the whole picture is scaled, or a part."""
    torch.manual_seed(seed)
    image = tv_tensors.Image(torch.randint(256, (channels, 40, 50), dtype=torch.uint8))
    scaled = Scaled((40, 50), 23, 61)
    for pays in (False, True):
        monkeypatch.setattr("cac_ext.train.data.rescale.part_pays", lambda *_, pays=pays: pays)
        part = scaled.part(image, 3, 10, 15, 30)
        assert part.shape == (channels, 15, 30)
        for channel in range(channels):
            rgb = tv_tensors.Image(image[channel].expand(3, -1, -1).contiguous())
            alone = scaled.part(rgb, 3, 10, 15, 30)
            difference = part[channel].int() - alone[0].int()
            assert difference.abs().max() <= 1
