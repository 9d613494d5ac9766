"""Masks in files: the ids that the file stores, by every reader and for any number of classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import one_image, scene, trained_on_a_folder
from image_trees import (
    SIZE,
    cityscapes_tree,
    draw_image,
    draw_mask,
    folder_overrides,
    folder_tree,
    voc_tree,
)
from picture_files import write_bmp, write_png, write_tiff
from PIL import Image
from test_data_sbd import write_mat
from torch import nn

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.checks.check import check
from cac_ext.train.data.classes import Classes
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.files.list_file import Entry
from cac_ext.train.data.files.pictures import picture_of_ids, read_ids
from cac_ext.train.data.pseudo_label_files import PseudoLabelled, mask_path, write_pseudo_labels
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.inference import SINGLE_SCALE
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.pseudo_labels.image_labels import read_image_labels
from cac_ext.train.runs.folder import Run
from cac_ext.train.runs.predictions import plan, predict_files

MaskWriter = Callable[[Path, np.ndarray], None]


class Pixels(nn.Module):
    """An encoder whose features are the image itself."""

    out_channels, stride = 3, 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with trained_on_a_folder(tmp_path_factory.mktemp("trained")) as folder:
        yield folder


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def png(bits: int, color_type: int = 0) -> MaskWriter:
    chunks = [(b"PLTE", bytes(range(200, 212)))] if color_type == 3 else []
    return lambda path, ids: write_png(path, ids, bits, color_type, before=chunks)


def tiff(bits: int, **options: object) -> MaskWriter:
    return lambda path, ids: write_tiff(path, ids, bits, **options)


def array(kind: type, **options: object) -> MaskWriter:
    return lambda path, ids: Image.fromarray(ids.astype(kind)).save(path, **options)


def converted(mode: str) -> MaskWriter:
    return lambda path, ids: Image.fromarray(ids).convert(mode).save(path)


def pgm(maximum: int, magic: str = "P5") -> MaskWriter:
    def write(path: Path, ids: np.ndarray) -> None:
        data = ids.astype(np.uint8 if maximum < 256 else ">u2").tobytes()
        if magic == "P2":
            data = " ".join(map(str, ids.flatten())).encode()
        path.write_bytes(f"{magic} {SIZE[1]} {SIZE[0]} {maximum}\n".encode() + data)

    return write


def palette_with_transparency(path: Path, ids: np.ndarray) -> None:
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.putdata(ids.flatten().tolist())
    picture.save(path, transparency=0)


GRAYS, RAMP = [(17 * k,) * 3 for k in range(16)], [(k,) * 3 for k in range(256)]
#: name of the file -> (its writer, number of ids that are drawn)
FORMS: dict[str, tuple[MaskWriter, int]] = {
    "1bit.png": (png(1), 2),
    "2bit.png": (png(2), 3),
    "4bit.png": (png(4), 3),
    "8bit.png": (png(8), 3),
    "16bit.png": (png(16), 3),
    "palette1.png": (png(1, 3), 2),
    "palette2.png": (png(2, 3), 3),
    "palette4.png": (png(4, 3), 3),
    "palette8.png": (png(8, 3), 3),
    "palette-transparent.png": (palette_with_transparency, 3),
    "la.png": (converted("LA"), 3),
    "rgb.png": (converted("RGB"), 3),
    "rgba.png": (converted("RGBA"), 3),
    "bool.tif": (array(bool), 2),
    "bool-fax.tif": (array(bool, compression="group4"), 2),
    "2bit.tif": (tiff(2), 3),
    "4bit.tif": (tiff(4), 3),
    "4bit-white-is-zero.tif": (tiff(4, white_is_zero=True), 3),
    "8bit.tif": (tiff(8), 3),
    "8bit-white-is-zero.tif": (tiff(8, white_is_zero=True), 3),
    "12bit.tif": (tiff(12), 3),
    "16bit.tif": (tiff(16), 3),
    "16bit-white-is-zero.tif": (tiff(16, white_is_zero=True), 3),
    "16bit-big-endian.tif": (tiff(16, order=">"), 3),
    "16bit-signed.tif": (tiff(16, sample_format=2), 3),
    "16bit-packed.tif": (array(np.uint16, compression="tiff_deflate"), 3),
    "32bit.tif": (tiff(32), 3),
    "int32.tif": (array(np.int32), 3),
    "float32.tif": (array(np.float32), 3),
    "la.tif": (converted("LA"), 3),
    "rgb.tif": (converted("RGB"), 3),
    "4bit.bmp": (lambda path, ids: write_bmp(path, ids, 4, GRAYS), 3),
    "8bit.bmp": (lambda path, ids: write_bmp(path, ids, 8, RAMP), 3),
    "2.pgm": (pgm(2), 3),
    "2-plain.pgm": (pgm(2, "P2"), 3),
    "20.pgm": (pgm(20), 3),
    "255.pgm": (pgm(255), 3),
    "1000.pgm": (pgm(1000), 3),
    "65535.pgm": (pgm(65535), 3),
    "bool.pbm": (array(bool), 2),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_mask_is_the_ids_that_the_file_stores(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Read for training, for image-level labels, as a pseudo label, by a check."""
    write, count = FORMS[name]
    ids = rng.integers(0, count, SIZE).astype(np.uint8)
    draw_image(tmp_path / "a.png", rng)
    write(tmp_path / name, ids)
    images = one_image(tmp_path / "a.png", tmp_path / name)
    np.testing.assert_array_equal(images[0]["mask"].numpy(), ids)
    np.testing.assert_array_equal(images.known_mask(0).numpy(), ids)

    splits = DatasetSplits(images, images, images, ["background", "car", "tree"])
    splits = DatasetSplits(**{**vars(splits), "background_class": 0})
    report = check(splits, progress=False)
    counts = np.bincount(ids.flatten(), minlength=3).tolist()
    assert report.parts["validation"].pixels.tolist() == counts
    config = load("folder")
    labels = read_image_labels(config.weak, config.data, splits, progress=False)
    assert labels.tolist() == [[float(k in ids) for k in (1, 2)]]

    pseudo_label = mask_path(tmp_path / "labels", "a.png")  # its ending is png, whatever it holds
    pseudo_label.parent.mkdir()
    pseudo_label.write_bytes((tmp_path / name).read_bytes())
    labelled = PseudoLabelled(images, tmp_path / "labels", 3, 255)
    np.testing.assert_array_equal(labelled[0]["mask"].numpy(), ids)


