"""The number of pixels of an image has a limit of the project's, not Pillow's."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from folder_run import scene
from image_trees import SIZE, draw_mask, folder_overrides, folder_tree
from picture_files import write_png, write_tiff
from PIL import Image

from cac_ext.train.cli.main import main
from cac_ext.train.config import load, to_mapping
from cac_ext.train.data import build_datasets
from cac_ext.train.data.files.pictures import read_ids, read_image, read_size
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.runs.checkpoint import require_same_settings


def test_the_number_of_pixels_is_limited_by_an_option_that_the_error_names(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    overrides = folder_overrides(tmp_path)
    too_few, enough = (f"data.max_image_pixels={pixels}" for pixels in (24 * 32 - 1, 24 * 32))
    with pytest.raises(DataError, match=r"train0.png has 32 x 24 = 768 .*max_image_pixels=768"):
        build_datasets(load("folder", [*overrides, too_few]).data)
    build_datasets(load("folder", [*overrides, enough]).data)
    build_datasets(load("folder", [*overrides, "data.max_image_pixels=null"]).data)
    assert main(["data", "check", "folder", *overrides, too_few]) == 1
    assert "data.max_image_pixels=768" in capsys.readouterr().out
    assert main(["evaluate", str(run_folder), *overrides, too_few]) == 2
    assert "data.max_image_pixels=768" in capsys.readouterr().err

    image = str(tmp_path / "images/val0.png")
    arguments = ["predict", str(run_folder), image, "--output", str(tmp_path / "out")]
    assert main([*arguments, "--max-image-pixels", "767"]) == 1
    assert "--max-image-pixels 768" in capsys.readouterr().err
    assert main([*arguments, "--max-image-pixels", "768"]) == 0


def test_a_run_resumes_with_another_limit_of_pixels() -> None:
    """Even a run that was started before the setting existed."""
    saved = to_mapping(load("folder"))
    del saved["data"]["max_image_pixels"]
    for setting in ("null", "1000"):
        config = load("folder", [f"data.max_image_pixels={setting}"])
        require_same_settings(saved, config, Path("checkpoint.pt"))
    with pytest.raises(ConfigError, match=r"data\.max_image_pixels"):
        load("folder", ["data.max_image_pixels=0"])


def test_pillows_own_limit_neither_stops_nor_warns_and_is_restored(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiff(tmp_path / "a.tif", scene(rng), 8)
    draw_mask(tmp_path / "a.png", rng, 3)
    for limit in (1, 24 * 32 - 1):  # an error, a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / "a.tif").shape == (3, *SIZE)
            assert read_ids(tmp_path / "a.png", SIZE, "a.tif").shape == SIZE
        with pytest.raises(DataError):
            read_image(tmp_path / "none.png")
        assert limit == Image.MAX_IMAGE_PIXELS


def test_an_image_of_180_megapixels_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (20000, 9000)).save(path)
    with pytest.raises(DataError, match=r"data\.max_image_pixels=180000000"):
        read_image(path, load("synthetic").data.max_image_pixels)
    assert read_size(path) == (9000, 20000)


def test_a_png_with_megabytes_of_metadata_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    shown = scene(rng)
    large = zlib.compress(bytes(3_000_000))
    profile, text = (b"iCCP", b"icc\0\0" + large), (b"zTXt", b"Comment\0\0" + large)
    write_png(tmp_path / "a.png", shown, 8, 2, before=[profile, text], behind=[text])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), shown)
    assert read_size(tmp_path / "a.png") == SIZE


def test_a_mask_of_an_image_is_not_limited_in_pixels_beside_it(tmp_path: Path) -> None:
    """Its size must be the image's: a larger mask is refused before it is decoded."""
    Image.new("1", (20000, 9000)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="20000 x 9000"):
        read_ids(tmp_path / "mask.png", SIZE, "a.png")
