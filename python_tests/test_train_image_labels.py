"""Image-level labels: read from masks or a list, for any background class; enough to train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import cityscapes_tree, folder_overrides, folder_tree, voc_tree
from PIL import Image
from tiny_run import TINY_WEAK

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.pseudo_labels.image_labels import foreground_classes, read_image_labels
from cac_ext.train.runs.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_image_labels_are_the_classes_of_the_masks_without_background(
    seed: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cac_ext.train.runtime.progress.on_terminal", lambda *_: True)
    config = load("synthetic", [*TINY_WEAK, f"seed={seed}"])
    splits = build_datasets(config.data)
    labels = read_image_labels(config.weak, config.data, splits)
    assert labels.shape == (6, splits.num_classes - 1)
    assert "image labels" in capsys.readouterr().err  # minutes on VOC: a bar
    again = read_image_labels(config.weak, config.data, splits, progress=False)
    assert torch.equal(again, labels)
    assert not capsys.readouterr().err
    for index in range(6):
        shown = set(splits.unlabelled.known_mask(index).flatten().tolist()) - {0}
        assert set((labels[index].nonzero().flatten() + 1).tolist()) == shown
    assert "mask" not in splits.unlabelled[0]


def test_image_labels_come_from_a_list(tmp_path: Path, seed: int) -> None:
    folder_tree(tmp_path, np.random.default_rng(seed), 4, 1)
    # Of unlabelled images the list names no masks: image-level labels are all there is.
    (tmp_path / "weak.txt").write_text("images/train2.png\nimages/train3.png\n")
    overrides = [*folder_overrides(tmp_path), "data.unlabelled_list=weak.txt"]
    overrides += ["data.background_class=0"]
    config = load("folder", overrides)
    splits = build_datasets(config.data)
    with pytest.raises(ConfigError, match=r"weak\.image_labels is not given"):
        read_image_labels(config.weak, config.data, splits)

    labels = tmp_path / "labels.txt"
    labels.write_text("# image, classes\nimages/train3.png 2 1\n/images/train2.png\n")
    config = load("folder", [*overrides, "weak.image_labels=labels.txt"])
    found = read_image_labels(config.weak, config.data, splits)
    assert found.tolist() == [[0, 0], [1, 1]]

    labels.write_text("images/train3.png 2 3\nimages/train2.png\n")
    with pytest.raises(DataError, match=r"labels\.txt, line 1: needs an image and ids of 0 to 2"):
        read_image_labels(config.weak, config.data, splits)
    labels.write_text("images/train3.png 2\n")
    with pytest.raises(DataError, match=r"no line for the unlabelled image images/train2\.png"):
        read_image_labels(config.weak, config.data, splits)

    # Lists in a folder of their own: an image is the same under each of its paths.
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "weak.txt").write_text("../images/train2.png\n../images/train3.png\n")
    (lists / "labels.txt").write_text("../images/train2.png 2\nimg/../../images/train3.png 1\n")
    for part in ("train", "val"):
        text = (tmp_path / f"{part}.txt").read_text()
        (lists / f"{part}.txt").write_text(text.replace("images", "../images"))
    (lists / "masks").symlink_to(tmp_path / "masks")
    overrides = [*folder_overrides(lists), *overrides[-2:], "weak.image_labels=labels.txt"]
    config = load("folder", overrides)
    found = read_image_labels(config.weak, config.data, build_datasets(config.data))
    assert found.tolist() == [[0, 1], [1, 0]]


def test_image_labels_alone_are_enough_to_train(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    """Of the unlabelled images no mask exists: only a list says what they show."""
    rng = np.random.default_rng(seed)
    folder_tree(tmp_path, rng, 6, 1)
    labelled, unlabelled = [0, 1], [2, 3, 4, 5]
    shown = {k: sorted(rng.permutation(range(1, 3))[: rng.integers(0, 3)]) for k in unlabelled}
    for k in unlabelled:
        (tmp_path / f"masks/train{k}.png").unlink()
    (tmp_path / "train.txt").write_text(
        "".join(f"images/train{k}.png masks/train{k}.png\n" for k in labelled)
    )
    (tmp_path / "weak.txt").write_text("".join(f"images/train{k}.png\n" for k in unlabelled))
    (tmp_path / "labels.txt").write_text(
        "".join(f"images/train{k}.png {' '.join(map(str, shown[k]))}\n" for k in unlabelled)
    )
    data = [*folder_overrides(tmp_path), "data.unlabelled_list=weak.txt"]
    data += ["weak.image_labels=labels.txt", "weak.pseudo_labels=auto"]
    tiny = [word for word in TINY_WEAK if "synthetic" not in word]
    run = tmp_path / "run"
    command = ["train", "folder", *data, *tiny, f"seed={seed % 10**6}", "--folder", str(run)]

    # Without a background nothing is begun; the class of that name is one.
    assert main(command) == 2
    assert "data.background_class=ID" in capsys.readouterr().err
    assert main(["data", "check", "folder", *data]) == 1
    assert "data.background_class=ID" in capsys.readouterr().out
    assert not run.exists()
    named = "data.class_names=[background,cat,dog]"
    assert main(["data", "check", "folder", *data, named]) == 0
    capsys.readouterr()

    assert main([*command, named]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "activation_labels: 4 images" in line]
    assert line.endswith("% of the pixels labelled")  # without masks, no accuracy
    for k in unlabelled:
        mask = np.array(Image.open(run / f"activation_labels/images/train{k}.png.png"))
        assert set(np.unique(mask)) <= {0, 255, *shown[k]}
    steps = [x for x in read_metrics(run / "metrics.jsonl") if x["split"] == "train"]
    assert steps[-1]["loss_weak"] > 0

    # A list that lacks an image is found before anything is trained.
    (tmp_path / "labels.txt").write_text("images/train2.png 1\n")
    command[-1] += "2"
    assert main([*command, named]) == 2
    assert "no line for the unlabelled image images/train3.png" in capsys.readouterr().err
    assert not (tmp_path / "run2").exists()


def test_a_data_set_says_which_class_is_its_background(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    rng = np.random.default_rng(seed)
    cityscapes_tree(tmp_path / "cityscapes", rng, "labelTrainIds", list(range(19)))
    overrides = [f"data.root={tmp_path / 'cityscapes'}", "data.labelled_ratio=1/2"]
    overrides += ["network.name=small", "network.weights=null"]
    config = load("cityscapes", overrides)
    splits = build_datasets(config.data)
    assert splits.background_class is None
    with pytest.raises(ConfigError, match="'cityscapes' has no background class"):
        read_image_labels(config.weak, config.data, splits)
    both = ["weak.pseudo_labels=auto", "self_training.pseudo_labels=auto"]
    run = tmp_path / "run"
    assert main(["train", "cityscapes", *overrides, *both, "--folder", str(run)]) == 2
    assert "'cityscapes' has no background class" in capsys.readouterr().err
    assert not run.exists()  # not even the teacher was trained
    classifier = tmp_path / "classifier"
    command = ["weak", "train-classifier", "cityscapes", *overrides, "--folder", str(classifier)]
    assert main(command) == 2
    assert not classifier.exists()
    with pytest.raises(ConfigError, match=r"data\.background_class is 0"):
        build_datasets(load("cityscapes", [*overrides, "data.background_class=0"]).data)

    voc_tree(tmp_path / "voc", rng, 2, 1)
    assert build_datasets(load("voc", [f"data.root={tmp_path / 'voc'}"]).data).background_class == 0

    folder_tree(tmp_path / "folder", rng, 2, 1)
    folder = folder_overrides(tmp_path / "folder")
    for override, expected in (
        ("data.background_class=2", 2),
        ("data.class_names=[cat,background,dog]", 1),
        ("data.class_names=[cat,dog,cow]", None),
    ):
        config = load("folder", [*folder, override, "data.labelled_ratio=1/2"])
        splits = build_datasets(config.data)
        assert splits.background_class == expected
    with pytest.raises(ConfigError, match=r"data\.background_class is 3"):
        build_datasets(load("folder", [*folder, "data.background_class=3"]).data)


@pytest.mark.parametrize("background", [0, 1, 2])
def test_image_labels_of_any_background_name_the_other_classes(
    background: int, tmp_path: Path, seed: int
) -> None:
    folder_tree(tmp_path, np.random.default_rng(seed), 4, 1)
    overrides = [*folder_overrides(tmp_path), "data.labelled_ratio=1/2"]
    config = load("folder", [*overrides, f"data.background_class={background}"])
    splits = build_datasets(config.data)
    ids = foreground_classes(splits, config.data)
    assert ids == [k for k in range(3) if k != background]
    labels = read_image_labels(config.weak, config.data, splits)
    for index in range(2):
        shown = set(splits.unlabelled.known_mask(index).flatten().tolist()) - {background, 255}
        assert {ids[column] for column in labels[index].nonzero().flatten()} == shown
