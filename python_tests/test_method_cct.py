"""Cross-Consistency Training: every term by hand, where gradient goes, and what must not happen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from method_steps import random_labelled
from tiny_run import TINY_WEAK
from torch import Tensor

from cac_ext.train.config import Config, load
from cac_ext.train.data.batches import WholeCropBatch
from cac_ext.train.data.whole_crops import WholeCropAugment
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.prepare import prepare_run
from cac_ext.train.loop import train
from cac_ext.train.methods import MethodContext, Phase, Step, check_method
from cac_ext.train.methods.cct import Cct
from cac_ext.train.methods.cct.network import KINDS
from cac_ext.train.networks import build_network
from cac_ext.train.pseudo_labels.self_training import teacher_config
from cac_ext.train.runs.log import read_metrics
from cac_ext.train.runtime.distributed import Processes

CLASSES, SIZE, IMAGES = 4, 33, 2
STILL = ["cct.dropout_rate=0", "cct.noise_range=0", "network.dropout=0"]  # nothing random
SMALL = ["method.name=cct", "network.width=16", f"augment.crop_size={SIZE}"]


def only(**counts: int) -> list[str]:
    """Overrides for these numbers of decoders and no others."""
    return [f"cct.{kind}={counts.get(kind, 0)}" for kind in KINDS]


def make_cct(config: Config, background: int | None = 0, classes: int = CLASSES) -> Cct:
    """The method in training mode, without data."""
    splits = SimpleNamespace(num_classes=classes, ignore_index=255, background_class=background)
    method = Cct(MethodContext(config, splits, build_network(config.network, classes)))
    method.model.train()
    return method


def random_crops(images: int = IMAGES, padding: int = 9, *, masks: bool = False) -> WholeCropBatch:
    """Crops whose last columns, fewer in the second image, are padding."""
    valid = torch.ones(images, SIZE, SIZE, dtype=torch.bool)
    for image in range(images):
        valid[image, :, SIZE - padding // (image + 1) :] = False
    labels = None
    if masks:
        labels = torch.randint(0, CLASSES, (images, SIZE, SIZE))
        labels[(torch.rand(labels.shape) < 0.3) | ~valid] = 255
    pixels = torch.randn(images, 3, SIZE, SIZE)
    empty = torch.zeros(0, images, SIZE, SIZE)
    return WholeCropBatch(pixels, empty[:, :, None].expand(-1, -1, 3, -1, -1), valid, empty, labels)


def step_of(method: Cct, labelled, crops=None, iteration: int = 0) -> Phase:
    batches = {"labelled": labelled} | ({} if crops is None else {"unlabelled": crops})
    (phase,) = method.step(Step(iteration, batches, method.trained, lambda finite: bool(finite)))
    return phase


def stirred(method: Cct) -> Cct:
    """Zero-initialized layers get values, so that the gradient passes everywhere."""
    with torch.no_grad():
        for parameter in method.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.rand_like(parameter))
        # No class is the most probable one everywhere.
        classifier = method.model.network.classifier
        features = method.model.network.features(torch.randn(4, 3, SIZE, SIZE))
        classifier.bias -= classifier(features).mean(dim=(0, 2, 3))
    return method


def test_the_losses_are_the_formulas_written_out(seed: int) -> None:
    """Pixel by pixel: the cells on the image count, padding and unlabelled cells do not."""
    torch.manual_seed(seed)
    kinds = only(dropout=1, context_masking=1, object_masking=2)
    more = ["weak.pseudo_labels=masks", "schedule.warmup_epochs=0"]
    config = load("synthetic", [*SMALL, *STILL, *kinds, *more])
    method = stirred(make_cct(config, background=1))
    labelled, crops = random_labelled(IMAGES, SIZE, CLASSES), random_crops(masks=True)
    iteration = config.iterations // 20  # half of the ramp
    phase = step_of(method, labelled, crops, iteration)

    with torch.no_grad():
        features = method.model.network.features(crops.weak)  # [B, F, 9, 9]
        main = method.model.network.classifier(features)
        is_object = main.argmax(dim=1, keepdim=True) != 1
        for image in range(IMAGES):
            for j in range(9):  # feature j is centered on pixel 4 j
                is_object[image, :, :, j] &= crops.valid[image, 0, min(4 * j, SIZE - 1)]
        guide = F.interpolate(main, scale_factor=4, mode="bilinear").softmax(dim=1).tolist()
        inputs = [features, features * is_object, features * ~is_object, features * ~is_object]
        decoders = zip(method.model.decoders, inputs, strict=True)
        logits = [decode(perturbed) for decode, perturbed in decoders]
    assert is_object.any()
    consistency, weak = [], []
    for prediction in logits:
        assert prediction.shape == (IMAGES, CLASSES, 36, 36)
        squares, entropies = [], []
        probabilities, scores = prediction.softmax(dim=1).tolist(), prediction.double()
        for image in range(IMAGES):
            for row in range(36):
                for column in range(36):
                    # Cell i is centered on pixel i - 1.5; a center between two takes the latter.
                    y, x = row - 1, column - 1
                    if not (0 <= y < SIZE and 0 <= x < SIZE):
                        continue
                    if crops.valid[image, y, x]:
                        for k in range(CLASSES):
                            p = probabilities[image][k][row][column]
                            squares.append((p - guide[image][k][row][column]) ** 2)
                    label = int(crops.masks[image, y, x])
                    if label != 255:
                        score = scores[image, :, row, column].tolist()
                        entropies.append(math.log(sum(map(math.exp, score))) - score[label])
        consistency.append(sum(squares) / len(squares))
        weak.append(sum(entropies) / len(entropies))
    expected = sum(consistency) / 4, sum(weak) / 4
    assert phase.losses["consistency"].item() == pytest.approx(expected[0], rel=1e-4)
    assert phase.losses["weak"].item() == pytest.approx(expected[1], rel=1e-4)
    ramp = math.exp(-5 * 0.5**2)
    total = phase.losses["supervised"].item() + ramp * (30 * expected[0] + 0.4 * expected[1])
    assert phase.total.item() == pytest.approx(total, rel=1e-4)


def test_the_weight_rises_over_a_tenth_of_the_iterations_behind_the_warm_up(seed: int) -> None:
    torch.manual_seed(seed)
    config = load("synthetic", [*SMALL, *STILL, *only(dropout=1)])
    method = make_cct(config)
    labelled, crops = random_labelled(IMAGES, SIZE, CLASSES), random_crops()
    tenth = config.iterations // 10
    assert config.warmup_iterations > 0
    for begun, share in ((0, math.exp(-5)), (tenth, 1.0), (5 * tenth, 1.0)):
        phase = step_of(method, labelled, crops, config.warmup_iterations + begun)
        weighted = phase.total - phase.losses["supervised"]
        expected = 30 * share * phase.losses["consistency"]
        torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=1e-6)


class Answering(Processes):
    """Two processes whose means are given; without answers, one that keeps what it is asked."""

    asked: list[Tensor]
    answers: list[Tensor]

    def mean(self, values: Tensor) -> Tensor:
        self.asked.append(values)
        return self.answers[len(self.asked) - 1] if self.answers else values


def answering(*answers: Tensor) -> Answering:
    processes = Answering(0, 2 if answers else 1)
    object.__setattr__(processes, "asked", [])
    object.__setattr__(processes, "answers", answers)
    return processes


def test_means_over_processes_cover_all_their_pixels(seed: int) -> None:
    """The mean of two processes' losses is the loss of one with both batches."""
    torch.manual_seed(seed)
    kinds = only(dropout=1, object_masking=1)
    config = load("synthetic", [*SMALL, *STILL, *kinds, "weak.pseudo_labels=masks"])
    method = stirred(make_cct(config))
    labelled, crops = random_labelled(IMAGES, SIZE, CLASSES), random_crops(masks=True)
    whole = step_of(method, labelled, crops).losses

    def losses(image: int, processes: Answering):
        """Those of a process that has one of the images."""
        one = slice(image, image + 1)
        half = crops._replace(weak=crops.weak[one], valid=crops.valid[one], masks=crops.masks[one])
        method.context = replace(method.context, processes=processes)
        return step_of(method, labelled, half).losses

    alone = [answering(), answering()]
    for image in range(IMAGES):
        losses(image, alone[image])
    means = [(a + b) / 2 for a, b in zip(alone[0].asked, alone[1].asked, strict=True)]
    parts = [losses(image, answering(*means)) for image in range(IMAGES)]
    for name in ("consistency", "weak"):
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, whole[name])


