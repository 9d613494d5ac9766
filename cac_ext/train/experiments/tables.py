"""The paper's Tables 1 to 5, each row as overrides of a shipped configuration.

A row that this project can train has overrides; a row of another author's method has none.
``paper`` is the mIoU in percent that the paper prints, never a result of this project.
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
        name: for ``--rows``.
        title: for the printed table.
        overrides: of the table's configuration; None if only the paper's figure is known.
        paper: mIoU in percent, or None.
    """

    name: str
    title: str
    overrides: tuple[str, ...] | None
    paper: float | None


@dataclass(frozen=True)
class Table:
    """A table. A row's configuration is ``config`` with ``overrides`` and then the row's own."""

    name: str
    title: str
    config: str
    overrides: tuple[str, ...]
    rows: tuple[Row, ...]

    def select(self, patterns: Sequence[str]) -> list[Row]:
        """The rows whose names match a shell pattern, e.g. ``pspnet-*-1_8``.

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
        ("cct", pspnet, (62.2, 68.8, 71.2, 75.3)),
        ("cac", pspnet, (67.1, 71.3, 72.5, 76.4)),
        ("sup_only", deeplab50, (63.9, 68.3, 71.2, 76.3)),
        ("ecs", deeplab50, (None, 70.2, 72.6, 76.3)),
        ("cac", deeplab50, (70.1, 72.4, 74.0, 76.5)),
        ("sup_only", deeplab101, (66.4, 71.0, 73.5, 77.7)),
        ("s4gan", deeplab101, (69.1, 72.4, 74.5, 77.3)),
        ("gct", deeplab101, (67.2, 72.5, 75.1, 77.5)),
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
    """``n`` negatives per GPU on two GPUs: ``n / 4`` from each of two views and two steps.

    ``selected_num`` counts those of both GPUs from one view and step, ``n / 2``. An anchor meets
    the ``2 n`` negatives of both GPUs.
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


#: The recipe of CCT's authors: no warm-up, 10 + 10 images, 9,118 / 10 steps, equal scales.
_CCT_RECIPE = (
    "schedule.warmup_epochs=0",
    "schedule.labelled_batch=10",
    "schedule.unlabelled_batch=10",
    "schedule.iterations_per_epoch=912",
    "augment.unlabelled_scale=[0.5,2.0]",
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
    trained = {"CCT": _CCT_RECIPE, "CCT-reproduced": ()}
    for method, backbone, semi, weakly in printed:
        for setting, figure in (("semi", semi), ("weakly", weakly)):
            if figure is not None:
                name = f"{method}-{backbone}-{setting}".lower()
                overrides = None
                if method in trained:
                    overrides = (
                        *_network("pspnet", "resnet50"),
                        *method_overrides("cct"),
                        *trained[method],
                        *(("weak.pseudo_labels=auto",) if setting == "weakly" else ()),
                    )
                rows.append(Row(name, f"{method}, {backbone}, {setting}", overrides, figure))
    for backbone, network, *ours in (
        ("VGG-16", _network("pspnet", "vgg16"), ("semi", "cac", 68.7), ("weakly", "weak", 69.3)),
        (
            "ResNet-50",
            _network("pspnet", "resnet50"),
            ("semi", "cac", 74.5),
            ("weakly", "weak", 76.1),
        ),
    ):
        for setting, method, figure in ours:
            rows.append(
                Row(
                    f"cac-{backbone}-{setting}".lower(),
                    f"Ours, {backbone}, {setting}",
                    (*network, *method_overrides(method)),
                    figure,
                )
            )
    # VOC's own 1,464 training images have masks, the 9,118 of SBD image-level labels (section 4.4).
    lists = ("data.labelled_list=ImageSets/Segmentation/train.txt",)
    return Table("table5", "PASCAL VOC with image-level labels", "voc", lists, tuple(rows))


#: The paper's names of this project's methods.
_TITLES = {
    "sup_only": "SupOnly",
    "cac": "Ours",
    "cct": "CCT",
    "ecs": "ECS",
    "gct": "GCT",
    "s4gan": "S4GAN",
}

TABLES = {table.name: table for table in (_table1(), _table2(), _table3(), _table4(), _table5())}


def list_tables() -> str:
    """A line for each table: its title, how many rows can be trained, and its configuration."""
    lines = []
    for table in TABLES.values():
        count = sum(row.overrides is not None for row in table.rows)
        lines.append(f"{table.name}  {table.title}: {count} rows to train, base {table.config}")
    return "\n".join(lines)


def list_rows(table: Table) -> str:
    """A line for each row of a table: the paper's mIoU and the row's overrides."""
    width = max(len(row.name) for row in table.rows)
    lines = [f"{table.title}; base {table.config} {' '.join(table.overrides)}"]
    for row in table.rows:
        paper = "    -" if row.paper is None else f"{row.paper:5.1f}"
        changes = "(not trained here)" if row.overrides is None else " ".join(row.overrides)
        lines.append(f"{row.name:{width}}  paper {paper}  {changes}".rstrip())
    return "\n".join(lines)
