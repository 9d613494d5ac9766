"""Folders in practice: hidden files, names that collide, links, list files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from image_trees import (
    cityscapes_tree,
    draw_image,
    draw_mask,
    folder_overrides,
    folder_tree,
    voc_tree,
)
from PIL import Image

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.files.find_images import find_images
from cac_ext.train.data.files.list_file import Entry, format_list, read_list
from cac_ext.train.data.files.pictures import image_suffixes
from cac_ext.train.errors import DataError


def draw(folder: Path, rng: np.random.Generator, *names: str) -> None:
    for name in names:
        draw_image(folder / name, rng)


def predicted(run_folder: Path, images: Path, output: Path, *options: str) -> tuple[int, set[str]]:
    """The exit code, and the files below ids/."""
    code = main(["predict", str(run_folder), str(images), "--output", str(output), *options])
    ids = output / "ids"
    return code, {path.relative_to(ids).as_posix() for path in ids.rglob("*") if path.is_file()}


def test_hidden_files_are_no_images_and_files_left_out_are_reported(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    images = tmp_path / "images"
    draw(images, rng, "a.jpg", "below/b.JPG", "below/.trash/c.png", "__MACOSX/d.png", ".e.png")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "below/._b.JPG", "notes.txt", "no_suffix"):
        (images / name).write_bytes(b"no picture")
    assert predicted(run_folder, images, tmp_path / "out") == (0, {"a.png", "below/b.png"})
    captured = capsys.readouterr()
    assert "2 of 2 images" in captured.out
    assert "left out are 3 files that are no images by their suffix" in captured.err
    for word in (".db: 1", ".txt: 1", "none: 1"):
        assert word in captured.err


def test_names_that_collide_keep_their_suffix(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    images = tmp_path / "images"
    draw(images, rng, "a.jpg", "a.png", "b.png", "c/a.bmp", "d.jpg", "d.png", "d.jpg.png")
    assert predicted(run_folder, images, tmp_path / "out") == (
        0,
        {
            *("a.jpg.png", "a.png.png", "b.png", "c/a.png"),
            *("d.jpg.png.png", "d.jpg.png", "d.png.png"),
        },
    )
    # Each is the prediction of its own image, as the sizes show.
    draw_image(images / "a.jpg", rng, (40, 30))
    assert predicted(run_folder, images, tmp_path / "again")[0] == 0
    assert Image.open(tmp_path / "again/ids/a.jpg.png").size == (30, 40)
    assert Image.open(tmp_path / "again/ids/a.png.png").size == (32, 24)

    # The same name below two inputs is an error.
    draw(tmp_path / "other", rng, "b.png")
    arguments = ["predict", str(run_folder), str(images), str(tmp_path / "other")]
    assert main([*arguments, "--output", str(tmp_path / "third")]) == 2
    assert "would both be written to b.png" in capsys.readouterr().err


def test_links_are_followed_once_and_broken_links_are_named(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    images = tmp_path / "images"
    draw(images, rng, "a.png")
    draw(tmp_path / "elsewhere", rng, "b.png", "c.png")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "circle").symlink_to(images)
    (images / "d.png").symlink_to(tmp_path / "elsewhere/c.png")
    (images / "gone.png").symlink_to(tmp_path / "nowhere.png")
    code, files = predicted(run_folder, images, tmp_path / "out")
    assert files == {"a.png", "linked/b.png", "linked/c.png", "d.png"}
    assert code == 1
    assert "gone.png is a link to nothing" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_unreadable_folder_is_named(rng: np.random.Generator) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        draw(root, rng, "a.png", "locked/b.png")
        (root / "locked").chmod(0)
        os.seteuid(65534)
        try:
            found = find_images(root)
        finally:
            os.seteuid(0)
    assert found.images == [Path("a.png")]
    assert found.unreadable == [f"cannot look into the folder {root / 'locked'}: Permission denied"]


def test_earlier_predictions_are_no_images(
    run_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    images = tmp_path / "images"
    draw(images, rng, "a.png")
    for _ in range(2):
        code, files = predicted(run_folder, images, images / "out", "--overwrite")
        assert (code, files) == (0, {"a.png"})


def test_suffixes_are_those_of_pictures() -> None:
    read = {".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2"}
    assert read | {".pgm", ".ppm", ".pbm", ".tga", ".avif"} <= image_suffixes()
    assert not image_suffixes() & {".pdf", ".h5", ".eps", ".ps", ".mpg", ".txt", ".json", "", ".db"}


def test_a_folder_without_images_is_described(run_folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.heic").write_bytes(b"")
    assert main(["predict", str(run_folder), str(tmp_path / "in"), "--output", "x"]) == 2
    assert "holds no images" in (message := capsys.readouterr().err)
    assert ".heic: 1" in message


def test_data_sets_do_not_list_hidden_files(tmp_path: Path, rng: np.random.Generator) -> None:
    voc_tree(tmp_path / "voc", rng, 2, 1)
    (tmp_path / "voc/SegmentationClassAug/._2007_000000.png").write_bytes(b"of macOS")
    cityscapes_tree(tmp_path / "city", rng, "labelTrainIds", [0, 1])
    folder = tmp_path / "city/leftImg8bit/train/ulm"
    (folder / "._ulm_000000_000019_leftImg8bit.png").write_bytes(b"of macOS")
    for part in ("train", "val"):
        draw(tmp_path / "cam", rng, f"{part}/a.png")
        draw_mask(tmp_path / f"cam/{part}annot/a.png", rng, 11)
        (tmp_path / f"cam/{part}/._a.png").write_bytes(b"of macOS")
    for name, root, count in (("voc", "voc", 2), ("cityscapes", "city", 4), ("camvid", "cam", 1)):
        assert len(build_datasets(load(name, [f"data.root={tmp_path / root}"]).data).labelled) == (
            count
        )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("images/train0.png,masks/train0.png", "not by a comma"),
        ("images/train0.png, masks/train0.png", "not by a comma"),
        ("images/train0.png;masks/train0.png", "not by a comma"),
        (r"images\train0.png masks\train0.png", "not by \\"),
        ("'images/train0.png' 'masks/train0.png'", "without quotes"),
        ('"images/train0.png"\t"masks/train0.png"', "without quotes"),
        ('{"image": "images/train0.png"}', "without quotes and brackets"),
        ("image mask", "a header line must begin with #"),
        ("filename,label", "a header line must begin with #"),
        ("my images/a.png my masks/a.png", "needs a tab between the columns"),
        ("my images/a.png", "needs a tab between the columns, or behind it"),
    ],
)
def test_a_line_that_names_no_file_gets_a_hint(
    line: str, hint: str, tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    good = (tmp_path / "train.txt").read_text()
    (tmp_path / "train.txt").write_text(f"{line}\n{good}")
    with pytest.raises(DataError) as error:
        build_datasets(load("folder", folder_overrides(tmp_path)).data)
    assert "train.txt, line 1" in str(error.value)
    assert hint in str(error.value)
    assert main(["data", "check", "folder", *folder_overrides(tmp_path)]) == 1
    assert hint in capsys.readouterr().out


def test_an_ordinary_line_gets_no_hint(tmp_path: Path, rng: np.random.Generator) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    (tmp_path / "images/train0.png").unlink()
    with pytest.raises(DataError, match=r"line 1: there is no image \S+train0.png\npaths are rel"):
        build_datasets(load("folder", folder_overrides(tmp_path)).data)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with mark"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_lists_are_read_in_all_encodings_of_editors(
    encoding: str, line_end: str, tmp_path: Path
) -> None:
    text = "# a list" + line_end + "bild ä.png\tmaske 猫.png" + line_end + line_end + "b\tc"
    content = text.encode(encoding.split(" ")[0])
    content = b"\xff\xfe" + content if encoding.endswith("mark") else content
    (tmp_path / "list.txt").write_bytes(content)
    entries = read_list(tmp_path / "list.txt", tmp_path, with_masks=True)
    assert [(entry.image.name, entry.mask.name) for entry in entries] == [
        ("bild ä.png", "maske 猫.png"),
        ("b", "c"),
    ]
    assert [entry.source.rpartition(", ")[2] for entry in entries] == ["line 2", "line 4"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.png b.png\n".encode("utf-16-le"), ["UTF-16 without a byte order mark"]),
        ("a.png b.png\nä.png b.png".encode("latin-1"), ["no text in UTF-8", "line 2"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0", ["no text in UTF-8"]),
        (b"\ta.png\n", ["line 1", "2 columns"]),
        (b"a.png b.png c.png\n", ["3 columns", "a tab between the columns"]),
        (b"a.png\n", ["1 column:"]),
        (None, ["list.txt is a folder"]),
    ],
)
def test_a_file_that_is_no_list_is_refused(
    content: bytes | None, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "list.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_list(path, tmp_path, with_masks=True)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_image_level_labels_are_read_like_lists(
    tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    overrides = [
        *folder_overrides(tmp_path),
        "data.unlabelled_list=train.txt",
        "data.background_class=0",
        "weak.image_labels=labels.txt",
    ]
    labels = tmp_path / "labels.txt"
    lines = "images/train0.png 1\r\nimages/train1.png 1 2\r\n"
    labels.write_text(lines, encoding="utf-16")
    assert main(["data", "check", "folder", *overrides]) == 0
    capsys.readouterr()
    for content, word in (
        ("ä".encode("latin-1"), "no text in UTF-8"),
        (b"images/train0.png 1\n", "no line for the unlabelled image images/train1.png"),
        (b"images/train0.png,1\n", "not by a comma"),
        (b"images/train0.png, 1\n", "not by a comma"),
        (b"image class\n", "a header line must begin with #"),
    ):
        labels.write_bytes(content)
        assert main(["data", "check", "folder", *overrides]) == 1
        assert str(labels) in (message := capsys.readouterr().out)
        assert word in message


def test_a_written_list_reads_back_to_the_same_files(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "ü.png",
        "no\u00a0break.png",
        "line\u2028sep.png",
        "form\x0cfeed.png",
        "x,y.png",
    ]
    for masks in (True, False):
        entries = [
            Entry(name, tmp_path / name, tmp_path / f"m {name}" if masks else None, "")
            for name in names
        ]
        (tmp_path / "list.txt").write_text(format_list(entries, tmp_path), encoding="utf-8")
        read = read_list(tmp_path / "list.txt", tmp_path, with_masks=masks)
        assert [(entry.image, entry.mask) for entry in read] == [
            (entry.image, entry.mask) for entry in entries
        ]
    for name in ("a\nb.png", "a\tb.png", "#a.png", " a.png", "a.png ", "\udcff.png"):
        with pytest.raises(DataError, match="no list can name the file"):
            format_list([Entry(name, tmp_path / name, None, "")], tmp_path)
