"""Masks that hold colors in place of class ids (``data.mask_colors``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_trees import folder_overrides, folder_tree
from PIL import Image

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.files.mask_colors import MaskColors
from cac_ext.train.data.files.pictures import read_ids
from cac_ext.train.errors import ConfigError, DataError

COLORS = {"000000": 0, "804080": 1, "1e3000": 2}  # the last looks like a number
IGNORED = "ffffff"


def rgb(colors: list[str]) -> np.ndarray:
    return np.array([list(bytes.fromhex(color)) for color in colors], np.uint8)


@pytest.fixture
def ids(rng: np.random.Generator) -> np.ndarray:
    found = rng.integers(0, 4, (9, 14)).astype(np.uint8)
    return np.where(found == 3, 255, found).astype(np.uint8)


def colored(ids: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[:3], table[255] = rgb(list(COLORS)), rgb([IGNORED])
    return table[ids]


def read(path: Path, colors: MaskColors, size: tuple[int, int] = (9, 14)) -> np.ndarray:
    return read_ids(path, size, "its image", colors=colors)


def test_colors_become_the_ids_of_their_classes(tmp_path: Path, ids: np.ndarray) -> None:
    colors = MaskColors([f"#{color}" for color in COLORS], [IGNORED.upper()])
    picture = Image.fromarray(colored(ids))
    opaque = picture.copy()
    opaque.putalpha(255)
    indexed = Image.fromarray(np.zeros_like(ids)).convert("P")
    indexed.putpalette(rgb([IGNORED, *COLORS]).flatten().tolist())  # in another order
    indexed.putdata((ids + 1).flatten().tolist())  # 255 becomes 0
    forms = {"RGB": picture, "RGBA": opaque, "P": indexed}
    for mode, form in forms.items():
        assert form.mode == mode
        for suffix in ("png", "tif", "bmp"):
            path = tmp_path / f"{mode}.{suffix}"
            form.save(path)
            found = read(path, colors)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, ids, err_msg=str(path))
    negative = MaskColors(list(COLORS), [IGNORED], -1).ids_of(picture, "")
    np.testing.assert_array_equal(negative, np.where(ids == 255, -1, ids.astype(int)))


def test_gray_masks_of_0_and_255_are_two_classes(tmp_path: Path, ids: np.ndarray) -> None:
    truth = (ids == 1).astype(np.uint8)
    for mode in ("L", "1"):
        Image.fromarray(truth * 255).convert(mode).save(tmp_path / "mask.png")
        found = read(tmp_path / "mask.png", MaskColors(["000000", "ffffff"]))
        np.testing.assert_array_equal(found, truth)


def test_a_color_that_is_not_listed_is_named_with_its_pixels(tmp_path: Path, ids) -> None:
    image = colored(ids)
    image[0, :3], image[1, 0] = (1, 2, 3), (200, 0, 0)
    Image.fromarray(image).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"2 colors .*: #010203 in 3 pixels, #c80000 in 1 pixels"):
        read(tmp_path / "mask.png", MaskColors(list(COLORS), [IGNORED]))


def test_masks_without_certain_colors_are_refused(tmp_path: Path, ids: np.ndarray) -> None:
    colors = MaskColors(list(COLORS), [IGNORED])
    transparent = Image.fromarray(colored(ids)).convert("RGBA")
    transparent.putpixel((0, 0), (0, 0, 0, 0))
    transparent.save(tmp_path / "a.png")
    with pytest.raises(DataError, match="transparent pixels"):
        read(tmp_path / "a.png", colors)
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="no colors of 8 bits"):
        read(tmp_path / "b.png", colors)
    Image.fromarray(colored(ids)).save(tmp_path / "c.jpg")
    with pytest.raises(DataError, match="JPEG"):
        read(tmp_path / "c.jpg", colors)


def test_a_data_set_with_colored_masks_gives_the_same_samples(
    tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    folder_tree(tmp_path, rng, 3, 2)
    overrides = folder_overrides(tmp_path)
    plain = build_datasets(load("folder", overrides).data)
    parts = plain.labelled, plain.validation
    samples = [[part[i]["mask"] for i in range(len(part))] for part in parts]
    for path in (tmp_path / "masks").rglob("*.png"):
        ids = np.asarray(Image.open(path)).copy()
        Image.fromarray(colored(ids)).save(path)
    with pytest.raises(DataError, match=r"name the colors of the classes by data\.mask_colors"):
        plain.labelled[0]

    named = [f"data.mask_colors=[{','.join(COLORS)}]", f"data.ignored_colors=[{IGNORED}]"]
    splits = build_datasets(load("folder", [*overrides, *named]).data)
    for part, masks in zip((splits.labelled, splits.validation), samples, strict=True):
        for index, mask in enumerate(masks):
            assert (part[index]["mask"] == mask).all()
    assert np.array_equal(splits.palette, rgb(list(COLORS)))
    assert main(["data", "check", "folder", *overrides, *named]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.mask_colors=[000000]"], "has 1 colors, but data.num_classes is 3"),
        (["data.ignored_colors=[000000]"], "needs data.mask_colors"),
        (["data.mask_colors=[000000,0000ff,black]"], "'black' is no color"),
        (["data.mask_colors=[000000,0000ff,0000FF]"], "#0000ff more than once"),
        (
            ["data.mask_colors=[000000,0000ff,00ff00]", "data.ignored_colors=[00ff00]"],
            "#00ff00 more than once",
        ),
    ],
)
def test_settings_that_name_no_colors_are_refused(
    settings: list[str], message: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder_tree(tmp_path, rng, 2, 2)
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build_datasets(load("folder", [*folder_overrides(tmp_path), *settings]).data)


def test_data_sets_with_fixed_classes_refuse_them(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    settings = [f"data.root={tmp_path}", "data.mask_colors=[000000,0000ff]"]
    with pytest.raises(ConfigError, match=r"data\.mask_colors is .*fixed classes"):
        build_datasets(load("voc", settings).data)
