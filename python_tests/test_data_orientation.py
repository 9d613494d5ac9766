"""Photos with an EXIF orientation are read upright everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folder_run import one_image, scene
from image_trees import SIZE, draw_mask, folder_overrides, folder_tree
from picture_files import exif_bytes, turned, write_png
from PIL import Image

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.checks.check import check
from cac_ext.train.data.files.pictures import read_image, read_size
from cac_ext.train.errors import DataError

ORIENTED = {
    "photo.jpg": {"quality": 100, "subsampling": 0},
    "photo.png": {},
    "photo.webp": {"lossless": True},
    "photo.tif": {},
    "packed.tif": {"compression": "tiff_lzw"},
    "photo.avif": {"quality": 100, "subsampling": "4:4:4"},
}


def write_oriented(path: Path, upright: np.ndarray, orientation: int, **options: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turned(upright, orientation))
    Image.fromarray(stored).save(path, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_masks_are_read_upright(
    orientation: int, run_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    """By training, checks, sizes and predictions, in every format with an orientation."""
    shown = scene(rng)
    ids = rng.integers(0, 3, SIZE).astype(np.uint8)
    write_png(tmp_path / "plain-mask.png", ids, 8)
    write_oriented(tmp_path / "turned-mask.png", ids, orientation)
    write_oriented(tmp_path / "turned-mask.tif", ids, orientation)
    write_png(
        tmp_path / "late-mask.png",
        turned(ids, orientation),
        2,
        behind=[(b"eXIf", exif_bytes(orientation))],
    )
    (tmp_path / "images").mkdir()
    for name, options in ORIENTED.items():
        write_oriented(tmp_path / "images" / name, shown, orientation, **options)
    late = tmp_path / "images/late.png"  # some programs write metadata behind the pixels
    stored = turned(shown, orientation)
    write_png(late, stored, 8, 2, behind=[(b"eXIf", exif_bytes(orientation))])
    names = [*ORIENTED, "late.png"]
    for name in names:
        path = tmp_path / "images" / name
        for mask in ("plain-mask.png", "turned-mask.png", "turned-mask.tif", "late-mask.png"):
            images = one_image(path, tmp_path / mask)
            sample = images[0]
            difference = sample["image"].permute(1, 2, 0).numpy().astype(int) - shown
            assert np.abs(difference).max() <= (12 if name[-4:] in (".jpg", "avif") else 0), name
            np.testing.assert_array_equal(sample["mask"].numpy(), ids)
            np.testing.assert_array_equal(images.known_mask(0).numpy(), ids)
        assert read_size(path) == SIZE

    arguments = ["predict", str(run_folder), str(tmp_path / "images"), "--output"]
    assert main([*arguments, str(tmp_path / "out")]) == 0
    lossless = [name for name in names if name[-4:] not in (".jpg", "avif")]
    predicted = [
        np.array(Image.open(tmp_path / "out/ids" / f"{name}.png"))
        if name.startswith("photo")
        else np.array(Image.open(tmp_path / f"out/ids/{Path(name).stem}.png"))
        for name in lossless
    ]
    assert predicted[0].shape == SIZE
    for other in predicted[1:]:
        np.testing.assert_array_equal(other, predicted[0])


def test_a_teacher_labels_what_images_show(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    """It makes the same upright pseudo label of a picture in several forms."""
    folder_tree(tmp_path, rng, 2, 1)
    shown = scene(rng)
    shown[..., 1:] = shown[..., :1]  # gray, so that a form of one channel shows the same
    write_png(tmp_path / "plain.png", shown, 8, 2)
    write_oriented(tmp_path / "turned.png", shown, 6)
    write_oriented(tmp_path / "turned.tif", shown, 7, compression="tiff_lzw")
    write_png(tmp_path / "deep.png", shown[..., 0].astype(int) * 257, 16)
    names = ["plain.png", "turned.png", "turned.tif", "deep.png"]
    (tmp_path / "unlabelled.txt").write_text("\n".join(names))
    overrides = [*folder_overrides(tmp_path), "data.unlabelled_list=unlabelled.txt"]
    options = ["self_training.confidence_threshold=0", "--output", str(tmp_path / "labels")]
    command = ["self-training", "make-labels", str(run_folder), *overrides, *options]
    assert main(command) == 0
    assert "4 images, 100.0 % of the pixels labelled" in capsys.readouterr().out
    labels = [np.array(Image.open(tmp_path / f"labels/{name}.png")) for name in names]
    assert labels[0].shape == SIZE
    for label in labels[1:]:
        np.testing.assert_array_equal(label, labels[0])


def test_an_invalid_orientation_turns_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    shown = scene(rng)
    for orientation in (0, 9, 1000):
        exif = exif_bytes(orientation)
        write_png(tmp_path / "a.png", shown, 8, 2, before=[(b"eXIf", exif)])
        np.testing.assert_array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), shown)
    write_png(tmp_path / "a.png", shown, 8, 2, before=[(b"eXIf", b"MM no exif at all")])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0), shown)
    assert read_size(tmp_path / "a.png") == SIZE


def test_a_mask_of_the_stored_picture_is_refused_with_the_reason(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    write_oriented(tmp_path / "a.jpg", scene(rng), 6)
    draw_mask(tmp_path / "a.png", rng, 3, SIZE[::-1])
    with pytest.raises(DataError, match=r"24 x 32 pixels, but its image .* 32 x 24.*orientation"):
        one_image(tmp_path / "a.jpg", tmp_path / "a.png")[0]


def test_a_check_remarks_on_turned_and_dark_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    folder_tree(tmp_path, rng, 3, 1)
    write_oriented(tmp_path / "images/train0.png", scene(rng), 3)
    shades = rng.integers(0, 4096, SIZE)  # 12 bits in 16
    write_png(tmp_path / "images/train1.png", shades, 16)
    report = check(build_datasets(load("folder", folder_overrides(tmp_path)).data), progress=False)
    assert report.problems == []
    remarks = "\n".join(report.remarks)
    assert "1 of the labelled images (images/train0.png) is turned" in remarks
    assert "1 of the labelled images (images/train1.png) is nearly black" in remarks
    assert "validation images" not in remarks
