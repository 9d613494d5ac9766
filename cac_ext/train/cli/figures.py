"""The command ``cac-ext figures``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cac_ext.train.cli.common import Commands
from cac_ext.train.errors import ConfigError

_IMAGES = 4
_KINDS = {
    "contexts": "t-SNE and Grad-CAM, the default",
    "curves": "validation mIoU by epoch (Fig. 7)",
    "negatives": "precision of the negatives by epoch, selected and random (Fig. 6)",
    "panel": "images, truth and predictions side by side (Fig. 8)",
}
_CHANGED_DATA = ("contexts", "panel")  # kinds that read images; the others read logs alone


def add_figure_commands(commands: Commands) -> None:
    """Adds ``figures`` to the command line's grammar."""
    figures = commands.add_parser(
        "figures",
        help="draw the paper's figures for your runs: t-SNE, Grad-CAM, curves, predictions",
        description="Draws the paper's figures for any number of your runs, e.g. sup_only and cac "
        "of `cac-ext compare`. --kind curves: validation_curves.png, the validation mIoU by epoch "
        "(Fig. 7); runs whose crops overlap totally (method.iou_range=[1.0,1.0]) are marked "
        "IoU_1.0. --kind negatives: negative_precision.png, the share of true negatives among the "
        "selected ones and among random ones by epoch (Fig. 6), of runs with "
        "run.negative_precision=true. --kind panel: predictions.png, validation images, their "
        "truth and the predictions of each run (Fig. 8). --kind contexts, the default: Fig. 3 and "
        "Fig. 1, on pairs of overlapping crops of validation images. features_tsne.png: t-SNE of "
        "the overlap's features in crop 1, in crop 2, and in crop 1 with changed colors, in the "
        "colors of the classes. Also prints the mean cosine distance between a pixel's two "
        "features: compared with the distance of any two pixels, a small one means that context "
        "matters little. grad_cam.png: the regions, inside and outside the overlap, on which the "
        "class score of one pixel depends. All runs are shown on the same crops.",
    )
    figures.add_argument(
        "runs",
        metavar="RUN_FOLDER",
        nargs="+",
        help="folders of runs; for contexts and panel after them key=value for changed data and "
        "device, e.g. data.root=... device=cpu",
    )
    figures.add_argument(
        "--kind",
        choices=_KINDS,
        default="contexts",
        help="; ".join(f"{kind}: {text}" for kind, text in _KINDS.items()),
    )
    figures.add_argument(
        "--output",
        type=Path,
        help="folder of the pictures (default: figures in the run folder; with several runs, "
        "beside the folder of the first)",
    )
    figures.add_argument(
        "--images",
        type=int,
        help=f"number of validation images, for contexts and panel (default: {_IMAGES})",
    )
    figures.add_argument(
        "--seed", type=int, help="seed of crops, pixels and t-SNE, for contexts (default: 0)"
    )
    figures.add_argument(
        "--pixel",
        metavar="X,Y",
        help="pixel in crop 1 of the first image for Grad-CAM, by the numbers along the crop's "
        "edges (default: the center of the overlap)",
    )
    figures.set_defaults(command=_figures, overrides=[])


def _figures(options: argparse.Namespace) -> None:
    folders = [Path(word) for word in options.runs if "=" not in word or Path(word).is_dir()]
    overrides = [word for word in options.runs if Path(word) not in folders] + options.overrides
    if not folders:
        raise ConfigError("figures needs a run folder")
    _require_fitting_options(options, overrides)
    images = _IMAGES if options.images is None else options.images
    seed = options.seed or 0
    if images < 1:
        raise ConfigError(f"--images takes a number > 0, but got {images}")
    if not 0 <= seed < 2**32:  # the seeds that t-SNE takes
        raise ConfigError(f"--seed takes a number between 0 and {2**32 - 1}, but got {seed}")
    pixel = _pixel(options.pixel)
    print(_draw(options.kind, folders, overrides, options.output, images, seed, pixel))


def _draw(
    kind: str,
    folders: list[Path],
    overrides: list[str],
    output: Path | None,
    images: int,
    seed: int,
    pixel: tuple[int, int] | None,
) -> str:
    from cac_ext.train.experiments import context_figures, run_figures

    if kind == "curves":
        return run_figures.draw_validation_curves(folders, output)
    if kind == "negatives":
        return run_figures.draw_negative_precision(folders, output)
    if kind == "panel":
        return run_figures.draw_panel(folders, overrides, output, images=images)
    return context_figures.draw_context_figures(
        folders, overrides, output, images=images, seed=seed, pixel=pixel
    )


def _require_fitting_options(options: argparse.Namespace, overrides: list[str]) -> None:
    """ConfigError for an option that has no meaning for the kind of figure."""
    unused = [name for name in ("seed", "pixel") if options.kind != "contexts"]
    if options.kind not in _CHANGED_DATA:
        unused.append("images")
        if overrides:
            raise ConfigError(
                f"{overrides[0]}: --kind {options.kind} reads the logs of the runs alone; leave "
                "out key=value"
            )
    for name in unused:
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} has no meaning for --kind {options.kind}; leave it out")


def _pixel(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9},[0-9]{1,9}", text):
        raise ConfigError(f"--pixel takes X,Y, two numbers of pixels, but got {text!r}")
    x, y = text.split(",")
    return int(x), int(y)
