"""Before training, masks are read: is there something to learn, and to measure?"""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from folder_run import QUICK
from image_trees import SIZE, draw_image, folder_overrides, folder_tree
from PIL import Image

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.checks.mask_scan import scan_masks
from cac_ext.train.data.files.image_files import ImageFiles
from cac_ext.train.data.pseudo_label_files import pseudo_labelled
from cac_ext.train.errors import ConfigError, DataError
from cac_ext.train.evaluate import Evaluation, absence_note
from cac_ext.train.experiments.ablate import format_results
from cac_ext.train.experiments.compare import format_absences
from cac_ext.train.experiments.tables import find_table
from cac_ext.train.preflight import require_labels, small_images_remark
from cac_ext.train.runs.log import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = [*QUICK, "method.selected_num=null", "image_classifier.epochs=1"]


def write_masks(root: Path, part: str, masks: list[np.ndarray]) -> None:
    """Images of noise and these masks, and their list ``PART.txt``."""
    rng = np.random.default_rng(0)
    lines = []
    for number, mask in enumerate(masks):
        image, path = f"images/{part}{number}.png", f"masks/{part}{number}.png"
        draw_image(root / image, rng, mask.shape)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8)).save(root / path)
        lines.append(f"{image} {path}\n")
    (root / f"{part}.txt").write_text("".join(lines))


def halves(left: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask of two ids, side by side."""
    mask = np.full(size, left)
    mask[:, size[1] // 2 :] = right
    return mask


def overrides(root: Path, classes: int) -> list[str]:
    return [*folder_overrides(root)[:-1], f"data.num_classes={classes}"]


#: Masks of the labelled images, the number of classes, and words of the message.
WORTHLESS = [
    (halves(0, 255), 2, ["one class", "class 0", "50.0%", "data.ignore_index", "0 and 1"]),
    (halves(255, 255), 2, ["all are 255", "data.ignore_index", "0 to 1"]),
    (halves(1, 1), 3, ["one class", "class 1", "nothing to tell apart"]),
]


@pytest.fixture(params=WORTHLESS)
def worthless(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], list[str]]:
    """Settings that read worthless labels, and words of the message."""
    mask, classes, words = request.param
    write_masks(tmp_path, "train", [mask] * 4)
    write_masks(tmp_path, "val", [halves(0, 1)] * 2)
    return overrides(tmp_path, classes), words


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(
    "command",
    [
        ["train", "folder"],
        ["train", "folder", "self_training.pseudo_labels=auto"],
        ["compare", "folder"],
        ["ablate", "table3", "--config", "folder"],
    ],
    ids=lambda command: " ".join(command),
)
def test_labels_of_one_class_or_none_are_refused_before_the_first_step(
    command: list[str],
    worthless: tuple[list[str], list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    labels, words = worthless
    given = [*labels, *SETTINGS]
    given += ["data.unlabelled_list=train.txt"] * ("self_training" in str(command))
    assert main([*command, *given, "--folder", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in [*words, "cac-ext data check"]:
        assert word in message


def test_the_check_ends_with_an_error_code_for_such_labels(
    worthless: tuple[list[str], list[str]], capsys: pytest.CaptureFixture
) -> None:
    labels, words = worthless
    assert main(["data", "check", "folder", *labels]) == 1
    printed = capsys.readouterr().out
    (problem,) = [line for line in printed.splitlines() if line.startswith("problem: ")]
    for word in words:
        assert word in problem


def test_validation_masks_without_a_counted_pixel_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_masks(tmp_path, "train", [halves(0, 1)] * 4)
    write_masks(tmp_path, "val", [halves(255, 255)] * 2)
    given = overrides(tmp_path, 2)
    assert main(["train", "folder", *given, *SETTINGS, "--folder", str(tmp_path / "run")]) == 2
    assert "no pixel of the 2 validation masks counts" in capsys.readouterr().err
    assert main(["data", "check", "folder", *given]) == 1


def test_absent_classes_are_named_before_training_and_beside_every_miou(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Class "boat" is nowhere, "car" only in the validation images."""
    write_masks(tmp_path, "train", [halves(0, 1)] * 4)
    write_masks(tmp_path, "val", [halves(0, 1), halves(1, 2)])
    given = [*overrides(tmp_path, 4), "data.class_names=[sky,road,car,boat]", *SETTINGS]
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match="no pixel of the") as caught:
        assert main(["train", "folder", *given, "--folder", str(run)]) == 0
    said = [str(warning.message) for warning in caught]
    (labelled,) = {text for text in said if "of the labelled images" in text}
    for word in ("car (2), boat (3)", "cannot learn them", "the largest id in the masks is 1"):
        assert word in labelled
    (validation,) = {text for text in said if "of the validation images" in text}
    assert "boat (3)" in validation
    assert "car" not in validation

    printed = capsys.readouterr().out
    record = read_metrics(run / "metrics.jsonl")[-1]
    assert record["class_iou"]["car"] == 0  # it occurs, and counts
    predicted = record["class_iou"]["boat"] is not None
    absent = [] if predicted else ["boat"]
    assert record["absent_classes"] == absent
    assert ("mean of 3 of 4 classes, without boat" in printed) == (not predicted)
    assert main(["evaluate", str(run)]) == 0
    assert ("mean of 3 of 4 classes, without boat" in capsys.readouterr().out) == (not predicted)
    (path,) = run.rglob("evaluation.json")
    assert json.loads(path.read_text())["absent_classes"] == absent


