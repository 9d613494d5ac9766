"""Images in files: every form is read as it looks, or refused by name."""

from __future__ import annotations

import os
import resource
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import one_image, scene
from image_trees import SIZE, draw_mask, folder_overrides, folder_tree
from picture_forms import FORMS, REFUSED, pillow
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.checks.check import check
from cac_ext.train.data.files.pictures import read_size, tensor_of
from cac_ext.train.errors import DataError


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


@pytest.mark.parametrize("height", [1, 63, 64, 65, 200])
def test_pixels_are_handed_out_as_torchvision_does(height: int, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (height, 37, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    tensor, expected = tensor_of(picture), pil_to_tensor(picture)
    assert torch.equal(tensor, expected)
    assert tensor.stride() == expected.stride()
    tensor.zero_()  # no memory is shared with the picture
    np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_every_form_is_predicted_and_found_in_a_folder(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    """The overlay is half the image, half the classes' colors, and so shows the image."""
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shown = {name: write(images / name, scene(rng)) for name, (write, _) in FORMS.items()}
    assert main(["predict", str(run_folder), str(images), "--output", str(output)]) == 0
    assert f"{len(FORMS)} of {len(FORMS)} images" in capsys.readouterr().out
    stems = [Path(name).stem for name in FORMS]
    for name, (_, tolerance) in FORMS.items():
        target = f"{name}.png" if stems.count(Path(name).stem) > 1 else f"{Path(name).stem}.png"
        overlay, colors = (
            np.array(Image.open(output / kind / target)).astype(int)
            for kind in ("overlays", "colors")
        )
        assert np.abs(2 * overlay - colors - shown[name]).max() <= tolerance + 1


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
    if name not in ("folder.jpg", "link.jpg"):  # on the command line, these are found at once
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


def test_no_file_stays_open(tmp_path: Path, rng: np.random.Generator) -> None:
    """With a limit of a few open files, hundreds are read; refused ones are closed, too."""
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
                errors.append(error)  # with its traceback and everything it refers to
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
