"""The paper's Fig. 1 and 3 for finished runs, all on the same crops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cac_ext.train.data import build_datasets
from cac_ext.train.errors import ConfigError
from cac_ext.train.experiments.figure_folders import output_folder, titled
from cac_ext.train.figures.contexts import draw_crops, grad_cam_figure, tsne_figure
from cac_ext.train.runs.folder import load_run, require_same_classes
from cac_ext.train.runtime.progress import Progress
from cac_ext.train.runtime.text_tables import aligned_table

_DPI = 110


def draw_context_figures(
    folders: Sequence[Path],
    overrides: Sequence[str],
    output: Path | None = None,
    *,
    images: int,
    seed: int,
    pixel: tuple[int, int] | None = None,
) -> str:
    """Writes ``features_tsne.png`` and ``grad_cam.png``; returns a table of mean distances.

    Args:
        folders: of the runs.
        overrides: ``key=value`` of data and device, for all runs.
        output: folder of the pictures; by default ``figures`` in the run folder, or beside the
            folder of the first of several runs.
        images: number of validation images.
        seed: of crops, pixels and t-SNE.
        pixel: x, y in crop 1 of the first image, for Grad-CAM.

    Raises:
        UserError: a run cannot be read, or the runs cannot be compared.
    """
    runs = {title: load_run(folder, overrides) for title, folder in titled(folders).items()}
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
    crops = draw_crops(first.config, splits, grid, images, seed)
    output = output_folder(folders, output)
    output.mkdir(parents=True, exist_ok=True)
    steps = Progress(total=2, desc="figures", unit="picture", leave=False)
    figure = grad_cam_figure(splits, networks, crops, pixel)
    figure.savefig(output / "grad_cam.png", dpi=_DPI)
    steps.update()
    figure, distances = tsne_figure(splits, networks, crops, seed)
    figure.savefig(output / "features_tsne.png", dpi=_DPI)
    steps.close()
    rows = [
        [title, *(f"{value:.4f}" for value in (of.context, of.recolored, of.any_two))]
        for title, of in distances.items()
    ]
    return "\n".join(
        [
            "mean cosine distance between a pixel's features in crop 1 and in crop 2, in the "
            "recolored",
            f"crop 1, and between any two pixels in crop 1; overlaps of {len(crops)} images",
            aligned_table(["", "crop 2", "recolored", "any other"], rows),
            f"{output / 'features_tsne.png'}",
            f"{output / 'grad_cam.png'}",
        ]
    )
