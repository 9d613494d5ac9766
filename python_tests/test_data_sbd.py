"""SBD's download becomes the SegmentationClassAug used to train on VOC 2012."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from folder_run import scene
from image_trees import SIZE, draw_image, draw_mask, voc_tree
from PIL import Image
from scipy.io import savemat

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.datasets.voc import color_map

#: Images with VOC's mask alone, with both, with SBD's alone; the first is of validation.
VOC_ONLY, BOTH, SBD_ONLY = (
    ["2007_000001", "2007_000002"],
    ["2008_000003"],
    ["2009_000004", "2010_000005", "2011_000006"],
)


def write_mat(path: Path, ids: np.ndarray, name: str = "GTcls") -> None:
    """A file as SBD's: a struct of boundaries, ids and the categories that occur."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    for k in range(20):
        boundaries[k, 0] = (ids == k + 1).astype(np.uint8)
    present = np.unique(ids[ids > 0]).reshape(-1, 1)
    content = {"Boundaries": boundaries, "Segmentation": ids, "CategoriesPresent": present}
    savemat(path, {name: content}, do_compression=True)


@pytest.fixture
def trees(tmp_path: Path, seed: int) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """SBD, VOC 2012, and the masks that must come out by name."""
    rng = np.random.default_rng(seed)
    sbd, voc = tmp_path / "benchmark_RELEASE", tmp_path / "VOCdevkit/VOC2012"
    masks = {}
    for name in [*VOC_ONLY, *BOTH, *SBD_ONLY]:
        draw_image(voc / f"JPEGImages/{name}.jpg", rng)
        if name not in VOC_ONLY:
            masks[name] = rng.integers(0, 21, SIZE, np.uint8)
            write_mat(sbd / f"dataset/cls/{name}.mat", masks[name])
            write_mat(sbd / f"dataset/inst/{name}.mat", masks[name], "GTinst")
        if name not in SBD_ONLY:
            palette = [part for color in color_map(256) for part in color]
            path = voc / f"SegmentationClass/{name}.png"
            masks[name] = draw_mask(path, rng, [*range(21), 255], palette=palette)
    lists = voc / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text(f"{VOC_ONLY[0]}\n")
    (lists / "train.txt").write_text(f"{VOC_ONLY[1]}\n{BOTH[0]}\n")
    return sbd, voc, masks


def written(voc: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in (voc / "SegmentationClassAug").iterdir():
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert picture.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
            found[path.stem] = np.array(picture)
    return found


@pytest.mark.parametrize("sbd_place", [".", "..", "dataset", "dataset/cls"])
@pytest.mark.parametrize("voc_place", [".", "..", "../.."])
def test_all_masks_are_merged_and_vocs_own_win(
    sbd_place: str, voc_place: str, trees, capsys: pytest.CaptureFixture
) -> None:
    sbd, voc, masks = trees
    assert main(["data", "sbd", str(sbd / sbd_place), str(voc / voc_place)]) == 0
    printed = capsys.readouterr().out
    assert "SegmentationClassAug: 6 masks, 3 of VOC's own and 3 of SBD" in printed
    found = written(voc)
    assert found.keys() == masks.keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(found[name], mask)
    splits = build_datasets(load("voc", [f"data.root={voc}"]).data)
    assert [entry.mask.stem for entry in splits.labelled.entries] == sorted(
        [VOC_ONLY[1], *BOTH, *SBD_ONLY]
    )


def test_a_broken_file_is_named_and_the_same_command_resumes(
    trees, capsys: pytest.CaptureFixture
) -> None:
    sbd, voc, masks = trees
    broken = sbd / f"dataset/cls/{SBD_ONLY[1]}.mat"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    command = ["data", "sbd", str(sbd), str(voc)]
    assert main(command) == 2
    assert f"cannot read GTcls.Segmentation of {broken}" in capsys.readouterr().err
    # No training takes the finished part for the whole.
    assert not (voc / "SegmentationClassAug").exists()

    broken.write_bytes(whole)
    assert main(command) == 0
    assert "6 masks" in (message := capsys.readouterr().out)
    assert "4 of them already there" in message
    assert written(voc).keys() == masks.keys()

    # Existing masks are kept, missing ones are made.
    kept, gone = (voc / f"SegmentationClassAug/{name}.png" for name in SBD_ONLY[:2])
    Image.fromarray(np.zeros(SIZE, np.uint8)).convert("P").save(kept)
    before = kept.read_bytes()
    gone.unlink()
    assert main(command) == 0
    assert kept.read_bytes() == before
    assert gone.is_file()
    assert sorted(path.name for path in voc.iterdir()) == [
        "ImageSets",
        "JPEGImages",
        "SegmentationClass",
        "SegmentationClassAug",
    ]


def test_what_does_not_fit_is_named(trees, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sbd, voc, _ = trees

    def error(*folders: Path) -> str:
        assert main(["data", "sbd", *map(str, folders)]) == 2
        return capsys.readouterr().err

    archive = tmp_path / "benchmark.tgz"
    archive.write_bytes(b"")
    assert "is a file: unpack it" in error(archive, voc)
    assert "holds no benchmark_RELEASE/dataset/cls/*.mat" in error(voc, voc)
    assert "is not VOC 2012: it holds no folder JPEGImages/" in error(sbd, sbd)
    assert "cannot read GTcls.Segmentation" in error(sbd / "dataset/inst", voc)

    path = sbd / f"dataset/cls/{SBD_ONLY[0]}.mat"
    write_mat(path, np.full(SIZE, 21, np.uint8))
    assert "ids 0 to 20, but is [24, 32] uint8 with ids up to 21" in error(sbd, voc)
    write_mat(path, np.zeros((24, 31), np.uint8))
    assert "is 31 x 24 pixels, but its image" in error(sbd, voc)
    (voc / f"JPEGImages/{SBD_ONLY[0]}.jpg").unlink()
    assert "is VOC 2012 complete?" in error(sbd, voc)


def test_sbd_is_merged_with_voc_masks_that_can_be_read(
    tmp_path: Path, rng: np.random.Generator, capsys
) -> None:
    """VOC's own masks are checked before they are taken, against the size of upright images."""
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

    # Files of macOS in the folder do not matter, for training, too.
    (aug / "._2008_000001.png").write_bytes(b"of macOS")
    (aug / "2008_000001.png").unlink()
    assert merge()[0] == 0
    splits = build_datasets(load("voc", [f"data.root={voc}"]).data)
    assert len(splits.labelled) == 3
