"""The command ``cac-ext figures``: the paper's Fig. 1 and 3 of runs of one's own."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from cac_ext.train.errors import ConfigError


def add_figure_commands(commands: argparse._SubParsersAction) -> None:
    """Adds ``figures`` to the command line's grammar."""
    figures = commands.add_parser(
        "figures",
        help="what context does to a network's features: t-SNE, Grad-CAM",
        description="The paper's Fig. 3 and Fig. 1 of runs: of validation images, two crops that "
        "overlap. features_tsne.png: t-SNE of the overlap's features in the one crop, in the other "
        "and under a low-level augmentation, coloured by class, with the mean cosine distance of "
        "a pixel's two features; the smaller it is beside that of any two pixels, the less depends "
        "on context. grad_cam.png: "
        "the regions that one pixel's class score depends on, inside and outside the overlap. "
        "Several runs, e.g. sup_only and cac of `cac-ext compare`, are shown on the same crops.",
    )
    figures.add_argument(
        "runs",
        metavar="RUN_FOLDER",
        nargs="+",
        help="of `cac-ext train`; behind them key=value, where data and device are now, e.g. "
        "data.root=... device=cpu",
    )
    figures.add_argument(
        "--output",
        type=Path,
        help="folder of the pictures (default: figures in the run folder; of several runs, in the "
        "folder in which the first one lies)",
    )
    figures.add_argument(
        "--images", type=int, default=4, help="validation images (default: %(default)s)"
    )
    figures.add_argument(
        "--seed", type=int, default=0, help="of crops, pixels and t-SNE (default: %(default)s)"
    )
    figures.add_argument(
        "--pixel",
        metavar="X,Y",
        help="of the first image's crop 1, for Grad-CAM; the numbers along its edges help "
        "(default: the overlap's centre)",
    )
    figures.set_defaults(command=_figures, overrides=[])


def _figures(options: argparse.Namespace) -> None:
    from cac_ext.train.data import build_datasets
    from cac_ext.train.figures.contexts import draw_crops, grad_cam_figure, tsne_figure
    from cac_ext.train.runs.folder import load_run, require_same_classes
    from cac_ext.train.runtime.progress import Progress

    if options.images < 1:
        raise ConfigError(f"--images takes a number > 0, but got {options.images}")
    if not 0 <= options.seed < 2**32:  # what t-SNE takes
        raise ConfigError(f"--seed takes a number within 0 and {2**32 - 1}, but got {options.seed}")
    pixel = _pixel(options.pixel)
    folders = [Path(word) for word in options.runs if "=" not in word or Path(word).is_dir()]
    overrides = [word for word in options.runs if Path(word) not in folders] + options.overrides
    if not folders:
        raise ConfigError("figures needs a run folder")
    runs = {title: load_run(folder, overrides) for title, folder in _titled(folders).items()}
    first = next(iter(runs.values()))
    splits = build_datasets(first.config.data)
    grid = first.network.pooled_grid
    for title, run in runs.items():
        require_same_classes(run, splits)
        if run.network.pooled_grid != grid:
            raise ConfigError(
                f"{title} has features every {run.network.pooled_grid.stride} pixels, but the "
                f"first run every {grid.stride}: they cannot be compared on the same crops"
            )
    networks = {title: run.network for title, run in runs.items()}
    crops = draw_crops(first.config, splits, grid, options.images, options.seed)
    output = options.output or (folders[0] if len(runs) == 1 else folders[0].parent) / "figures"
    output.mkdir(parents=True, exist_ok=True)
    steps = Progress(total=2, desc="figures", unit="picture", leave=False)
    figure = grad_cam_figure(splits, networks, crops, pixel)
    figure.savefig(output / "grad_cam.png", dpi=110)
    steps.update()
    figure, distances = tsne_figure(splits, networks, crops, options.seed)
    figure.savefig(output / "features_tsne.png", dpi=110)
    steps.close()
    width = max(map(len, networks))
    print("mean cosine distance of a pixel's features in crop 1 from its own in crop 2, in crop 1")
    print(f"recoloured, and from any other pixel's; overlaps of {len(crops)} images")
    print(f"{'':{width}}  crop 2  recoloured  any other")
    for title, of in distances.items():
        print(f"{title:{width}}  {of.context:6.4f}  {of.recolored:10.4f}  {of.any_two:9.4f}")
    print(f"{output / 'features_tsne.png'}\n{output / 'grad_cam.png'}")


def _titled(folders: list[Path]) -> dict[str, Path]:
    """Runs by their folders' names; by the whole path where names are the same."""
    named = {folder.resolve().name: folder for folder in folders}
    if len(named) == len(folders):
        return named
    return {str(folder): folder for folder in folders}


def _pixel(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9},[0-9]{1,9}", text):
        raise ConfigError(f"--pixel takes X,Y, two numbers of pixels, but got {text!r}")
    x, y = text.split(",")
    return int(x), int(y)