def test_a_mean_that_leaves_classes_out_says_so() -> None:
    confusion = torch.zeros(4, 4, dtype=torch.int64)
    confusion[0, 0], confusion[1, 0], confusion[0, 2] = 6, 2, 4
    evaluation = Evaluation(confusion)
    assert evaluation.absent_classes == [3]  # class 2 is predicted: its IoU is 0, and counts
    of_classes = dict(zip("abcd", evaluation.class_iou, strict=True))
    note = "mean of 3 of 4 classes, without d: not in the images, not predicted"
    assert absence_note(of_classes) == note
    assert absence_note({"a": 0.5, "b": None}).startswith("mean of 1 of 2 classes, without b")
    assert absence_note({"a": 0.5, "b": 0.0}) == ""
    assert format_absences({("cac", 0): of_classes, ("cac", 1): {"a": 1.0}}) == (
        f"\ncac seed 0: {note}"
    )
    table = find_table("table3")
    record = {
        "table": "table3",
        "row": "cac",
        "seed": 5,
        "config": "folder",
        "iterations": 1,
        "miou": 0.5,
        "class_iou": {"a": 0.5, "b": None},
    }
    assert "cac seed 5: mean of 1 of 2 classes, without b" in format_results(
        table, {("cac", 5): record}
    )


def test_masks_are_read_until_all_classes_are_seen(tmp_path: Path, seed: int) -> None:
    """And no random state changes, and no image is decoded."""
    folder_tree(tmp_path, np.random.default_rng(seed), train=30, validation=1)
    splits = build_datasets(load("folder", overrides(tmp_path, 3)).data)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert scan_masks(splits.labelled, splits, "masks", progress=False).masks == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]

    splits = build_datasets(load("folder", overrides(tmp_path, 4)).data)
    scan = scan_masks(splits.labelled, splits, "masks", progress=False)
    masks = torch.stack([splits.labelled[i]["mask"] for i in range(30)])
    assert scan.masks == 30
    assert scan.pixels.tolist() == [int((masks == k).sum()) for k in range(4)]
    assert scan.ignored == int((masks == 255).sum())


