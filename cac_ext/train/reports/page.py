"""A report: from run folders to one HTML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import cac_ext
from cac_ext.train.errors import ConfigError, listed
from cac_ext.train.experiments.figure_folders import titled
from cac_ext.train.reports import charts, sections
from cac_ext.train.reports.facts import RunFacts, read_facts
from cac_ext.train.reports.pictures import PictureGroup, draw_pictures
from cac_ext.train.runtime.whole_files import write_text_whole

_SUFFIXES = (".html", ".htm")
#: In the first lines of every report: a file without it is not overwritten.
_GENERATOR = '<meta name="generator" content="cac-ext report">'


@dataclass(frozen=True)
class Report:
    """A report that has been written.

    Attributes:
        path: of the HTML file.
        missing: a sentence for each thing that the runs do not give; the page has them too.
    """

    path: Path
    missing: Sequence[str]


def write_report(
    runs: Sequence[str | Path] | str | Path,
    output: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    images: int = 4,
) -> Report:
    """Writes one HTML page about runs, as ``cac-ext report``; it needs no other file.

    The page has the results, curves, IoU of each class, confusion matrices, predictions of
    validation images, precision of the negatives, time and memory, changed settings and the
    environment, with a column for each run. A run may still be training.

    Args:
        runs: folders of runs, or a single one.
        output: the HTML file; by default ``report.html`` in the folder of the only run, or beside
            that of the first. An earlier report is replaced, any other file is not.
        overrides: ``key=value`` of data, evaluation and device for the predictions:
            ``["data.root=..."]``.
        images: number of validation images that are predicted; 0 for none. If they cannot be, the
            page has the picture that the run drew at its end.

    Raises:
        ConfigError: a folder is no run folder, or ``output`` cannot be taken.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    folders = list({folder.resolve(): folder for folder in folders}.values())
    if not folders:
        raise ConfigError("a report needs a run folder, or several")
    if images < 0:
        raise ConfigError(f"--images takes a number from 0 up, but got {images}")
    path = _target(folders, None if output is None else Path(output))
    facts = [read_facts(title, folder) for title, folder in titled(folders).items()]
    missing = [(sentence, run.title) for run in facts for sentence in run.missing]
    groups: list[PictureGroup] = []
    if images:
        groups, failures = draw_pictures(facts, overrides, images)
        missing += [(f"predictions: {text}", facts[k].title) for k, text in failures.items()]
    sentences = _by_sentence(missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, _render(facts, groups, sentences))
    return Report(path, sentences)


def _by_sentence(missing: Sequence[tuple[str, str]]) -> list[str]:
    """Each sentence once, behind the titles of the runs of which it is true."""
    titles: dict[str, list[str]] = {}
    for sentence, title in missing:
        titles.setdefault(sentence, []).append(title)
    return [f"{listed(of_runs)}: {sentence}" for sentence, of_runs in titles.items()]


def _target(folders: Sequence[Path], output: Path | None) -> Path:
    """The file to write; ConfigError if it is something else than an earlier report."""
    path = output
    if path is None:
        path = (folders[0] if len(folders) == 1 else folders[0].parent) / "report.html"
    if path.is_dir():
        raise ConfigError(
            f"--output {path} is a folder: give the name of a file in it, such as "
            f"{path / 'report.html'}"
        )
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"--output {path} must end in .html, so that a browser opens it: give "
            f"{path.with_name(f'{path.name}.html')}"
        )
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            if _GENERATOR not in file.read(1000):
                raise ConfigError(
                    f"{path} exists and is no report of cac-ext, so it is not overwritten: give "
                    "another --output"
                )
    return path


def _breakable(text: str) -> Markup:
    """The escaped text, with places in keys and paths where a line may end."""
    parts = re.split(r"(?<=[./_-])(?=[A-Za-z])", text)
    return Markup("<wbr>").join(parts)


def _render(
    runs: Sequence[RunFacts], groups: Sequence[PictureGroup], missing: Sequence[str]
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    negatives, without_negatives = sections.negative_charts(runs)
    return environment.get_template("page.html").render(
        generator=_GENERATOR,
        title=runs[0].title if len(runs) == 1 else f"{len(runs)} runs",
        runs=runs,
        looks=[charts.look_of(number) for number in range(len(runs))],
        width=charts.WIDTH,
        height=charts.HEIGHT,
        missing=missing,
        summary=sections.summary(runs),
        validation=sections.validation_charts(runs),
        classes=sections.class_tables(runs),
        groups=groups,
        confusions=sections.confusions(runs),
        training=sections.training_charts(runs),
        negatives=negatives,
        without_negatives=without_negatives,
        costs=sections.costs(runs),
        cost_charts=sections.cost_charts(runs),
        settings=sections.settings(runs),
        whole_settings=sections.whole_settings(runs),
        environment=sections.environment(runs),
        version=cac_ext.__version__,
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    )