def gradient_norms(method: Cct) -> dict[str, float]:
    parts = {
        "encoder": method.model.network.encoder,
        "classifier": method.model.network.classifier,
        **{f"{i} {kind}": method.model.decoders[i] for i, kind in enumerate(method.model.kinds)},
    }
    norms = {}
    for name, module in parts.items():
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        norms[name] = sum(float(gradient.abs().sum()) for gradient in gradients)
    return norms


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_loss_trains_its_parts_and_nothing_else(precision: str, seed: int) -> None:
    torch.manual_seed(seed)
    config = load("synthetic", [*SMALL, "weak.pseudo_labels=masks"])
    method = stirred(make_cct(config))
    labelled, crops = random_labelled(IMAGES, SIZE, CLASSES), random_crops(masks=True)
    reached = {}
    for name in ("supervised", "consistency", "weak"):
        method.model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            phase = step_of(method, labelled, crops)
        phase.losses[name].backward()
        reached[name] = {part for part, norm in gradient_norms(method).items() if norm > 0}
    decoders = {f"{i} {kind}" for i, kind in enumerate(method.model.kinds)}
    assert len(decoders) == 30
    assert reached["supervised"] == {"encoder", "classifier"}
    for name in ("consistency", "weak"):
        assert "classifier" not in reached[name]
        assert "encoder" in reached[name]
        # A few decoders may start with nothing but zeros behind their ReLUs.
        assert len(decoders & reached[name]) >= 20


