"""One page of all results of a run: every picture, and one table of our numbers beside the paper's.

The page is made of the JSON, pictures and provenance of the results alone. Nothing is computed again, and the table
also lists artifacts that were not run.
"""

import base64
import html
import json
import os
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from hbench.config import Experiment
from hbench.errors import HBenchError, counted
from hbench.evaluation.curves import TrainingCurves, differences
from hbench.evaluation.mos.score import MosScore
from hbench.experiments import paper_of
from hbench.reporting.artifact import Artifact
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.charts.figure import NothingToDrawError
from hbench.reporting.highlights import Highlight
from hbench.reporting.lookup import NOTHING, Found, look
from hbench.reporting.rows import Comparison, Named, Row
from hbench.store.files import sha256, write_text
from hbench.store.metrics import FILE as METRICS
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance
from hbench.store.records import Record
from hbench.store.registry import credit_of
from hbench.store.run_files import ROLES, WEIGHTS, origin_of_training, run_hashes

EXPLORER = "explore.html"
"""Name of the page in which a reader moves directions by sliders."""
GENERATED = "not to be edited"
"""Words in every summary, by which it is known before it is replaced."""
TELLING = 5
"""Number of telling numbers of each run in the head of the page."""
REASONS = "not-run.json"
"""Name of the file with the reasons why artifacts are missing; a reproduction writes it."""


@dataclass(frozen=True)
class Section:
    """One result on the page."""

    artifact: Artifact
    paper: str
    """Number or statement of the paper; empty if it has none."""
    highlights: list[Highlight]
    rows: list[Row]
    pictures: list[Path]
    named: list[Named]
    comparison: Comparison | None
    cautions: list[str]
    """What a reader must know before trusting the numbers."""
    provenance: Path
    """File of the provenance."""
    origin: Provenance


@dataclass(frozen=True)
class Report:
    """The results in one folder. An experiment that was not run has no folder and no section."""

    folder: Path | None
    experiment: Experiment
    rows: list[Row]
    sections: list[Section]


@dataclass(frozen=True, kw_only=True)
class NotRun(Record):
    """The reasons why artifacts are missing."""

    reasons: dict[str, str]
    """Reasons by the artifact's folder."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the reasons of hbench 0.1, which were the whole file."""
        return {"reasons": values}

    @classmethod
    def _kind(cls) -> str:
        return "list of what was not run"


@dataclass(frozen=True, kw_only=True)
class Reproduced(Record):
    """The experiment and the weights that everything in a folder of results is made of."""

    experiment: dict[str, Any]
    """Settings of the experiment."""
    weights_sha256: dict[str, str]
    """SHA-256 of the run's weights, by role; empty if they are trained first."""


@dataclass(frozen=True, kw_only=True)
class ReportTable(Record):
    """The table of a report, with our numbers beside the paper's."""

    rows: list[dict[str, Any]]


def collect(path: str | Path) -> Report:
    """Return the results of a run, of the run in an experiment's folder, or in a folder of results alone.

    Args:
        path: folder, or the name of a shipped run.

    Raises:
        HBenchError: no result of hbench, results of different weights, or a damaged one.
    """
    looked = look(path)
    folder, experiment = looked.place.folder, looked.experiment
    if not looked.found:
        raise HBenchError(f"{folder}: {NOTHING}")
    if trained := looked.place.weights or _weights_at_hand(folder):
        check_measured(trained, looked.found)
    measured = {each.folder.name: each.origin.measured for each in looked.found if each.artifact.of_run}
    if _disagree(measured.values()):
        raise HBenchError(f"{folder}: {', '.join(measured)} are of different weights: make them again")
    reasons = NotRun.read(folder / REASONS).reasons if (folder / REASONS).is_file() else {}
    rows, sections = [], []
    for artifact in [each for each in ARTIFACTS if each.on_page]:
        found = [each for each in looked.found if each.artifact is artifact]
        for each in found:
            lines, section = _read(each, experiment)
            rows += lines
            sections.append(section)
        if not found and (artifact.folder in reasons or (artifact.item and artifact.suits(experiment.data))):
            missing = looked.left_out.get(artifact.folder, f"no {artifact.folder}/ in {folder}")
            default = f"{missing}: {looked.advice(artifact)}"
            rows.append(_missing(artifact, experiment, reasons.get(artifact.folder, default)))
    return Report(folder, experiment, rows, sections)


