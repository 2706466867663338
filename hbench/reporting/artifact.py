"""What the pages and commands know about an artifact, and the command lines that make it."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbench.config import Data, Experiment, Paper
from hbench.experiments import changes, known_experiments
from hbench.reporting.highlights import Highlight
from hbench.reporting.rows import Comparison, Named, Row
from hbench.store.registry import needs_root
from hbench.store.results import Result

Chart = Callable[[Any, Path], None]
"""Function (result, path) that draws a result as a PNG file."""


@dataclass(frozen=True)
class Artifact:
    """One artifact: its folder, result class, item of the paper, command, table rows and charts."""

    folder: str
    """Folder of the result, inside the run's."""
    result: type[Result]
    """Class of the result."""
    title: str
    """Heading on the page."""
    item: str
    """Item of the paper: "Table 1", "Fig. 4"; empty if the paper has none."""
    command: str
    """Command that makes it, after ``hbench``, with the options without which it makes another artifact."""
    rows: Callable[[Any, Paper], list[Row]]
    """Function (result, paper) -> lines of the table."""
    charts: Mapping[str, Chart] = field(default_factory=dict)
    """Function that draws each picture, by its file's name; the first is the main one."""
    caption: str = ""
    """One sentence that explains the terms of its pictures and of its rows of the table."""
    seen: Mapping[str, str] = field(default_factory=dict)
    """What each picture shows, by its file's name, for readers who do not see it."""
    highlights: Callable[[Any, Paper], list[Highlight]] = lambda *_: []
    """Function (result, paper) -> its most telling numbers."""
    published: Callable[[Paper], str] = lambda _: ""
    """Function (paper) -> number of the paper, for artifacts that were not run."""
    named: Callable[[Any], list[Named]] = lambda _: []
    """Function (result) -> its directions that have a name."""
    comparison: Callable[[Any], Comparison | None] = lambda _: None
    """Function (result) -> table of its trainings side by side, if it compares trainings."""
    arguments: str = "{run}"
    """Arguments of the command, in which ``{run}``, ``{experiment}``, ``{variants}``, the experiment of ablations, and
    ``{data}``, the option for the images' folder, stand for those of the page."""
    needs: Callable[[Data], tuple[str, str] | None] = lambda _: None
    """Function (kind of images) -> folder of the artifact that must be there first, and the command with arguments that
    makes it; None where one command is enough."""
    of_run: bool = False
    """True if it measures the run's weights; its provenance then has their SHA-256 as ``weights_sha256``."""
    of_experiment: bool = False
    """True if it is made of the experiment alone, in the folder of which it then lies."""
    suits: Callable[[Data], bool] = lambda _: True
    """Function (kind of images) -> True if there is such a result of them."""
    on_page: bool = True
    """True if the page of a run shows it."""


def command_lines(
    artifact: Artifact, experiment: Experiment, *, run: str, folder: Path, out: Path | None = None
) -> list[str]:
    """Return the command lines that make an artifact of a run: the one that comes first if it needs one, and its own.

    Args:
        artifact: artifact to make.
        experiment: experiment of the run.
        run: RUN as commands take it.
        folder: folder of the run's results.
        out: folder for the result, where the default one does not serve.
    """
    known = known_experiments()
    small = f"{experiment.name}-ablations"
    words = {
        "run": shlex.quote(run),
        "experiment": _experiment_words(experiment, experiment.name),
        "variants": _experiment_words(experiment, small if small in known else experiment.name),
        "data": " --data-root DATA" if needs_root(experiment.data) else "",
        "mos": shlex.quote(str(folder / "mos")),
    }
    needed = artifact.needs(experiment.data)
    templates = [needed[1]] if needed else []
    lines = [f"hbench {each.format(**words)}" for each in (*templates, f"{artifact.command} {artifact.arguments}")]
    if out:
        lines[-1] += f" --out {shlex.quote(str(out))}"
    return lines


def _experiment_words(experiment: Experiment, name: str) -> str:
    """Return EXPERIMENT on a command line, with the options that give it the images and the model of this one."""
    if name not in known_experiments():
        return shlex.quote(f"{name}.toml")
    return shlex.join([name, *(word for each in changes(experiment, name) for word in ("--set", each))])