def test_the_adversarial_search_leaves_no_gradient_behind(seed: int) -> None:
    """Before the loss's own backward no weight has one; after it, only that of the loss."""
    torch.manual_seed(seed)
    config = load("synthetic", [*SMALL, *only(adversarial=2)])
    method = stirred(make_cct(config))
    labelled, crops = random_labelled(IMAGES, SIZE, CLASSES), random_crops()
    phase = step_of(method, labelled, crops)
    assert all(parameter.grad is None for parameter in method.model.parameters())
    phase.losses["supervised"].backward()
    assert all(parameter.grad is None for parameter in method.model.decoders.parameters())


def test_the_guide_has_neither_dropout_nor_gradient(seed: int) -> None:
    torch.manual_seed(seed)
    config = load("synthetic", [*SMALL, "network.dropout=0.5"])
    model = stirred(make_cct(config)).model
    crops = random_crops()
    features = model.network.features(crops.weak)
    one, other = (model.guide(features, crops.valid) for _ in range(2))
    assert torch.equal(one.probabilities, other.probabilities)
    assert not one.probabilities.requires_grad


def test_padding_is_no_object(seed: int) -> None:
    torch.manual_seed(seed)
    model = stirred(make_cct(load("synthetic", SMALL))).model
    crops = random_crops(padding=16)
    with torch.no_grad():
        model.network.classifier.bias[1] += 1000  # class 1 everywhere
    guide = model.guide(model.network.features(crops.weak), crops.valid)
    # Columns 17 to 32 and 25 to 32 are padding: features 5 to 8 (pixels 20 to 32) and 7 to 8.
    assert guide.foreground[:, 0, 0].tolist() == [
        [True] * 5 + [False] * 4,
        [True] * 7 + [False] * 2,
    ]
    assert guide.boxes is not None
    assert guide.boxes.width.amax(dim=1).tolist() == [5, 7]


def test_a_step_without_unlabelled_crops_is_the_supervised_one(seed: int) -> None:
    torch.manual_seed(seed)
    method = make_cct(load("synthetic", [*SMALL, "network.dropout=0"]))
    labelled = random_labelled(IMAGES, SIZE, CLASSES)
    phase = step_of(method, labelled)
    expected = F.cross_entropy(method.model.network(labelled.images), labelled.masks)
    torch.testing.assert_close(phase.total, expected)
    assert set(phase.losses) == {"supervised"}


