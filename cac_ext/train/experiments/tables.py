"""The paper's Tables 1 to 5, each row as overrides of a shipped configuration.

A row that this project can train has overrides; one that only the paper has figures for (other
authors' methods) has none. ``paper`` is the mIoU in percent that the paper prints: the paper's own
result, never one of this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cac_ext.train.config import nearest
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.methods import method_overrides

SOURCE = "Lai et al., CVPR 2021"


@dataclass(frozen=True)
class Row:
    """A row, or a cell of a row with several results.

    Attributes:
        name: what ``--rows`` knows it by.
        title: what tables call it.
        overrides: of the table's configuration; None where only the paper's figure is there.
        paper: mIoU in percent, or None.
    """

    name: str
    title: str
    overrides: tuple[str, ...] | None
    paper: float | None


@dataclass(frozen=True)
class Table:
    """A table: its rows are overrides on top of ``overrides`` on top of ``config``."""

    name: str
    title: str
    config: str
    overrides: tuple[str, ...]
    rows: tuple[Row, ...]

    def select(self, patterns: Sequence[str]) -> list[Row]:
        """Rows whose names match one of the shell patterns, e.g. ``pspnet-*-1_8``.

        Raises:
            ConfigError: a pattern matches nothing.
        """
        names = [row.name for row in self.rows]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"{self.name} has no row {pattern!r}{nearest(pattern, names)}; it has "
                    f"{', '.join(names)}"
                )
        return [row for row in self.rows if any(fnmatchcase(row.name, p) for p in patterns)]


def find_table(name: str) -> Table:
    """The table of that name; ConfigError if there is none."""
    if name not in TABLES:
        raise ConfigError(
            f"there is no table {name!r}{nearest(name, TABLES)}; there are {', '.join(TABLES)}"
        )
    return TABLES[name]


_RATIOS = ("1/16", "1/8", "1/4", "full")


def _network(name: str, backbone: str) -> tuple[str, ...]:
    return (f"network.name={name}", f"network.backbone={backbone}")


def _table1() -> Table:
    pspnet, deeplab50 = ("PSPNet", "ResNet50"), ("DeepLabv3+", "ResNet50")
    deeplab101 = ("DeepLabv3+", "ResNet101")
    lines = (  # as printed: method, network, mIoU at each ratio
        ("sup_only", pspnet, (57.4, 65.0, 68.3, 75.1)),
        ("CCT", pspnet, (62.2, 68.8, 71.2, 75.3)),
        ("cac", pspnet, (67.1, 71.3, 72.5, 76.4)),
        ("sup_only", deeplab50, (63.9, 68.3, 71.2, 76.3)),
        ("ECS", deeplab50, (None, 70.2, 72.6, 76.3)),
        ("cac", deeplab50, (70.1, 72.4, 74.0, 76.5)),
        ("sup_only", deeplab101, (66.4, 71.0, 73.5, 77.7)),
        ("S4GAN", deeplab101, (69.1, 72.4, 74.5, 77.3)),
        ("GCT", deeplab101, (67.2, 72.5, 75.1, 77.5)),
        ("cac", deeplab101, (72.4, 74.6, 76.3, 78.2)),
    )
    rows = []
    for method, (network, backbone), figures in lines:
        name = network.lower().replace("+", "plus")
        for ratio, figure in zip(_RATIOS, figures, strict=True):
            overrides = None
            if method in _TITLES:
                overrides = (
                    *_network(name, backbone.lower()),
                    f"data.labelled_ratio={ratio}",
                    *method_overrides(method),
                )
                if method == "cac" and backbone == "ResNet101":
                    overrides += ("method.step_save=2",)  # as in the authors' configuration
            rows.append(
                Row(
                    f"{name}-{backbone.lower()}-{method.lower()}-{ratio.replace('/', '_')}",
                    f"{_TITLES.get(method, method)}, {network} {backbone}, {ratio}",
                    overrides,
                    figure,
                )
            )
    return Table("table1", "PASCAL VOC, labelled shares", "voc", (), tuple(rows))


def _table2() -> Table:
    figures = {"sup_only": (66.0, 70.7, 77.7), "cac": (69.7, 72.7, 77.5)}
    rows = tuple(
        Row(
            f"{method}-{ratio.replace('/', '_')}",
            f"{_TITLES[method]}, {ratio}",
            (f"data.labelled_ratio={ratio}", *method_overrides(method)),
            figure,
        )
        for method, line in figures.items()
        for ratio, figure in zip(_RATIOS[1:], line, strict=True)
    )
    network = _network("deeplabv3plus", "resnet50")
    return Table("table2", "Cityscapes, labelled shares", "cityscapes", network, rows)


_ABLATION = (*_network("pspnet", "resnet50"), "data.labelled_ratio=1/8")


def _table3() -> Table:
    rows = (
        ("sup_only", "SupOnly", 64.7),
        ("self_training", "ST, self-training", 66.3),
        ("l2", "I, L2 loss", 64.2),
        ("contrastive", "II, vanilla contrastive loss", 56.4),
        ("directional", "III, directional mask", 64.8),
        ("no_filtering", "IV, no positive filtering", 71.6),
        ("no_direction", "V, no directional mask", 71.2),
        ("no_context", "VI, no context", 70.5),
        ("no_projector", "VII, no projector", 61.5),
        ("cac", "VIII, all", 72.4),
    )
    return Table(
        "table3",
        "ablation on PASCAL VOC, 1/8 labelled, PSPNet ResNet50",
        "voc",
        _ABLATION,
        tuple(Row(name, title, tuple(method_overrides(name)), miou) for name, title, miou in rows),
    )


def _table4() -> Table:
    """Negatives per GPU, of two GPUs: of two views and two steps, ``n / 4`` of each.

    ``selected_num`` is of each view and step of the whole batch, of both GPUs therefore ``n / 2``.
    An anchor meets the negatives of both GPUs, ``2 n``.
    """
    rows = (
        (500, 70.9),
        (1000, 71.0),
        (2000, 71.7),
        (6400, 71.3),
        (12800, 71.9),
        (19200, 72.4),
        (25600, 71.9),
    )
    return Table(
        "table4",
        "negatives per GPU, PASCAL VOC, 1/8 labelled, PSPNet ResNet50",
        "voc",
        (*_ABLATION, "method.step_save=1"),
        tuple(
            Row(
                f"negatives-{count}",
                f"{count} negatives per GPU",
                (f"method.selected_num={count // 2}",),
                miou,
            )
            for count, miou in rows
        ),
    )


def _table5() -> Table:
    printed = (  # other authors' methods: backbone, semi, weakly
        ("WSSN", "VGG-16", None, 64.6),
        ("GAIN", "VGG-16", None, 60.5),
        ("MDC", "VGG-16", None, 65.7),
        ("DSRG", "VGG-16", None, 64.3),
        ("Souly", "VGG-16", 64.1, 65.8),
        ("FickleNet", "ResNet-101", None, 65.8),
        ("CCT", "ResNet-50", 69.4, 73.2),
        ("CCT-reproduced", "ResNet-50", 72.8, 74.6),
    )
    rows = []
    for method, backbone, *figures in printed:
        for setting, figure in zip(("semi", "weakly"), figures, strict=True):
            if figure is not None:
                name = f"{method}-{backbone}-{setting}".lower()
                rows.append(Row(name, f"{method}, {backbone}, {setting}", None, figure))
    for backbone, network, figures in (
        ("VGG-16", _network("pspnet", "vgg16"), (68.7, 69.3)),
        ("ResNet-50", _network("pspnet", "resnet50"), (74.5, 76.1)),
    ):
        settings = (("semi", "cac"), ("weakly", "weak"))
        for (setting, method), figure in zip(settings, figures, strict=True):
            rows.append(
                Row(
                    f"cac-{backbone}-{setting}".lower(),
                    f"Ours, {backbone}, {setting}",
                    (*network, *method_overrides(method)),
                    figure,
                )
            )
    # VOC's own 1,464 training images have masks, SBD's 9,118 others image-level labels (4.4).
    lists = ("data.labelled_list=ImageSets/Segmentation/train.txt",)
    return Table("table5", "PASCAL VOC with image-level labels", "voc", lists, tuple(rows))


#: What the paper calls the methods of this project.
_TITLES = {"sup_only": "SupOnly", "cac": "Ours"}

TABLES = {table.name: table for table in (_table1(), _table2(), _table3(), _table4(), _table5())}