def _disagree(measured: Collection[Mapping[str, str]]) -> bool:
    """Return whether results are of different weights: another file in a role, or no word beside others' words."""
    known = [weights for weights in measured if weights]
    last = {role: digest for weights in known for role, digest in weights.items()}
    return 0 < len(known) < len(measured) or any(not weights.items() <= last.items() for weights in known)


def _weights_at_hand(folder: Path) -> Path | None:
    """Return the folder of the training whose results lie in a folder; None where its weights are elsewhere."""
    own = ("experiment.json", PROVENANCE, *(f"{role}{WEIGHTS}" for role in ROLES))
    return next((each for each in (folder, folder / "train") if any((each / name).is_file() for name in own)), None)


def check_measured(run: Path, results: Iterable[Found]) -> None:
    """Raise an HBenchError where results are of other weights, or of another log, than those in the run's folder.

    Args:
        run: folder of the run.
        results: results that lie beside it.

    Raises:
        HBenchError: the message names the results, or the files of the run that do not belong together.
    """
    if not any((run / f"{role}{WEIGHTS}").is_file() for role in ROLES):  # its results were kept, and no weights
        origin_of_training(run)
        return
    hashes = run_hashes(run)
    log = sha256(run / METRICS) if (run / METRICS).is_file() else None
    stale = [each for each in results if not _is_of(each.artifact, each.origin, hashes, log)]
    if stale:
        names = ", ".join(each.name for each in stale)
        commands = " and ".join(dict.fromkeys(f'"hbench {each.artifact.command}"' for each in stale))
        it = "it" if len(stale) == 1 else "them"
        raise HBenchError(
            f"{names}: of other weights than those in {run}: remove {it}, and make {it} again by {commands}"
        )


def _is_of(artifact: Artifact, origin: Provenance, hashes: Mapping[str, str], log: str | None) -> bool:
    """Return whether a result is of these weights and this log, as far as its provenance tells."""
    runs = origin.details.get("runs")
    if artifact.result is TrainingCurves:
        return not log or log in [each.get("metrics_sha256") for each in runs or ()]
    if artifact.result is MosScore:
        return not runs or hashes in [each.get("weights_sha256") for each in runs.values()]
    return not artifact.of_run or origin.is_of(hashes)


def redraw(path: str | Path) -> list[Path]:
    """Draw the charts on a page anew and return their paths; pictures of images stay as they are.

    Nothing is computed again: a chart shows the numbers of its result's JSON.

    Args:
        path: folder, or the name of a shipped run, as :func:`collect` takes it.

    Raises:
        HBenchError: a damaged result.
    """
    drawn = []
    for found in look(path).found:
        result = found.artifact.result.load(found.folder)
        for name, chart in found.artifact.charts.items():
            with suppress(NothingToDrawError):
                chart(result, found.folder / name)
                drawn.append(found.folder / name)
    return drawn


def _read(found: Found, experiment: Experiment) -> tuple[list[Row], Section]:
    """Return the lines of the table and the section of the page for one result."""
    artifact, folder, origin = found.artifact, found.folder, found.origin
    result = artifact.result.load(folder, f'make it again with "hbench {artifact.command}"')
    file = folder / PROVENANCE
    rows = [
        replace(
            row,
            artifact=f"{row.artifact}{found.suffix}",
            provenance=file,
            experiment=origin.title or experiment.title,
        )
        for row in artifact.rows(result, paper_of(experiment))
    ]
    pictures = sorted(folder.glob("*.png"))
    known = [folder / name for name in artifact.charts if folder / name in pictures]
    section = Section(
        replace(artifact, title=f"{artifact.title}{found.suffix}", folder=found.name),
        artifact.published(paper_of(experiment)),
        artifact.highlights(result, paper_of(experiment)),
        rows,
        pictures=[*known, *(path for path in pictures if path not in known)],
        named=artifact.named(result),
        comparison=artifact.comparison(result),
        cautions=result.cautions(),
        provenance=file,
        origin=origin,
    )
    return rows, section


