"""``python -m benchmarks report A.json ... -o report.html``: one self-contained HTML page."""

from __future__ import annotations

import argparse
import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.convergence.table import convergence_table
from benchmarks.data.table import data_table
from benchmarks.loss.family import family_table
from benchmarks.loss.sets import sets_table
from benchmarks.loss.table import loss_table
from benchmarks.measure.results import Results
from benchmarks.step.parts_table import parts_table
from benchmarks.step.table import step_table

if TYPE_CHECKING:  # a report needs matplotlib, --help does not
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem }
pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; font-size: 12px; line-height: 1.45 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: 13px }
dt { color: #666 } dd { margin: 0; overflow-wrap: anywhere }
.figures { display: flex; flex-wrap: wrap; gap: 1rem }
.figures img { max-width: 36rem; width: 100% }
"""


def text_of(results: Results) -> str:
    """The table that the command printed."""
    if results.kind == "loss":
        return loss_table(results)
    if results.kind == "step":
        return step_table(results)
    if results.kind == "data":
        return data_table(results)
    if results.kind == "parts":
        return parts_table(results)
    if results.kind == "family":
        return family_table(results)
    if results.kind == "sets":
        return sets_table(results)
    return convergence_table(results)


def figures_of(results: Results) -> dict[str, Figure]:
    """Name -> figure, if the result has the rows for it."""
    from benchmarks.documents import law_plots, plots

    if results.kind == "loss":
        return plots.loss_figures(results) | law_plots.law_figures(results)
    if results.kind == "step":
        return plots.step_figures(results)
    if results.kind in ("parts", "data", "family", "sets"):
        return {}
    return plots.convergence_figures(results)


def _facts(results: Results) -> str:
    commit = results.commit.get("commit", "unknown")
    if results.commit.get("modified"):
        commit += " with local changes"
    facts = {
        "measured": results.created,
        "command": results.command,
        "commit": commit,
        **results.machine,
        **results.software,
        "settings": results.settings,
    }
    return "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>"
        for key, value in facts.items()
        if value not in (None, "", {}, [])
    )


def render_report(files: dict[str, Results]) -> str:
    """The page; ``files`` are results by their title."""
    from benchmarks.documents import plots

    sections = []
    for name, results in files.items():
        images = "".join(
            f'<img alt="{html.escape(figure_name)}" src="data:image/svg+xml;base64,'
            f'{base64.b64encode(plots.to_svg(figure)).decode()}">'
            for figure_name, figure in figures_of(results).items()
        )
        sections.append(
            f"<h2>{html.escape(name)}: {html.escape(results.kind)}</h2>"
            f"<dl>{_facts(results)}</dl>"
            f"<pre>{html.escape(text_of(results))}</pre>"
            f'<div class="figures">{images}</div>'
        )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>cac_ext benchmarks</title><style>{_STYLE}</style></head><body>"
        "<h1>cac_ext benchmarks</h1>"
        "<p>Times are medians of interleaved runs; every implementation was first checked against "
        "a float64 reference. Figures marked as the paper's were published by its authors and "
        "measured on their machines.</p>" + "".join(sections) + "</body></html>\n"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Turns result files into one HTML page that needs no other file."
    parser.add_argument("files", nargs="+", metavar="FILE.json")
    parser.add_argument("-o", "--output", default="report.html", help="default report.html")
    parser.add_argument(
        "--plots", metavar="FOLDER", help="also write every figure there, as PNG and as SVG"
    )


def run(arguments: argparse.Namespace) -> int:
    from benchmarks.documents import plots

    paths = [Path(file) for file in arguments.files]
    files = {}
    for path in paths:  # equal file names get their folders
        same = sum(other.stem == path.stem for other in paths) > 1
        files[f"{path.parent.name}/{path.stem}" if same else path.stem] = Results.load(path)
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render_report(files), encoding="utf-8")
    print(f"written: {output}")
    if arguments.plots:
        for name, results in files.items():
            prefix = name.replace("/", "-")
            for path in plots.save_figures(figures_of(results), Path(arguments.plots), prefix):
                print(f"written: {path}")
    return 0
