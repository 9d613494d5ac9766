"""Image-level labels: from a list or masks, to activation maps, to the second classifier's loss."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from image_trees import cityscapes_tree, folder_overrides, folder_tree, voc_tree
from method_steps import make_cac, random_labelled, random_pairs, step_of
from PIL import Image
from safetensors.torch import save_file
from tiny_run import TINY_RUN

from cac_ext.train.cli.main import main
from cac_ext.train.config import load
from cac_ext.train.data import build_datasets
from cac_ext.train.data.augment import CropPairAugment
from cac_ext.train.data.crop_pair import CropPairSampler
from cac_ext.train.data.pseudo_label_files import PseudoLabelled, mask_path, write_pseudo_labels
from cac_ext.train.errors import CheckpointError, ConfigError, DataError
from cac_ext.train.methods.cac import weak_weight
from cac_ext.train.networks.backbones import move_stride_to_1x1
from cac_ext.train.networks.grid import FeatureGrid
from cac_ext.train.pseudo_labels.activation_maps import class_activation_maps, labels_of_maps
from cac_ext.train.pseudo_labels.image_classifier import build_classifier, train_classifier
from cac_ext.train.pseudo_labels.image_labels import foreground_classes, read_image_labels
from cac_ext.train.runs.checkpoint import read_checkpoint
from cac_ext.train.runs.log import read_metrics

TINY = [
    *TINY_RUN,
    "data.synthetic.labelled=4",
    "data.synthetic.unlabelled=6",
    "data.synthetic.validation=2",
    "schedule.epochs=3",
    "schedule.evaluate_every=3",
    "image_classifier.epochs=2",
    "image_classifier.batch=3",
    "image_classifier.weights=null",
]


pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")


def test_image_labels_are_the_classes_of_the_masks_without_background(
    seed: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cac_ext.train.runtime.progress.on_terminal", lambda *_: True)
    config = load("synthetic", [*TINY, f"seed={seed}"])
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
    tiny = [word for word in TINY if "synthetic" not in word]
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
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if "activation_labels: 4 images" in line]
    assert line.endswith("% of the pixels labelled")  # how well, nobody knows
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


def test_activation_maps_become_labels_by_two_thresholds() -> None:
    maps = torch.tensor([[[0.9, 0.31, 0.30, 0.05, 0.04]], [[1.0, 0.0, 0.9, 1.0, 0.0]]])  # [2, 1, 5]
    labels = labels_of_maps(maps, torch.tensor([1.0, 0.0]), [1, 2], 0.30, 0.05, 0, 255)
    assert labels.tolist() == [[1, 1, 255, 255, 0]]  # the second class is not in the image
    labels = labels_of_maps(maps, torch.tensor([1.0, 1.0]), [1, 2], 0.30, 0.05, 0, 255)
    assert labels.tolist() == [[2, 1, 2, 2, 0]]
    # The background may be any class.
    labels = labels_of_maps(maps, torch.tensor([1.0, 1.0]), [0, 2], 0.30, 0.05, 1, 255)
    assert labels.tolist() == [[2, 0, 2, 2, 1]]


def test_activation_maps_lie_where_the_activation_is(seed: int) -> None:
    """A classifier that answers to red sees a red square at its place, at every scale."""
    config = load("synthetic", TINY)
    classifier = build_classifier(config, 3, pretrained=False).eval()
    classifier.features = torch.nn.Sequential(torch.nn.AvgPool2d(5, 4, 2), Redness())
    classifier.scores = torch.nn.Conv2d(2, 2, 1)
    torch.nn.init.dirac_(classifier.scores.weight)
    torch.nn.init.zeros_(classifier.scores.bias)
    image = torch.full((3, 61, 81), 100, dtype=torch.uint8)
    image[0, 20:40, 40:60] = 250
    image[1:, 20:40, 40:60] = 0
    maps = class_activation_maps(classifier, image, [1.0, 0.5, 1.5, 2.0])
    assert maps.shape == (2, 61, 81)
    assert maps.amin() >= 0
    torch.testing.assert_close(maps.amax(dim=(1, 2)), torch.tensor([1.0, 0.0]))
    rows, columns = (maps[0] > 0.5).nonzero().T
    edges = [rows.min(), rows.max(), columns.min(), columns.max()]
    assert all(abs(int(e) - t) <= 2 for e, t in zip(edges, (20, 39, 40, 59), strict=True)), edges


class Redness(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = (x[:, :1] - x[:, 1:2] - 1).clamp(min=0)
        return torch.cat([red, torch.zeros_like(red)], dim=1)


def test_the_classifier_s_training_goes_on_after_its_last_epoch(tmp_path: Path, seed: int) -> None:
    overrides = [*TINY, f"seed={seed}", "image_classifier.epochs=3"]
    config = load("synthetic", overrides)
    unbroken = train_classifier(config, tmp_path / "a", torch.device("cpu"), progress=False)

    steps = []
    cross_entropy = F.binary_cross_entropy_with_logits

    def stop_in_the_second_epoch(*arguments):
        steps.append(0)
        if len(steps) == 4:
            raise InterruptedError
        return cross_entropy(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "binary_cross_entropy_with_logits", stop_in_the_second_epoch)
        with pytest.raises(InterruptedError):
            train_classifier(config, tmp_path / "b", torch.device("cpu"), progress=False)
    resumed = train_classifier(config, tmp_path / "b", torch.device("cpu"), progress=False)
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    logged = [
        [(line["iteration"], line["loss"]) for line in read_metrics(folder / "metrics.jsonl")]
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert [iteration for iteration, _ in logged[0]] == [1, 2, 3, 4, 5, 6]
    assert logged[0] == logged[1]

    other = load("synthetic", [*overrides, "image_classifier.learning_rate=0.05"])
    with pytest.raises(CheckpointError, match="other settings"):
        train_classifier(other, tmp_path / "b", torch.device("cpu"), progress=False)


def test_a_resnet50_is_the_classifier_of_the_large_networks(seed: int) -> None:
    config = load("voc")
    torch.manual_seed(seed)
    classifier = build_classifier(config, 21, pretrained=False)
    images = torch.randn(4, 3, 64, 48)
    assert classifier.activations(images).shape == (4, 20, 4, 3)
    recipe = config.image_classifier
    assert (recipe.epochs, recipe.learning_rate) == (5, 0.1)
    assert (recipe.scales, recipe.foreground, recipe.background) == ([1, 0.5, 1.5, 2], 0.3, 0.05)

    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.01)
    truth = torch.randint(0, 2, (4, 20)).float()
    losses = []
    for _ in range(2):
        losses.append(F.binary_cross_entropy_with_logits(classifier(images), truth))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]
    assert all(weights.grad.abs().sum() > 0 for weights in classifier.parameters())


@pytest.mark.parametrize("stride_in", ["3x3", "1x1"])
def test_a_resnet50_takes_pretrained_weights_of_either_stride_placement(
    stride_in: str, seed: int, tmp_path: Path
) -> None:
    torch.manual_seed(seed)
    trained = torchvision.models.resnet50().eval()  # torchvision's names, values made up
    for name, tensor in trained.state_dict().items():
        if "running" in name:
            tensor.uniform_(0.5, 1.5)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    if stride_in == "1x1":
        move_stride_to_1x1(trained)
    overrides = [f"image_classifier.weights={tmp_path / 'weights.safetensors'}"]
    config = load("voc", [*overrides, f"network.stride_in={stride_in}", "network.weights=null"])
    classifier = build_classifier(config, 21, pretrained=True).eval()
    assert "265 of 265 tensors" in classifier.initial_weights

    image = torch.randn(1, 3, 65, 50)
    with torch.no_grad():
        x = trained.maxpool(trained.relu(trained.bn1(trained.conv1(image))))
        expected = trained.layer4(trained.layer3(trained.layer2(trained.layer1(x))))
        # Trained at stride 32, used at 16: the same at every second position.
        actual = classifier.features(image)[..., ::2, ::2]
    assert (actual - expected).norm() <= 1e-4 * expected.norm()


def test_a_small_classifier_starts_from_a_supervised_run(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    """Random weights learn too little in so few epochs, and nobody has others for this network."""
    overrides = [*TINY, f"seed={seed % 10**6}", "image_classifier.weights=sup_only"]
    folder = tmp_path / "classifier"
    command = ["weak", "train-classifier", "synthetic", *overrides, "--folder", str(folder)]
    assert main(command) == 0
    teacher = load("synthetic", overrides)
    state = read_checkpoint(folder / "teacher" / "checkpoint.pt")
    assert state["iteration"] == teacher.iterations
    weights = f"image_classifier.weights={folder / 'teacher' / 'checkpoint.pt'}"
    classifier = build_classifier(load("synthetic", [*overrides, weights]), 7, pretrained=True)
    for name, tensor in classifier.features.state_dict().items():
        assert torch.equal(tensor, state["modules"]["model"][f"network.encoder.{name}"])
    assert "tensors" in classifier.initial_weights

    # The same from the file itself, and from the run of a comparison.
    given = tmp_path / "given"
    command = ["weak", "train-classifier", "synthetic", *overrides, weights]
    assert main([*command, "--folder", str(given)]) == 0
    models = [torch.load(path / "classifier.pt")["model"] for path in (folder, given)]
    torch.testing.assert_close(*models, rtol=0, atol=0)
    assert not (given / "teacher").exists()

    command[-1] = "image_classifier.weights=IMAGENET1K_V1"
    assert main([*command, "--folder", str(tmp_path / "other")]) == 2
    assert "image_classifier.weights: there is no file IMAGENET1K_V1" in capsys.readouterr().err


def test_the_commands_lead_from_image_labels_to_a_network(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture
) -> None:
    classifier, masks, run = (str(tmp_path / name) for name in ("classifier", "masks", "run"))
    overrides = [*TINY, f"seed={seed}"]
    command = ["weak", "train-classifier", "synthetic", *overrides, "--folder", classifier]
    assert main(command) == 0
    assert main(["weak", "make-labels", classifier, "--output", masks]) == 0
    assert "of the pixels labelled" in capsys.readouterr().out
    assert len(list(Path(masks).glob("*.png"))) == 6

    weak = f"weak.pseudo_labels={masks}"
    assert main(["train", "synthetic", *overrides, weak, "--folder", run]) == 0
    steps = [x for x in read_metrics(Path(run) / "metrics.jsonl") if x["split"] == "train"]
    assert ["loss_weak" in step for step in steps] == [False] * 2 + [True] * 4
    # Discarded at inference: the network holds nothing of the second classifier.
    state = read_checkpoint(Path(run) / "checkpoint.pt")["modules"]["model"]
    assert any(name.startswith("weak_classifier.") for name in state)
    assert not any("weak" in name for name in state if name.startswith("network."))


def test_the_total_is_equation_10_and_spares_the_main_classifier(seed: int) -> None:
    config = load("synthetic", [*TINY, "weak.pseudo_labels=masks", "network.dropout=0"])
    torch.manual_seed(seed)
    method = make_cac(config, 7)
    model = method.model
    side = model.network.pooled_grid.size(33)
    overlap = torch.arange(2 * side * side)
    valid = torch.ones(2, side, side, dtype=torch.bool)
    masks = torch.randint(0, 7, (2, 2, 33, 33))
    masks[0, 0] = 255
    pairs = random_pairs(2, 33, (overlap, overlap), (valid, valid), masks=tuple(masks))
    iteration = 3
    losses = step_of(method, random_labelled(2, 33, 7), pairs, iteration)

    expected = 0.0
    for view in pairs[:2]:
        logits = model.view_outputs(view.images).weak_logits
        assert logits.shape == (2, 7, 33, 33)
        expected += F.cross_entropy(logits, view.masks, ignore_index=255) / 2
    torch.testing.assert_close(losses.losses["weak"], expected)
    torch.testing.assert_close(
        losses.total,
        losses.losses["supervised"]
        + config.method.unsupervised_weight * losses.losses["unsupervised"]
        + weak_weight(config, iteration) * expected,
    )
    losses.losses["weak"].backward()
    assert all(p.grad is None for p in model.network.classifier.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.weak_classifier.parameters())


def test_the_weight_rises_over_the_first_tenth() -> None:
    config = load("synthetic", ["schedule.epochs=10", "schedule.iterations_per_epoch=100"])
    weights = [weak_weight(config, iteration) for iteration in range(0, 1000, 10)]
    assert weights[0] == pytest.approx(0.4 * math.exp(-5))
    assert weights[5] == pytest.approx(0.4 * math.exp(-5 * 0.25))
    assert weights[10:] == [0.4] * 90
    assert weights[:11] == sorted(weights[:11])


def test_a_view_s_mask_shows_what_the_view_shows(seed: int) -> None:
    """Of an image that is its own mask, view and mask agree under every crop, scale and flip."""
    torch.manual_seed(seed)
    config = load("synthetic", ["augment.jitter=0", "augment.grey=0", "augment.blur=0"]).augment
    sampler = CropPairSampler(33, FeatureGrid(4), (0.1, 1.0), 0.5)
    augment = CropPairAugment(config, sampler, 255)
    mask = torch.zeros(48, 40, dtype=torch.uint8)
    mask[10:30, 5:25] = 200
    for _ in range(10):
        pair = augment({"image": mask.expand(3, -1, -1).clone(), "mask": mask, "name": "square"})
        for view in pair:
            shown, labels = view.image[0], view.mask
            assert labels.shape == (33, 33)
            inside = labels != 255  # no padding
            agree = ((shown > 0.5) == (labels == 200))[inside].float().mean()
            assert agree > 0.9  # all but the resized square's edge


def test_pseudo_labels_are_written_once_and_read_whole(tmp_path: Path, seed: int) -> None:
    splits = build_datasets(load("synthetic", [*TINY, f"seed={seed}"]).data)
    asked = []

    def label(index: int, sample: dict) -> torch.Tensor:
        asked.append(index)
        mask = splits.unlabelled.known_mask(index).long()
        mask[:24] = splits.ignore_index
        return mask

    report = write_pseudo_labels(splits, label, tmp_path, "labels", progress=False)
    assert (report.images, report.labelled, report.accuracy, report.miou) == (6, 0.5, 1.0, 1.0)
    name = splits.unlabelled[2]["name"]
    mask_path(tmp_path, name).unlink()
    write_pseudo_labels(splits, label, tmp_path, "labels", progress=False)
    assert asked == [0, 1, 2, 3, 4, 5, 2]  # only what was missing is made again

    images = PseudoLabelled(splits.unlabelled, tmp_path, splits.num_classes, splits.ignore_index)
    Image.new("L", (48, 48), 9).save(mask_path(tmp_path, name))
    with pytest.raises(DataError, match=r"holds the id 9, but there are 7 classes"):
        images[2]
    Image.new("L", (48, 47), 1).save(mask_path(tmp_path, name))
    with pytest.raises(DataError, match=r"is 48 x 47 pixels, but its image .* is 48 x 48"):
        images[2]