@pytest.mark.parametrize("name", ["4bit.png", "16bit.tif", "rgb.png", "20.pgm"])
def test_evaluation_counts_the_stored_ids(
    name: str, run_folder: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    ids = rng.integers(0, 3, SIZE).astype(np.uint8)
    FORMS[name][0](tmp_path / name, ids)
    (tmp_path / "val.txt").write_text(f"images/val0.png {name}\n")
    options = ["--output", str(tmp_path / "out")]
    assert main(["evaluate", str(run_folder), *folder_overrides(tmp_path), *options]) == 0
    confusion = np.array(json.loads((tmp_path / "out/evaluation.json").read_text())["confusion"])
    np.testing.assert_array_equal(confusion.sum(1), np.bincount(ids.flatten(), minlength=3))


def transparent(path: Path, ids: np.ndarray) -> None:
    picture = Image.fromarray(ids).convert("LA")
    picture.putalpha(200)
    picture.save(path)


REFUSED: dict[str, tuple[MaskWriter, list[str]]] = {
    "colors.png": (
        lambda path, ids: Image.fromarray(np.stack([ids * 64, ids, ids], 2)).save(path),
        ["mode RGB", "3 of them", "(64, 1, 1)", "replace each color by the id of its class"],
    ),
    "fractions.tif": (
        lambda path, ids: Image.fromarray(ids / np.float32(2)).save(path),
        ["floats (mode F), such as 0.5", "whole numbers"],
    ),
    "nan.tif": (
        lambda path, ids: Image.fromarray(np.where(ids == 1, np.nan, ids).astype(np.float32)).save(
            path
        ),
        ["such as nan"],
    ),
    "mask.jpg": (lambda path, ids: Image.fromarray(ids).save(path), ["format JPEG", "PNG"]),
    "mask.webp": (lambda path, ids: Image.fromarray(ids).save(path), ["format WEBP", "PNG"]),
    "mask.avif": (lambda path, ids: Image.fromarray(ids).save(path), ["format AVIF", "PNG"]),
    "mask.jp2": (lambda path, ids: Image.fromarray(ids).save(path), ["format JPEG2000", "PNG"]),
    "mask.gif": (lambda path, ids: Image.fromarray(ids * 2).save(path), ["GIF", "renumber"]),
    "transparent.png": (transparent, ["mode LA", "transparent pixels"]),
    "rgb16.png": (
        lambda path, ids: write_png(path, np.stack([ids] * 3, 2), 16, 2),
        ["16 bits", "upper 8 bits"],
    ),
    "cmyk.tif": (
        lambda path, ids: Image.fromarray(ids).convert("CMYK").save(path),
        ["mode CMYK", "replace each color"],
    ),
    "pages.tif": (
        lambda path, ids: write_tiff(path, ids, 8, subfile_types=(0, 0)),
        ["2 pages or frames"],
    ),
    "two-grays.bmp": (
        lambda path, ids: write_bmp(path, ids // 2, 8, [(0, 0, 0), (255, 255, 255)]),
        ["BMP of 8 bits"],
    ),
    "scaled.png": (lambda path, ids: Image.fromarray(ids * 100).save(path), ["ids 100, 200"]),
    "large.tif": (
        lambda path, ids: write_tiff(path, ids.astype(np.int64) * (2**31), 32, order="<"),
        [f"ids {2**31}"],
    ),
    "negative.tif": (
        lambda path, ids: write_tiff(path, -(ids.astype(int)), 8, sample_format=2),
        ["ids -2, -1"],
    ),
    "other-size.png": (
        lambda path, ids: Image.fromarray(ids[:-1]).save(path),
        ["is 32 x 23 pixels", "is 32 x 24"],
    ),
    "empty.png": (lambda path, ids: path.write_bytes(b""), ["the file is empty"]),
    "cut.png": (
        lambda path, ids: (png(8)(path, ids), path.write_bytes(path.read_bytes()[:-60])),
        ["cannot read the mask"],
    ),
    "folder.png": (lambda path, ids: path.mkdir(), ["is a folder"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_without_class_ids_is_refused_for_what_is_wrong_with_it(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    write, words = REFUSED[name]
    ids = rng.integers(0, 3, SIZE).astype(np.uint8)
    ids[0, :3] = 0, 1, 2
    ids = np.minimum(ids, 1) if name == "large.tif" else ids
    draw_image(tmp_path / "a.png", rng)
    write(tmp_path / name, ids)
    images = one_image(tmp_path / "a.png", tmp_path / name)
    for read in (images.__getitem__, images.known_mask):
        with pytest.raises(DataError) as error:
            read(0)
        assert str(tmp_path / name) in str(error.value)
        assert "list.txt, line 1" in str(error.value)
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize(
    ("num_classes", "ignore_index"),
    [(2, 255), (21, 255), (256, 65535), (300, 65535), (1000, 40000)],
)
def test_any_number_of_classes_is_read_labelled_and_predicted(
    num_classes: int, ignore_index: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    ids = rng.integers(0, num_classes, SIZE)
    ids[0, 0] = num_classes - 1
    ids[1] = ignore_index
    write_png(tmp_path / "mask.png", ids, 8 if ids.max() < 256 else 16)
    Image.fromarray(scene(rng)).save(tmp_path / "a.png")
    entry = Entry("a.png", tmp_path / "a.png", tmp_path / "mask.png", "list.txt, line 1")
    classes = {"num_classes": num_classes, "ignore_index": ignore_index}
    images = ImageFiles(tmp_path, [entry], with_masks=True, **classes)
    mask = images[0]["mask"].as_subclass(torch.Tensor).long()
    np.testing.assert_array_equal(mask.numpy(), ids)

    names = [f"class {k}" for k in range(num_classes)]
    splits = DatasetSplits(images, images, images, names, ignore_index)
    folder = tmp_path / "labels"
    report = write_pseudo_labels(splits, lambda index, sample: mask, folder, "", progress=False)
    assert report.accuracy == 1
    stored = Image.open(mask_path(folder, "a.png"))
    assert stored.mode == ("L" if num_classes <= 255 else "I;16")
    assert np.array(stored)[1, 0] == (255 if num_classes <= 255 else 65535)  # no label
    read = PseudoLabelled(images, folder, num_classes, ignore_index)[0]["mask"]
    np.testing.assert_array_equal(read.numpy(), ids)

    network = SegmentationNetwork(Pixels(), nn.Conv2d(3, num_classes, 1)).eval()
    run = Run(load("synthetic"), Classes(names, ignore_index, None), network, 0)
    jobs = plan([tmp_path / "a.png"], tmp_path / "out", overwrite=False).jobs
    nn.init.zeros_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    network.classifier.bias.data[num_classes - 1] = 1
    assert predict_files(run, jobs, SINGLE_SCALE, progress=False) == []
    predicted = Image.open(tmp_path / "out/ids/a.png")
    assert predicted.mode == ("L" if num_classes <= 256 else "I;16")
    assert (np.array(predicted) == num_classes - 1).all()


def test_ids_that_no_picture_holds_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="65,536 ids"):
        picture_of_ids(np.zeros((1, 1), int), 65537)
    draw_image(tmp_path / "a.png", rng)
    images = one_image(tmp_path / "a.png", num_classes=65536)
    splits = DatasetSplits(images, images, images, [str(k) for k in range(65536)])
    with pytest.raises(ConfigError, match="up to 65,535 classes"):
        write_pseudo_labels(splits, lambda i, s: None, tmp_path / "labels", "", progress=False)


def test_a_label_in_16_bits_is_not_taken_for_one_in_8(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """255 is a class of more than 255, and 65535 no label of fewer."""
    draw_image(tmp_path / "a.png", rng)
    images = one_image(tmp_path / "a.png")
    path = mask_path(tmp_path, "a.png")
    write_png(path, np.full(SIZE, 255), 8)
    assert (PseudoLabelled(images, tmp_path, 300, 65535)[0]["mask"] == 255).all()
    assert (PseudoLabelled(images, tmp_path, 3, 7)[0]["mask"] == 7).all()
    write_png(path, np.full(SIZE, 65535), 16)
    assert (PseudoLabelled(images, tmp_path, 300, 255)[0]["mask"] == 255).all()
    with pytest.raises(DataError, match="65535, but there are 3 classes, and 255 stands for no"):
        PseudoLabelled(images, tmp_path, 3, 255)[0]


def test_an_image_is_decoded_once_for_its_pseudo_label(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_tree(tmp_path, rng, 2, 1)
    overrides = [*folder_overrides(tmp_path), "data.unlabelled_list=train.txt"]
    splits = build_datasets(load("folder", overrides).data)
    read = []
    original = ImageFiles.__getitem__
    monkeypatch.setattr(
        ImageFiles, "__getitem__", lambda self, i: (read.append(i), original(self, i))[1]
    )
    label = torch.zeros(SIZE, dtype=torch.long)
    write_pseudo_labels(splits, lambda i, s: label, tmp_path / "out", "", progress=False)
    assert read == [0, 1]


def test_sbd_is_merged_with_voc_masks_that_can_be_read(
    tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    """VOC's own masks are looked at before they are taken; sizes are those of upright images."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "dataset/cls"
    ids = voc_tree(voc, rng, 2, 1)
    (voc / "SegmentationClassAug").rename(voc / "SegmentationClass")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(rng)).save(voc / "JPEGImages/2008_000001.jpg", exif=exif)
    write_mat(sbd / "2008_000001.mat", np.zeros(SIZE[::-1], np.uint8))  # upright
    (sbd / "._2008_000001.mat").write_bytes(b"of macOS")
    (voc / "SegmentationClass/._a.png").write_bytes(b"of macOS")

    def merge() -> tuple[int, str]:
        code = main(["data", "sbd", str(tmp_path), str(voc)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    own = voc / f"SegmentationClass/{ids[0]}.png"
    whole = own.read_bytes()
    for content, word in (
        (b"", "the file is empty"),
        (whole[:-50], "cannot read the mask"),
        (None, "replace each color"),
    ):
        if content is None:
            Image.fromarray(scene(rng)).save(own)
        else:
            own.write_bytes(content)
        code, text = merge()
        assert code == 2
        assert str(own) in text
        assert word in text
    own.write_bytes(whole)
    assert merge()[0] == 0
    aug = voc / "SegmentationClassAug"
    assert sorted(path.stem for path in aug.iterdir()) == [*ids, "2008_000001"]

    # A folder that macOS has been in is still that of the same masks, for training, too.
    (aug / "._2008_000001.png").write_bytes(b"of macOS")
    (aug / "2008_000001.png").unlink()
    assert merge()[0] == 0
    splits = build_datasets(load("voc", [f"data.root={voc}"]).data)
    assert len(splits.labelled) == 3


def test_cityscapes_ids_out_of_range_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    cityscapes_tree(tmp_path, rng, "labelIds", [7, 8, 11])
    mask = next((tmp_path / "gtFine/train").glob("*/*_labelIds.png"))
    write_png(mask, np.full(SIZE, 26001), 16)  # an instance's id
    splits = build_datasets(load("cityscapes", [f"data.root={tmp_path}"]).data, check=False)
    with pytest.raises(DataError, match=r"label id 26001, but Cityscapes has -1 to 33"):
        [splits.labelled[index] for index in range(len(splits.labelled))]


def test_a_mask_of_an_image_is_not_limited_in_pixels_beside_it(tmp_path: Path) -> None:
    """Its size must be the image's: what is larger is refused before it is decoded."""
    Image.new("1", (20000, 9000)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="20000 x 9000"):
        read_ids(tmp_path / "mask.png", SIZE, "a.png")


def test_masks_of_users_stay_as_they_were(tmp_path: Path, rng: np.random.Generator) -> None:
    """The commonest form, 8 bits, comes out in 8 bits: training on it is what it has been."""
    draw_image(tmp_path / "a.png", rng)
    ids = draw_mask(tmp_path / "mask.png", rng, [0, 1, 2, 255])
    mask = one_image(tmp_path / "a.png", tmp_path / "mask.png")[0]["mask"]
    assert mask.dtype == torch.uint8
    np.testing.assert_array_equal(mask.numpy(), ids)
