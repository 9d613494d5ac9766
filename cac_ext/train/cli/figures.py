"""The command ``cac-ext figures``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cac_ext.train.cli.common import Commands
from cac_ext.train.errors import ConfigError


def add_figure_commands(commands: Commands) -> None:
    """Adds ``figures`` to the command line's grammar."""
    figures = commands.add_parser(
        "figures",
        help="draw how context changes a network's features: t-SNE, Grad-CAM",
        description="Draws the paper's Fig. 3 and Fig. 1 for your runs, on pairs of overlapping "
        "crops of validation images. features_tsne.png: t-SNE of the overlap's features in crop 1, "
        "in crop 2, and in crop 1 with changed colors, in the colors of the classes. Also prints "
        "the mean cosine distance between a pixel's two features: compared with the distance of "
        "any two pixels, a small one means that context matters little. grad_cam.png: the regions, "
        "inside and outside the overlap, on which the class score of one pixel depends. Several "
        "runs, e.g. sup_only and cac of `cac-ext compare`, are shown on the same crops.",
    )
    figures.add_argument(
        "runs",
        metavar="RUN_FOLDER",
        nargs="+",
        help="folders of finished runs; after them key=value for changed data and device, e.g. "
        "data.root=... device=cpu",
    )
    figures.add_argument(
        "--output",
        type=Path,
        help="folder of the pictures (default: figures in the run folder; with several runs, "
        "beside the folder of the first)",
    )
    figures.add_argument(
        "--images", type=int, default=4, help="number of validation images (default: %(default)s)"
    )
    figures.add_argument(
        "--seed", type=int, default=0, help="seed of crops, pixels and t-SNE (default: %(default)s)"
    )
    figures.add_argument(
        "--pixel",
        metavar="X,Y",
        help="pixel in crop 1 of the first image for Grad-CAM, by the numbers along the crop's "
        "edges (default: the center of the overlap)",
    )
    figures.set_defaults(command=_figures, overrides=[])


def _figures(options: argparse.Namespace) -> None:
    from cac_ext.train.experiments.context_figures import draw_context_figures

    if options.images < 1:
        raise ConfigError(f"--images takes a number > 0, but got {options.images}")
    if not 0 <= options.seed < 2**32:  # the seeds that t-SNE takes
        raise ConfigError(
            f"--seed takes a number between 0 and {2**32 - 1}, but got {options.seed}"
        )
    folders = [Path(word) for word in options.runs if "=" not in word or Path(word).is_dir()]
    overrides = [word for word in options.runs if Path(word) not in folders] + options.overrides
    if not folders:
        raise ConfigError("figures needs a run folder")
    print(
        draw_context_figures(
            folders,
            overrides,
            options.output,
            images=options.images,
            seed=options.seed,
            pixel=_pixel(options.pixel),
        )
    )


def _pixel(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9},[0-9]{1,9}", text):
        raise ConfigError(f"--pixel takes X,Y, two numbers of pixels, but got {text!r}")
    x, y = text.split(",")
    return int(x), int(y)