def not_run(experiment: Experiment, reason: str) -> Report:
    """Return the report of an experiment that was not run: the paper's numbers, and the reason."""
    wanted = [artifact for artifact in ARTIFACTS if artifact.published(paper_of(experiment))]
    return Report(None, experiment, [_missing(artifact, experiment, reason) for artifact in wanted], [])


def _missing(artifact: Artifact, experiment: Experiment, reason: str) -> Row:
    published, reason = artifact.published(paper_of(experiment)), f"not run: {reason}"
    return Row(artifact.title, artifact.item, published, reason, ran=False, experiment=experiment.title)


def write_pages(reports: Sequence[Report], out: Path) -> None:
    """Write ``report.html``, one file that needs no other, ``report.md``, and the table as CSV and JSON."""
    import pandas as pd

    page = {
        "reports": reports,
        "names": distinct_names(reports),
        "numbers": head(reports),
        "differences": differences([report.experiment for report in reports]),
        "origin": origins(reports),
        "explorers": explorers(reports, out),
    }
    write_text(out / "report.html", html_template("report.html").render(page))
    write_text(out / "report.md", markdown_page("report.md", out, **page))
    table = [
        {"experiment": row.experiment}
        | asdict(row)
        | {"provenance": os.path.relpath(row.provenance, out) if row.provenance else ""}
        for r in reports
        for row in r.rows
    ]
    ReportTable(rows=table).write(out / "report.json")
    write_text(out / "report.csv", pd.DataFrame(table).to_csv(index=False))


def explorers(reports: Sequence[Report], out: Path) -> dict[str, str]:
    """Return the pages of ``hbench explore`` that lie beside the results, by heading, as links from ``out``."""
    found = {}
    for name, report in zip(distinct_names(reports), reports, strict=True):
        if report.folder and (page := report.folder / "explore" / EXPLORER).is_file():
            found[name] = quote(os.path.relpath(page, out))
    return found


def html_template(name: str) -> Template:
    """Return the template of a page that needs no other file: pictures are put into it."""
    environment = Environment(autoescape=True, **_TEMPLATES)
    environment.filters |= {"picture": _inline, "facts": _facts}
    return environment.get_template(name)


def distinct_names(reports: Sequence[Report]) -> list[str]:
    """Return a heading for each report: its experiment's title, and the end of its folder's path where titles agree."""
    titles = [report.experiment.title for report in reports]
    paths = [report.folder.resolve().parts if report.folder else () for report in reports]
    names = []
    for title, path in zip(titles, paths, strict=True):
        others = [paths[i] for i, other in enumerate(titles) if other == title and paths[i] != path]
        words = 1
        while any(other[-words:] == path[-words:] for other in others):
            words += 1
        names.append(f"{title} ({'/'.join(path[-words:])})" if path and titles.count(title) > 1 else title)
    return names


def head(reports: Sequence[Report]) -> dict[str, list[Highlight | None]]:
    """Return the most telling numbers by their names, one of each report; None where a report lacks it."""
    found = [_telling(report) for report in reports]
    names = dict.fromkeys(chain.from_iterable(found))
    return {name: [numbers.get(name) for numbers in found] for name in names}


def _telling(report: Report) -> dict[str, Highlight]:
    """Return the first telling numbers by their names; of several results the one of most samples counts."""
    found: dict[str, tuple[int, Highlight]] = {}
    for section in report.sections:
        n = section.origin.details.get("n") or 0
        for each in section.highlights:
            if each.name not in found or n > found[each.name][0]:
                found[each.name] = n, each
    return {name: each for name, (_, each) in islice(found.items(), TELLING)}


