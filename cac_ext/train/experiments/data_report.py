"""All faults in the data of a configuration (`cac-ext data check`)."""

from __future__ import annotations

import torch

from cac_ext.train.config import Config
from cac_ext.train.data import DatasetSplits, build_datasets
from cac_ext.train.data.checks.check import check, format_report
from cac_ext.train.errors import DataError, UserError
from cac_ext.train.networks import build_network
from cac_ext.train.networks.normalization import Normalization
from cac_ext.train.preflight import small_images_remark
from cac_ext.train.pseudo_labels.folders import AUTO
from cac_ext.train.pseudo_labels.image_labels import read_image_labels


def report_on_data(config: Config) -> tuple[str, bool]:
    """Reads every image and mask; returns the report, and whether it names problems."""
    try:
        splits = build_datasets(config.data, check=False)
    except DataError as error:  # an unreadable list is a finding, too
        return f"problem: {error}", True
    report = check(splits, data=config.data, num_workers=config.data.num_workers)
    remark = _remark_on_crops(config, splits)
    report.remarks += [remark] if remark else []
    if config.weak.image_labels is not None or config.weak.pseudo_labels == AUTO:
        try:
            read_image_labels(config.weak, config.data, splits)
        except UserError as error:
            report.problems.append(str(error))
    return format_report(report, splits.class_names), bool(report.problems)


def _remark_on_crops(config: Config, splits: DatasetSplits) -> str | None:
    """A sentence about crop pairs of the unlabelled images, if there is something to say."""
    try:
        with torch.random.fork_rng(devices=[]):
            network = build_network(
                config.network,
                splits.num_classes,
                pretrained=False,
                normalization=Normalization.of(config.data),
            )
        return small_images_remark(config, splits, network.pooled_grid)
    except DataError:  # reported as a problem already
        return None
    except Exception as error:  # of a network that may be the user's: not a fault of the data
        return f"crop pairs could not be drawn: {error}"