def test_data_without_a_background_is_refused_with_the_settings_to_change(seed: int) -> None:
    with pytest.raises(ConfigError, match=r"Set cct.cutout=0 cct.context_masking=0 cct.object"):
        make_cct(load("synthetic", SMALL), background=None)
    kinds = only(dropout=1, feature_drop=1, feature_noise=1, adversarial=1)
    torch.manual_seed(seed)
    method = make_cct(load("synthetic", [*SMALL, *kinds]), background=None)
    phase = step_of(method, random_labelled(IMAGES, SIZE, CLASSES), random_crops())
    assert phase.total.isfinite()


def test_without_decoders_there_is_no_training() -> None:
    with pytest.raises(ConfigError, match="cct trains no auxiliary decoder"):
        check_method(load("synthetic", [*SMALL, *only()]))


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 14, 16])
def test_any_stride_has_decoders_and_a_grid(stride: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = load(
        "synthetic",
        [*SMALL, f"network.options.stride={stride}", "network.name=test_method_cct:build_strided"],
    )
    method = make_cct(config)
    phase = step_of(method, random_labelled(IMAGES, SIZE, CLASSES), random_crops(masks=True))
    assert phase.total.isfinite()
    assert phase.losses["consistency"] > 0


class Strided(torch.nn.Module):
    """Means over patches, projected."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.out_channels, self.grid_offset = stride, 16, (stride - 1) / 2
        self.layer = torch.nn.Conv2d(3, 16, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(F.avg_pool2d(images, self.stride, ceil_mode=True)).relu()


def build_strided(config, num_classes: int):
    from cac_ext.train.networks import SegmentationNetwork

    encoder = Strided(config.options["stride"])
    return SegmentationNetwork(encoder, torch.nn.Conv2d(16, num_classes, 1), dropout=0.0)


@pytest.mark.parametrize("flip", [0, 1])
def test_masks_of_whole_crops_lie_on_their_images(flip: int, seed: int) -> None:
    """Nothing random depends on the mask; its padding is ignored."""
    size = [f"augment.flip={flip}", "augment.crop_size=65", "augment.unlabelled_scale=[1.0,1.0]"]
    config = load("synthetic", size).augment
    torch.manual_seed(seed)
    mask = torch.randint(0, 9, (50, 90))
    image = (mask * 20).to(torch.uint8).expand(3, -1, -1)
    crops = []
    for ignore_index in (None, 255):
        torch.manual_seed(seed)
        augment = WholeCropAugment(config, strong=0, ignore_index=ignore_index)
        crops.append(augment({"image": image, "mask": mask, "name": "x"}))
    without, crop = crops
    assert without.mask is None
    assert torch.equal(without.weak, crop.weak)
    assert (crop.mask == 255).eq(~crop.valid).all()
    shown = crop.weak[0] * 0.229 + 0.485  # in [0, 1]
    levels = (shown * 255 / 20).round().long()
    assert torch.equal(levels[crop.valid], crop.mask[crop.valid])


def test_a_supervised_teacher_has_no_auxiliary_decoders() -> None:
    method = teacher_config(load("synthetic", ["method.name=cct"])).method
    assert (method.name, method.unsupervised_weight) == ("cac", 0)


@pytest.mark.usefixtures("one_thread", "without_pictures")
def test_image_level_labels_train_the_auxiliary_decoders(tmp_path: Path, seed: int) -> None:
    config = load("synthetic", [*TINY_WEAK, *SMALL, f"seed={seed}", "weak.pseudo_labels=auto"])
    prepare_run(config, tmp_path, resume=False)
    train(config, tmp_path, progress=False)
    steps = [x for x in read_metrics(tmp_path / "metrics.jsonl") if x["split"] == "train"]
    weak = [x["loss_weak"] for x in steps if "loss_weak" in x]
    assert len(weak) == 4  # after two steps of warm-up
    assert all(0 < value < 100 for value in weak)
