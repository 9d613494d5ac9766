"""Folders with list files are read, and every fault is named with its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import SIZE, draw_image, folder_overrides, folder_tree
from PIL import Image

from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.checks.check import check
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.pseudo_label_files import PseudoLabelled, mask_path, write_pseudo_labels
from cac_ext.train.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four labelled images and three without masks, each of another size."""
    rng = np.random.default_rng(0)
    for number in range(7):
        size = (40 + number, 60)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{number}.png")
        if number < 4:
            mask = rng.integers(0, 3, size).astype(np.uint8)
            mask[0, 0] = 255
            Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
    (tmp_path / "train.txt").write_text("# image mask\n0.png mask0.png\n1.png\tmask1.png\n\n")
    (tmp_path / "val.txt").write_text("2.png mask2.png\n3.png mask3.png\n")
    (tmp_path / "unlabelled.txt").write_text("4.png\n5.png nowhere.png\n6.png\n")
    return tmp_path


def build(folder: Path, *overrides: str):
    return build_datasets(
        load(
            "folder",
            [
                f"data.root={folder}",
                "data.labelled_list=train.txt",
                "data.unlabelled_list=unlabelled.txt",
                "data.validation_list=val.txt",
                "data.num_classes=3",
                *overrides,
            ],
        ).data
    )


def test_lists_are_read_and_unlabelled_images_need_no_mask(folder: Path) -> None:
    splits = build(folder, "data.class_names=[sky,road,car]")
    assert (len(splits.labelled), len(splits.unlabelled), len(splits.validation)) == (2, 3, 2)
    assert list(splits.class_names) == ["sky", "road", "car"]
    sample = splits.labelled[1]
    assert sample["image"].shape == (3, 41, 60)
    assert sample["mask"].shape == (41, 60)
    assert sample["mask"][0, 0] == 255
    assert sample["name"] == "1.png"
    assert [set(splits.unlabelled[i]) for i in range(3)] == [{"image", "name"}] * 3


def test_palette_masks_are_ids(folder: Path) -> None:
    ids = torch.randint(0, 3, (40, 60), dtype=torch.uint8)
    picture = Image.fromarray(ids.numpy(), mode="P")
    picture.putpalette([7, 7, 7, 100, 0, 0, 0, 100, 0])
    picture.save(folder / "mask0.png")
    assert torch.equal(build(folder).labelled[0]["mask"].long(), ids.long())


def test_missing_settings_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.root, .*data\.num_classes"):
        build_datasets(load("folder").data)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: (f / "1.png").unlink(), ["1.png", "train.txt", "data.root"]),
        (lambda f: (f / "train.txt").unlink(), ["train.txt"]),
        (lambda f: (f / "train.txt").write_text("# nothing\n"), ["train.txt", "empty"]),
        (lambda f: (f / "train.txt").write_text("0.png\n"), ["train.txt", "line 1", "image mask"]),
        (lambda f: (f / "1.png").write_bytes(b"no picture"), ["cannot read", "1.png"]),
        (
            lambda f: Image.new("L", (60, 39)).save(f / "mask1.png"),
            ["mask1.png", "60 x 39", "60 x 41"],
        ),
        (
            lambda f: Image.new("L", (60, 41), 7).save(f / "mask1.png"),
            ["mask1.png", "ids 7", "num_classes is 3"],
        ),
        (
            lambda f: Image.new("RGB", (60, 41), (128, 0, 0)).save(f / "mask1.png"),
            ["mask1.png", "RGB", "(128, 0, 0)", "replace each color"],
        ),
    ],
)
def test_a_fault_is_named_with_its_file(break_it, words: list[str], folder: Path) -> None:
    break_it(folder)
    with pytest.raises(DataError) as error:
        build(folder).labelled[1]
    for word in words:
        assert word in str(error.value)


