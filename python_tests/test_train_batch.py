"""A batch too small for batch normalization is refused in one sentence before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import TINY_RUN
from torch import Tensor, nn

from cac_ext.train.cli.main import main
from cac_ext.train.config import NetworkConfig
from cac_ext.train.errors import ConfigError
from cac_ext.train.networks import SegmentationNetwork
from cac_ext.train.networks.layers import require_batch
from cac_ext.train.preflight import require_batch_statistics
from cac_ext.train.runtime.distributed import GlooBatchNorm

pytestmark = pytest.mark.usefixtures("one_thread")


class PooledEncoder(nn.Module):
    """Batch normalization of features pooled to a single one, as a user may write it."""

    out_channels, stride = 8, 4

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return features + self.norm(self.pool(features))


def build_pooled(config: NetworkConfig, num_classes: int) -> SegmentationNetwork:
    return SegmentationNetwork(PooledEncoder(pooled=True), nn.Conv2d(8, num_classes, 1))


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["network.name=deeplabv3plus"], ["pooled features", "schedule.labelled_batch"]),
        (["network.name=pspnet"], ["pooled features", "schedule.labelled_batch"]),
        (
            ["network.name=test_train_batch:build_pooled"],
            ["a batch of 1 image of 33 x 33 pixels", "schedule.labelled_batch"],
        ),
        (
            [
                "network.name=test_train_batch:build_pooled",
                "method.unsupervised_weight=0",
                "self_training.pseudo_labels=auto",  # whose teacher has such batches
            ],
            ["a batch of 1 image of 33 x 33 pixels", "schedule.labelled_batch"],
        ),
        (
            [
                "schedule.labelled_batch=2",
                "weak.pseudo_labels=auto",
                "image_classifier.network=resnet50",
                "image_classifier.weights=null",
                "image_classifier.batch=1",
                "image_classifier.crop_size=16",
            ],
            ["a batch of 1 image of 16 x 16 pixels", "image_classifier.batch"],
        ),
    ],
    ids=lambda value: value[0] if value[0].startswith("network") else value[-1],
)
def test_a_batch_of_one_is_refused_before_the_first_step(
    given: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["train", "synthetic", *TINY_RUN, "schedule.labelled_batch=1", *given]
    assert main([*command, "--folder", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_what_can_be_trained_is_let_through_and_left_as_it_is(seed: int) -> None:
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    for pooled, batch, trained in ((True, 2, True), (False, 1, True), (True, 1, False)):
        network = SegmentationNetwork(PooledEncoder(pooled), nn.Conv2d(8, 3, 1)).eval()
        torch.set_rng_state(state)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        if trained:
            require_batch_statistics(network, batch, 33, "schedule.labelled_batch")
            network.train()(torch.zeros(batch, 3, 33, 33))
        else:
            with pytest.raises(ConfigError, match=r"schedule\.labelled_batch to 2 or more"):
                require_batch_statistics(network, batch, 33, "schedule.labelled_batch")
            assert torch.equal(torch.get_rng_state(), state)
            after = network.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert not network.training
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                network.train()(torch.zeros(batch, 3, 33, 33))


def test_statistics_of_several_processes_need_one_image_each() -> None:
    norm = nn.BatchNorm2d(4).train()
    images = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ConfigError, match="at least 2 images a process"):
        require_batch(images, norm)
    norm.__class__ = GlooBatchNorm
    require_batch(images, norm)
    require_batch(images, nn.SyncBatchNorm(4).train())
