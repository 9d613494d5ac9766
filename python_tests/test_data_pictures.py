"""Images in files: in every form read for what they show, upright, or refused by name."""

from __future__ import annotations

import os
import resource
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import PictureWriter, one_image, scene, trained_on_a_folder
from image_trees import SIZE, draw_mask, folder_overrides, folder_tree
from picture_files import write_bmp, write_png, write_tiff
from PIL import Image

from cac_ext.train.cli.main import main
from cac_ext.train.config import load, to_mapping
from cac_ext.train.data import build_datasets
from cac_ext.train.data.checks.check import check
from cac_ext.train.data.files.pictures import read_ids, read_image, read_size
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.runs.checkpoint import require_same_settings


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with trained_on_a_folder(tmp_path_factory.mktemp("trained")) as folder:
        yield folder


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def sixteen(values: np.ndarray) -> np.ndarray:
    """8-bit values as the same shades in 16 bits."""
    return values.astype(np.uint16) * 257


def pillow(mode: str, **options: object) -> PictureWriter:
    """A writer by Pillow from RGB; what was written is what the file shows."""

    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(rgb).convert(mode)
        picture.save(path, **options)
        return np.array(picture.convert("RGB"))

    return write


def with_alpha(mode: str) -> PictureWriter:
    """Half of the pixels transparent; the colors beneath them are what counts."""

    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(rgb).convert(mode.removesuffix("A"))
        alpha = np.zeros(rgb.shape[:2], np.uint8)
        alpha[:, ::2] = 255
        expected = np.array(picture.convert("RGB"))
        picture = picture.convert(mode)
        picture.putalpha(Image.fromarray(alpha))
        picture.save(path)
        return expected

    return write


