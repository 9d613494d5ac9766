"""mIoU: original size, every image once, unrounded, equal to torchmetrics' Jaccard index."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics.classification import MulticlassJaccardIndex
from torchvision import tv_tensors

from cac_ext.train.evaluate import Evaluation, evaluate, predict
from cac_ext.train.networks import SegmentationNetwork


class Mean(nn.Module):
    """Features from the mean of the first channel over patches: its distances from three levels."""

    out_channels, stride, grid_offset = 3, 4, 1.5

    def forward(self, images: Tensor) -> Tensor:
        gray = nn.functional.avg_pool2d(images[:, :1], 4)
        return torch.cat([-(gray - level).abs() for level in (-2.0, 0.0, 2.0)], dim=1)


class Pictures(Dataset):
    """Pictures of three gray levels and different sizes, none a multiple of the stride."""

    sizes = ((37, 50), (41, 33), (30, 30), (53, 61))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict:
        if index >= len(self):
            raise IndexError
        height, width = self.sizes[index]
        columns = torch.arange(width) * 3 // width  # three bands
        mask = columns.expand(height, width).clone()
        image = (mask * 100 + 20).to(torch.uint8).expand(3, height, width).contiguous()
        mask[: 3 + index] = 255
        return {
            "image": tv_tensors.Image(image),
            "mask": tv_tensors.Mask(mask),
            "name": str(index),
        }


def test_miou_is_torchmetrics_over_all_pixels_at_the_original_size() -> None:
    network = SegmentationNetwork(Mean(), nn.Conv2d(3, 3, 1), dropout=0.5)
    nn.init.eye_(network.classifier.weight.data.view(3, 3))
    nn.init.zeros_(network.classifier.bias.data)
    network.train()
    evaluation = evaluate(network, Pictures(), 3, 255, progress=False)
    assert network.training  # its mode is left as it was

    metric = MulticlassJaccardIndex(3, ignore_index=255)
    network.eval()
    counted = 0
    for sample in Pictures():
        prediction = predict(network, sample["image"])
        assert prediction.shape == sample["mask"].shape
        metric.update(prediction[None], sample["mask"].as_subclass(Tensor)[None])
        counted += int((sample["mask"] != 255).sum())
    assert math.isclose(evaluation.miou, metric.compute().item(), rel_tol=1e-6)
    assert int(evaluation.confusion.sum()) == counted  # every pixel that counts, once
    assert 0.5 < evaluation.miou < 1


def test_a_class_that_does_not_occur_does_not_count() -> None:
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    confusion[0, 0], confusion[0, 1], confusion[1, 1] = 6, 2, 4
    evaluation = Evaluation(confusion)
    assert math.isnan(evaluation.class_iou[2])
    assert math.isclose(evaluation.miou, (6 / 8 + 4 / 6) / 2)