def test_an_ignored_class_is_warned_of_and_never_missed(tmp_path: Path) -> None:
    """Masks in which 0 means "no label", as in many data sets, can be used unchanged."""
    write_masks(tmp_path, "train", [halves(0, 1), halves(1, 2)])
    write_masks(tmp_path, "val", [halves(1, 2)])
    config = load("folder", [*overrides(tmp_path, 3), "data.ignore_index=0"])
    with pytest.warns(UserWarning, match=r"ignore_index is 0, the id of .*'class 0'") as caught:
        require_labels(config, progress=False)
    assert len(caught) == 1


def few_show_the_class(root: Path) -> list[str]:
    """Sixteen images, of which two show class 2."""
    masks = [halves(0, 1)] * 16
    masks[5] = masks[9] = halves(1, 2)
    write_masks(root, "train", masks)
    write_masks(root, "val", [halves(0, 1), halves(1, 2)])
    return [*overrides(root, 3), "data.labelled_ratio=1/4"]


def shows_class_2(images: ImageFiles) -> bool:
    return any(int((images[i]["mask"] == 2).sum()) for i in range(len(images)))


def test_a_split_that_lacks_a_class_names_a_seed_that_has_all(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = few_show_the_class(tmp_path)
    lacking = having = 0
    for seed in range(6):
        config = load("folder", [*given, f"data.split_seed={seed}"])
        splits = build_datasets(config.data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            require_labels(config, splits, progress=False)
        if shows_class_2(splits.labelled):
            having += 1
            assert not caught
            continue
        lacking += 1
        (text,) = [str(warning.message) for warning in caught]
        assert "no pixel of the labelled images is of: class 2" in text
        other = int(text.partition("data.split_seed=")[2].partition(" ")[0])
        assert other > seed
        again = load("folder", [*given, f"data.split_seed={other}"])
        assert shows_class_2(build_datasets(again.data).labelled)
    assert lacking
    assert having

    lists = ["--ratios", "1/4", "--seeds", "0,1,2,3,4,5", "--output", str(tmp_path / "lists")]
    assert main(["data", "split", "folder", *given, *lists]) == 0
    written = capsys.readouterr().err
    assert written.count("has no pixel of: class 2. --seeds ") == lacking
    assert "data.split_seed=" in _checked(given, capsys)


def _checked(given: list[str], capsys: pytest.CaptureFixture) -> str:
    for seed in range(6):
        assert main(["data", "check", "folder", *given, f"data.split_seed={seed}"]) == 0
    return capsys.readouterr().out


def test_a_class_that_no_image_shows_has_no_better_split(tmp_path: Path) -> None:
    write_masks(tmp_path, "train", [halves(0, 1)] * 8)
    write_masks(tmp_path, "val", [halves(0, 1)])
    config = load("folder", [*overrides(tmp_path, 3), "data.labelled_ratio=1/4"])
    with pytest.warns(UserWarning, match="None of the 8 training images shows them"):
        require_labels(config, progress=False)


def test_an_image_that_is_listed_twice_is_warned_of(tmp_path: Path) -> None:
    write_masks(tmp_path, "train", [halves(0, 1)] * 3)
    write_masks(tmp_path, "val", [halves(0, 1)])
    with (tmp_path / "train.txt").open("a") as file:
        file.write("images/train1.png masks/train1.png\n")
    with pytest.warns(UserWarning, match=r"line 4: images/train1\.png is listed twice"):
        build_datasets(load("folder", overrides(tmp_path, 2)).data)


def test_images_as_small_as_a_feature_are_remarked(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_masks(tmp_path, "train", [halves(0, 1), halves(0, 1), np.zeros((1, 1))])
    write_masks(tmp_path, "val", [halves(0, 1)])
    assert main(["data", "check", "folder", *overrides(tmp_path, 2), *SETTINGS]) == 0
    printed = capsys.readouterr().out
    assert "remark: 1 of the labelled images have a side below 8 pixels" in printed
    assert "images/train2.png (1 x 1)" in printed
    assert "no problems found, " in printed


def test_crop_pairs_without_overlap_are_remarked(tmp_path: Path) -> None:
    """Images of 24 x 32 in crops of 129 that share at most a third."""
    from cac_ext.train.networks.grid import FeatureGrid

    write_masks(tmp_path, "train", [halves(0, 1)] * 3)
    write_masks(tmp_path, "val", [halves(0, 1)])
    given = [*overrides(tmp_path, 2), "augment.crop_size=129", "method.iou_range=[0.1,0.3]"]
    config = load("folder", given)
    splits = build_datasets(config.data)
    state = torch.get_rng_state()
    remark = small_images_remark(config, splits, FeatureGrid(4))
    for word in ("16 crop pairs", "32 x 24", "129", "augment.crop_size", "method.iou_range"):
        assert word in remark
    config = load("folder", [*given, "augment.crop_size=17", "method.iou_range=[0.1,1]"])
    assert small_images_remark(config, splits, FeatureGrid(4)) is None
    assert torch.equal(torch.get_rng_state(), state)


def test_image_level_labels_of_no_class_are_refused_and_missing_ones_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_masks(tmp_path, "train", [halves(0, 1), halves(0, 2)])
    write_masks(tmp_path, "val", [halves(0, 1), halves(0, 2)])
    (tmp_path / "more.txt").write_text("images/train0.png\nimages/train1.png\n")
    given = [*overrides(tmp_path, 3), *SETTINGS, "data.unlabelled_list=more.txt"]
    given += ["data.background_class=0", "weak.image_labels=labels.txt"]
    command = ["weak", "train-classifier", "folder", *given, "--folder", str(tmp_path / "c")]
    (tmp_path / "labels.txt").write_text("images/train0.png\nimages/train1.png\n")
    assert main(command) == 2
    assert "none of the 2 unlabelled images shows a class" in capsys.readouterr().err
    (tmp_path / "labels.txt").write_text("images/train0.png 1\nimages/train1.png 1\n")
    with pytest.warns(UserWarning, match="none of the 2 unlabelled images shows: class 2"):
        assert main([*command, "image_classifier.weights=null"]) == 0


def test_pseudo_labels_without_a_label_are_warned_of(tmp_path: Path) -> None:
    write_masks(tmp_path, "train", [halves(0, 1)] * 3)
    write_masks(tmp_path, "val", [halves(0, 1)])
    (tmp_path / "more.txt").write_text("images/train0.png\nimages/train1.png\n")
    given = [*overrides(tmp_path, 2), "data.unlabelled_list=more.txt"]
    splits = build_datasets(load("folder", given).data)
    labels = tmp_path / "labels/images"
    labels.mkdir(parents=True)
    for name, mask in (("train0", halves(255, 255)), ("train1", halves(255, 255))):
        Image.fromarray(mask.astype(np.uint8)).save(labels / f"{name}.png.png")
    with pytest.warns(UserWarning, match="no pixel of 2 pseudo labels"):
        pseudo_labelled(splits, str(tmp_path / "labels"), "weak.pseudo_labels")
    Image.fromarray(halves(255, 1).astype(np.uint8)).save(labels / "train1.png.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pseudo_labelled(splits, str(tmp_path / "labels"), "weak.pseudo_labels")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["data.num_classes=5"], ["data.num_classes is 5", "has 7 classes"]),
        (["data.class_names=[a,b]"], ["data.class_names", "background, rows"]),
        (["data.class_names=[a,b,a]"], ["'a'", "more than once"]),
    ],
)
def test_classes_that_contradict_the_data_set_are_refused(
    given: list[str], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        build_datasets(load("synthetic", given).data)
    for word in words:
        assert word in str(error.value)


def test_a_broken_mask_is_found_before_training(tmp_path: Path) -> None:
    write_masks(tmp_path, "train", [halves(0, 1)] * 8)
    write_masks(tmp_path, "val", [halves(0, 1)])
    (tmp_path / "masks/train6.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train\.txt, line 7: cannot read the mask"):
        require_labels(load("folder", overrides(tmp_path, 3)), progress=False)