def transparent_palette(path: Path, rgb: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    picture.save(path, transparency=bytes(range(16)))
    return np.array(picture.convert("RGB"))


def gray_png(bits: int, color_type: int = 0) -> PictureWriter:
    """Gray values of a depth; for color types with alpha, transparent ones."""

    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        top = (1 << bits) - 1
        stored = np.rint(rgb[..., 0] / 255 * top).astype(np.uint16)
        samples = stored if color_type == 0 else np.stack([stored, stored // 2], axis=2)
        write_png(path, samples, bits, color_type)
        return as_rgb(np.rint(stored.astype(float) * 255 / top).astype(np.uint8))

    return write


def rgb_png_16(path: Path, rgb: np.ndarray) -> np.ndarray:
    write_png(path, sixteen(rgb), 16, 2)
    return rgb


def gray_tiff(bits: int, **options: object) -> PictureWriter:
    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        top = (1 << bits) - 1
        shown = np.rint(rgb[..., 0] / 255 * top).astype(np.uint16)
        stored = top - shown if options.get("white_is_zero") else shown
        write_tiff(path, stored, bits, **options)
        return as_rgb(np.rint(shown.astype(float) * 255 / top).astype(np.uint8))

    return write


def rgb_tiff_16(order: str) -> PictureWriter:
    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        write_tiff(path, sixteen(rgb), 16, order=order)
        return rgb

    return write


def packed_tiff_16(path: Path, rgb: np.ndarray) -> np.ndarray:
    Image.fromarray(sixteen(rgb[..., 0])).save(path, compression="tiff_lzw")
    return as_rgb(rgb[..., 0])


def lab_tiff(path: Path, rgb: np.ndarray) -> np.ndarray:
    """Grays: lightness alone, of CIE Lab."""
    lightness = np.linspace(0, 100, SIZE[1])
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    shown = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    bands = [np.full(SIZE, np.rint(lightness * 2.55)), np.full(SIZE, 128), np.full(SIZE, 128)]
    Image.merge("LAB", [Image.fromarray(band.astype(np.uint8)) for band in bands]).save(path)
    return as_rgb(np.broadcast_to(np.rint(shown), SIZE).astype(np.uint8))


def pgm(maximum: int) -> PictureWriter:
    def write(path: Path, rgb: np.ndarray) -> np.ndarray:
        stored = np.rint(rgb[..., 0] / 255 * maximum).astype(int)
        data = stored.astype(np.uint8 if maximum < 256 else ">u2").tobytes()
        path.write_bytes(f"P5 {SIZE[1]} {SIZE[0]} {maximum}\n".encode() + data)
        return as_rgb(np.rint(stored * 255 / maximum).astype(np.uint8))

    return write


def reduced_copy_tiff(path: Path, rgb: np.ndarray) -> np.ndarray:
    write_tiff(path, rgb, 8, subfile_types=(0, 1, 4))
    return rgb


def camera_mpo(path: Path, rgb: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(rgb)
    preview = picture.resize((8, 6))
    picture.save(path, format="MPO", save_all=True, append_images=[preview], quality=100)
    return rgb


#: name of the file -> (its writer, which returns what it shows; how much what is read may differ)
FORMS = {
    "8.png": (pillow("RGB"), 0),
    "gray.png": (pillow("L"), 0),
    "1bit.png": (pillow("1"), 0),
    "2bit.png": (gray_png(2), 0),
    "4bit.png": (gray_png(4), 0),
    "16bit.png": (gray_png(16), 0),
    "16bit-alpha.png": (gray_png(16, 4), 1),
    "16bit-rgb.png": (rgb_png_16, 1),
    "palette.png": (pillow("P"), 0),
    "palette-transparent.png": (transparent_palette, 0),
    "la.png": (with_alpha("LA"), 0),
    "rgba.png": (with_alpha("RGBA"), 0),
    "la.tif": (with_alpha("LA"), 0),
    "rgba.tiff": (with_alpha("RGBA"), 0),
    "8.tif": (pillow("RGB", compression="tiff_deflate"), 0),
    "cmyk.tif": (pillow("CMYK"), 1),
    "ycc.tif": (pillow("YCbCr"), 1),
    "lab.tif": (lab_tiff, 8),
    "4bit.tif": (gray_tiff(4), 0),
    "white-is-zero.tif": (gray_tiff(8, white_is_zero=True), 0),
    "12bit.tif": (gray_tiff(12), 1),
    "16bit.tif": (gray_tiff(16), 0),
    "16bit-big-endian.TIF": (gray_tiff(16, order=">"), 0),
    "16bit-white-is-zero.tif": (gray_tiff(16, white_is_zero=True), 0),
    "16bit-packed.tif": (packed_tiff_16, 0),
    "16bit-rgb.tif": (rgb_tiff_16("<"), 1),
    "16bit-rgb-big-endian.tif": (rgb_tiff_16(">"), 1),
    "overviews.tif": (reduced_copy_tiff, 0),
    "15.pgm": (pgm(15), 1),
    "255.pgm": (pgm(255), 0),
    "1023.pgm": (pgm(1023), 1),
    "65535.pgm": (pgm(65535), 0),
    "8.ppm": (pillow("RGB"), 0),
    "8.bmp": (pillow("RGB"), 0),
    "8.gif": (pillow("P"), 0),
    "8.jfif": (pillow("RGB", format="JPEG", quality=100, subsampling=0), 6),
    "cmyk.jpg": (pillow("CMYK", quality=100, subsampling=0), 8),
    "camera.jpeg": (camera_mpo, 40),
    "8.webp": (pillow("RGB", lossless=True), 0),
    "8.jp2": (pillow("RGB"), 0),
    "16bit.jp2": (
        lambda path, rgb: (
            Image.fromarray(sixteen(rgb[..., 0])).save(path),
            as_rgb(rgb[..., 0]),
        )[1],
        0,
    ),
    "8.avif": (pillow("RGB", quality=100, subsampling="4:4:4"), 12),
}


@pytest.mark.parametrize("name", FORMS)
def test_an_image_is_read_for_what_it_shows(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    write, tolerance = FORMS[name]
    shown = write(tmp_path / name, scene(rng))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = one_image(tmp_path / name)[0]["image"]
    assert image.dtype == torch.uint8
    assert image.shape == (3, *SIZE)
    difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - shown)
    assert difference.max() <= tolerance
    assert read_size(tmp_path / name) == SIZE


def test_every_form_is_predicted_and_found_in_a_folder(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    """The overlay is half the image, half the classes' colors, and so tells the image."""
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shown = {name: write(images / name, scene(rng)) for name, (write, _) in FORMS.items()}
    assert main(["predict", str(run_folder), str(images), "--output", str(output)]) == 0
    assert f"{len(FORMS)} of {len(FORMS)} images" in capsys.readouterr().out
    stems = [Path(name).stem for name in FORMS]
    for name, (_, tolerance) in FORMS.items():
        target = f"{name}.png" if stems.count(Path(name).stem) > 1 else f"{Path(name).stem}.png"
        overlay, colours = (
            np.array(Image.open(output / kind / target)).astype(int)
            for kind in ("overlays", "colours")
        )
        assert np.abs(2 * overlay - colours - shown[name]).max() <= tolerance + 1


def float_tiff(path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(SIZE)).save(path)


def animation(path: Path) -> None:
    frames = [Image.new("RGB", SIZE[::-1], (k, 0, 0)) for k in (0, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


REFUSED = {
    "float.tif": (float_tiff, ["mode F", "from 0 to 1", "scale it"]),
    "float.pfm": (float_tiff, ["mode F", "scale it"]),
    "int32.tif": (
        lambda path: Image.fromarray(np.full(SIZE, 70000, np.int32)).save(path),
        ["mode I", "int32", "70000"],
    ),
    "signed16.tif": (
        lambda path: write_tiff(path, np.full(SIZE, -5), 16, sample_format=2),
        ["from -5 to -5", "without sign"],
    ),
    "signed8.tif": (
        lambda path: write_tiff(path, np.full(SIZE, -5), 8, sample_format=2),
        ["int8", "from -5 to -5"],
    ),
    "pages.tif": (
        lambda path: write_tiff(path, np.zeros(SIZE, int), 8, subfile_types=(0, 0, 0)),
        ["3 pages or frames"],
    ),
    "moves.gif": (animation, ["2 pages or frames"]),
    "moves.png": (animation, ["2 pages or frames"]),
    "moves.webp": (animation, ["2 pages or frames"]),
    "two-grays.bmp": (
        lambda path: write_bmp(path, np.ones(SIZE, int), 8, [(0, 0, 0), (255, 255, 255)]),
        ["BMP of 8 bits", "save it as a PNG"],
    ),
    "empty.png": (lambda path: path.write_bytes(b""), ["the file is empty"]),
    "text.png": (lambda path: path.write_text("version https://git-lfs"), ["b'version https://g"]),
    "cut.jpg": (
        lambda path: (
            Image.new("RGB", SIZE[::-1]).save(path),
            path.write_bytes(path.read_bytes()[:-99]),
        ),
        ["runcated"],
    ),
    "cut.png": (
        lambda path: (
            rgb_png_16(path, scene(np.random.default_rng(0))),
            path.write_bytes(path.read_bytes()[:-99]),
        ),
        ["cannot read"],
    ),
    "cut.tif": (
        lambda path: (
            write_tiff(path, np.zeros(SIZE, int), 8),
            path.write_bytes(path.read_bytes()[:-99]),
        ),
        ["cannot read"],
    ),
    "folder.jpg": (lambda path: path.mkdir(), ["is a folder"]),
    "pipe.jpg": (os.mkfifo, ["is no regular file"]),
    "link.jpg": (lambda path: path.symlink_to("nowhere.jpg"), ["there is no image", "nowhere.jpg"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_image_that_cannot_be_read_is_named_wherever_it_is_read(
    name: str, run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    write, words = REFUSED[name]
    folder_tree(tmp_path, rng, 2, 1)
    path = tmp_path / "images" / name
    write(path)
    draw_mask(tmp_path / "mask.png", rng, 3)
    (tmp_path / "val.txt").write_text(f"images/val0.png masks/val0.png\nimages/{name} mask.png\n")
    overrides = folder_overrides(tmp_path)

    splits = build_datasets(load("folder", overrides).data, check=False)
    with pytest.raises(DataError) as error:
        splits.validation[1]
    text = str(error.value)
    assert str(path) in text
    assert "val.txt, line 2" in text
    for word in words:
        assert word in text
    assert check(splits, progress=False).problems == [text]

    assert main(["evaluate", str(run_folder), *overrides]) == 2
    assert str(path) in capsys.readouterr().err
    inputs = [str(tmp_path / "images/val0.png"), str(path)]
    if name not in ("folder.jpg", "link.jpg"):  # of the command line, these are found at once
        arguments = ["predict", str(run_folder), *inputs, "--output", str(tmp_path / "out")]
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert f"{path}" in captured.err
        assert "1 of 2 images" in captured.out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_without_permission_is_named(run_folder: Path, rng: np.random.Generator) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        folder_tree(root, rng, 2, 1)
        (root / "images/train0.png").chmod(0)
        (root / "locked").mkdir()
        (root / "images/train1.png").rename(root / "locked/a.png")
        (root / "locked").chmod(0)
        (root / "train.txt").write_text(
            "images/train0.png masks/train0.png\nlocked/a.png masks/train1.png\n"
        )
        os.seteuid(65534)
        try:
            splits = build_datasets(load("folder", folder_overrides(root)).data, check=False)
            problems = check(splits, progress=False).problems
            missing = splits.labelled.missing_files()
        finally:
            os.seteuid(0)
    assert [
        str(root / part) in problem
        for part, problem in zip(("images/train0.png", "locked/a.png"), problems, strict=True)
    ] == [True, True]
    assert all("Permission denied" in problem for problem in (*problems, *missing))


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


def test_a_run_goes_on_with_another_limit_of_pixels() -> None:
    """Also one that was begun before there was such a setting."""
    saved = to_mapping(load("folder"))
    del saved["data"]["max_image_pixels"]
    for setting in ("null", "1000"):
        config = load("folder", [f"data.max_image_pixels={setting}"])
        require_same_settings(saved, config, Path("checkpoint.pt"))
    with pytest.raises(ConfigError, match=r"data\.max_image_pixels"):
        load("folder", ["data.max_image_pixels=0"])


def test_pillows_own_limit_neither_stops_nor_warns_and_is_left_as_it_was(
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


def test_no_file_stays_open(tmp_path: Path, rng: np.random.Generator) -> None:
    """With room for a few files, hundreds are read; those that are refused close theirs, too."""
    paths = []
    for name, (write, _) in FORMS.items():
        write(tmp_path / name, scene(rng))
        paths.append(tmp_path / name)
    for name in ("pages.tif", "moves.gif", "float.tif", "cut.jpg", "text.png"):
        REFUSED[name][0](tmp_path / name)
        paths.append(tmp_path / name)
    draw_mask(tmp_path / "mask.png", rng, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept, errors = [], []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        for path in paths * 3:
            try:
                kept.append(one_image(path, tmp_path / "mask.png")[0])
            except DataError as error:
                errors.append(error)  # with its traceback, and all that hangs on it
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(kept) == 3 * len(FORMS)
    assert not any("Too many open files" in str(error) for error in errors)


@pytest.mark.parametrize(
    "name", ["a b.png", "ü 猫.png", "line\nbreak.png", "#a,b;c.png", "a%20b.png"]
)
def test_files_of_any_name_are_read_and_predicted(
    name: str, run_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "in").mkdir()
    shown = pillow("RGB")(tmp_path / "in" / name, scene(rng))
    sample = one_image(tmp_path / "in" / name)[0]
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), shown)
    output = tmp_path / "out"
    assert main(["predict", str(run_folder), str(tmp_path / "in"), "--output", str(output)]) == 0
    assert (output / "ids" / name).is_file()