def origins(reports: Sequence[Report]) -> dict[str, list[str]]:
    """Return dates, machines, commits and versions of all results, each value once."""
    found = [section.origin for report in reports for section in report.sections]
    dates = sorted(origin.started_utc[:10] for origin in found)
    commits = [
        f"{origin.git.commit[:8]}{' with uncommitted changes' * origin.git.dirty}" if origin.git else "not a checkout"
        for origin in found
    ]
    values = {
        "images": [credit for report in reports if (credit := credit_of(report.experiment.data))],
        "measured": [" to ".join(dict.fromkeys([dates[0], dates[-1]]))] if dates else [],
        "machine": [f"{origin.device}, {counted(origin.threads, 'thread')}" for origin in found],
        "hbench": [str(origin.versions.get("hbench")) for origin in found],
        "commit": commits,
    }
    return {name: list(dict.fromkeys(of)) for name, of in values.items()}


def write_summary(reports: Sequence[Report], file: Path, command: str) -> None:
    """Write one Markdown table of all experiments, our numbers beside the paper's; each row links its provenance.

    The table has the artifacts of the paper; the reports have the others too.

    Raises:
        HBenchError: the file holds something else.
    """
    if file.exists() and GENERATED not in file.read_text(encoding="utf-8", errors="replace"):
        raise HBenchError(f"{file}: holds something else than such a table: choose another `summary`")
    write_text(
        file, markdown_page("summary.md", file.parent, reports=reports, names=distinct_names(reports), command=command)
    )


def markdown_page(template: str, folder: Path, **values: Any) -> str:
    """Return a page of Markdown for a folder, to which its links are relative."""
    environment = Environment(autoescape=False, **_TEMPLATES)
    environment.filters |= {"plain": _markdown, "code": _code, "address": quote}
    environment.filters["relative"] = lambda path: os.path.relpath(path, folder)
    return environment.get_template(template).render(**values)


_TEMPLATES: dict[str, Any] = {
    "loader": PackageLoader("hbench.reporting"),
    "undefined": StrictUndefined,
    "trim_blocks": True,
    "lstrip_blocks": True,
}


# Text of the pages ---------------------------------------------------------------------------------------------------


def _inline(path: Path) -> dict[str, Any]:
    """Return a PNG file's data in base64, with its width and height in pixels.

    Raises:
        HBenchError: the file is no PNG.
    """
    data = path.read_bytes()
    if len(data) < 24 or not data.startswith(b"\x89PNG"):
        raise HBenchError(f"{path}: no picture in PNG: remove it, or make the result again")
    width, height = struct.unpack(">II", data[16:24])  # of the header, which is the first chunk
    return {"data": base64.b64encode(data).decode(), "width": width, "height": height}


def _facts(origin: Provenance) -> list[tuple[str, str]]:
    git = origin.git
    facts = {
        "started": f"{origin.started_utc} UTC, took {origin.wall_seconds:,.0f} s",
        "device": f"{origin.device}, {counted(origin.threads, 'thread')}"
        + (f", driver {d}" if (d := origin.driver) else ""),
        "seed": "none: nothing is random" if origin.seed is None else str(origin.seed),
        "commit": f"{git.commit}{' with uncommitted changes' if git.dirty else ''}" if git else "not a checkout",
        "versions": ", ".join(f"{name} {version}" for name, version in origin.versions.items()),
        "processes": str(origin.processes),
        "backend": json.dumps(origin.backend),
        "experiment": json.dumps(origin.experiment),
    }
    if origin.pieces:
        facts["pieces"] = json.dumps([asdict(piece) for piece in origin.pieces])
    return list((facts | {name: json.dumps(value) for name, value in origin.details.items()}).items())


def _code(text: str) -> str:
    """Return text that does not end a code span of Markdown."""
    return " ".join(text.split()).replace("`", "'")


def _markdown(text: str) -> str:
    """Return text that is plain text in Markdown: one line, without HTML, links and borders of a table."""
    return html.escape(_code(text), quote=False).replace("|", "\\|").replace("](", "]\\(")