def test_a_path_that_leads_out_of_the_root_has_one_name_and_its_own_pseudo_label(
    tmp_path: Path, seed: int
) -> None:
    """Files of the same name in two roots, listed from each: labels must not be mixed up."""
    rng = np.random.default_rng(seed)
    run, names = tmp_path / "run", []
    for place in ("one", "two"):
        root = tmp_path / place / "lists"
        folder_tree(root, rng, 1, 1)
        draw_image(tmp_path / place / "img/a.jpg", rng)
        (root / "unlabelled.txt").write_text("../img/a.jpg\nimages/../images/train0.png\n")
        overrides = [*folder_overrides(root), "data.unlabelled_list=unlabelled.txt"]
        # The root itself may be given by such a path, too.
        overrides[0] = f"data.root={tmp_path / place}/img/../lists"
        splits = build_datasets(load("folder", overrides).data)
        outside, inside = (splits.unlabelled[index]["name"] for index in range(2))
        assert outside == (tmp_path / place / "img/a.jpg").as_posix()
        assert inside == "images/train0.png"
        names.append(outside)
        for kind in ("teacher", "activation"):
            folder = run / f"{kind}-{place}"
            label = len(list(run.glob("*")))
            shape = splits.unlabelled[0]["image"].shape[1:]
            fill = torch.full(shape, label % 3)
            write_pseudo_labels(splits, lambda i, s, m=fill: m, folder, "", progress=False)
            assert mask_path(folder, outside).resolve().is_relative_to(folder.resolve())
            labelled = PseudoLabelled(splits.unlabelled, folder, 3, 255)
            assert all((labelled[i]["mask"] == label % 3).all() for i in range(2))
    assert names[0] != names[1]
    assert not list(tmp_path.glob("*/img/*.png"))


def test_an_image_under_two_paths_is_one_image(tmp_path: Path, seed: int) -> None:
    folder_tree(tmp_path, np.random.default_rng(seed), 2, 1)
    with (tmp_path / "train.txt").open("a") as file:
        file.write("masks/../images/train1.png masks/train1.png\n")
        file.write("images/../images/val0.png masks/val0.png\n")
    with pytest.warns(UserWarning, match="the validation image images/val0.png is trained on"):
        splits = build_datasets(load("folder", folder_overrides(tmp_path)).data)
    problems = "\n".join(check(splits, progress=False).problems)
    assert "images/train1.png is listed twice" in problems
    assert "the validation image images/val0.png is trained on" in problems


def test_a_root_behind_a_link_is_resolved_like_the_file_system(tmp_path: Path, seed: int) -> None:
    """`..` behind a link leads to the parent of the link's target."""
    rng = np.random.default_rng(seed)
    folder_tree(tmp_path / "disk/data", rng, 1, 1)
    draw_image(tmp_path / "disk/img/a.jpg", rng)
    draw_image(tmp_path / "img/a.jpg", rng)
    (tmp_path / "data").symlink_to(tmp_path / "disk/data")
    (tmp_path / "disk/data/unlabelled.txt").write_text("../img/a.jpg\n")
    overrides = [*folder_overrides(tmp_path / "data"), "data.unlabelled_list=unlabelled.txt"]
    images = build_datasets(load("folder", overrides).data).unlabelled
    assert images[0]["name"] == (tmp_path / "disk/img/a.jpg").resolve().as_posix()


def test_a_name_that_leads_out_of_the_folder_gets_no_pseudo_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'\.\./a'.*\.\."):
        mask_path(tmp_path, "../a")


def test_a_mask_is_read_without_decoding_its_image(tmp_path: Path, seed: int) -> None:
    """Image-level labels read the masks of thousands of images, and need only the images' size."""
    folder_tree(tmp_path, np.random.default_rng(seed), 2, 1)
    overrides = [*folder_overrides(tmp_path), "data.labelled_ratio=1/2"]
    images = build_datasets(load("folder", overrides).data).unlabelled
    path = images.entries[0].image
    whole = images.known_mask(0)
    path.write_bytes(path.read_bytes()[:200])  # the header is there, the pixels are not
    assert torch.equal(images.known_mask(0), whole)
    draw_image(path, np.random.default_rng(seed), (24, 31))
    with pytest.raises(DataError, match=r"is 32 x 24 pixels.* is 31 x 24"):
        images.known_mask(0)


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
