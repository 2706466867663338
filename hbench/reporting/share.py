"""A run as a small folder for others: weights, directions, a picture, and a card that says what it is."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hbench.config import Paper
from hbench.errors import HBenchError, check_type
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.rca import RCA
from hbench.models.shift import FixedDirections
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.grids import draw_directions
from hbench.reporting.lookup import Found
from hbench.reporting.report import markdown_page
from hbench.store.files import replacing, write_text
from hbench.store.folders import EXPERIMENT, claimed_folder
from hbench.store.metrics import FILE as METRICS
from hbench.store.places import results_in
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance
from hbench.store.registry import credit_of
from hbench.store.results import Result
from hbench.store.run import Run, check_has_files
from hbench.store.run_files import ROLES, WEIGHTS
from hbench.store.shipped import SHIPPED

FILES = (*(f"{role}{WEIGHTS}" for role in ROLES), PROVENANCE, EXPERIMENT, METRICS, "names.txt")
"""Files of a run that are shared, those of them that there are."""
CARD, PREVIEW = "README.md", "preview.png"
"""Names of the card, by which the Hugging Face Hub knows it, and of the picture in it."""
SHOWN, EXAMPLES, SAMPLES = 6, 2, 5
"""Directions of the picture at most, its rows and its columns."""
UNKNOWN = "unknown"
"""Licence where nobody says one, in the words of the Hugging Face Hub."""
TELLING = (RCA, Attributes, Fidelity)
"""Results whose numbers are on the card."""
TASK = "unconditional-image-generation"
"""Task of the model, in the words of the Hugging Face Hub."""


def share(
    run: Run,
    out: str | Path,
    directions: str | Path,
    *,
    name: str = "FOLDER",
    licence: str | None = None,
    results: Sequence[str | Path] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a run as a small folder for others to ``out``, and return it. It is a run itself, wherever it lies.

    It has the weights with their provenance, settings, metrics and names, the file of directions, a picture of some
    directions, and ``README.md``: a model card as the Hugging Face Hub reads it. The card has the numbers of those
    results that are of these weights. Neither checkpoints nor logs are in it. Cost: some fifty chains for the picture.

    Args:
        run: run to share.
        out: output folder.
        directions: file that :func:`hbench.export` wrote for the run.
        name: name of the run in the card's example: an id of the Hugging Face Hub, or any.
        licence: licence of the weights, as the Hub calls it, such as "mit"; by default "mit" for a shipped run, else
            "unknown".
        results: folders where results of the run lie; the run's own comes last, and the first with an artifact counts.
        seed: seed of the picture.
        overwrite: replace what an earlier call wrote.

    Raises:
        TypeError: not a run.
        HBenchError: no licence by its form, the run has no folder of its own, a result is damaged, or ``out`` holds
            something else, such as the run itself.
    """
    check_type(Run, "as load_run returns it", run=run)
    check_has_files(run)
    if run.folder is None:
        raise HBenchError("these directions are those of a file, and no run: share the file")
    licence = licence or ("mit" if run.folder.parent == SHIPPED else UNKNOWN)
    check_licence(licence)
    out, directions = Path(out), Path(directions)
    found = results_of(run, [*map(Path, results), run.folder])
    is_run, is_shared = any((out / file).is_file() for file in FILES), (out / CARD).is_file()
    if out.resolve() == run.folder.resolve() or (is_run and not is_shared):
        raise HBenchError(f"{out}: holds a run that is not a shared one: choose another `out`")
    with claimed_folder(out, overwrite=overwrite, of_training=True):
        for old in {*FILES, *(f"{kind}{WEIGHTS}" for kind in ("mean", "global")), CARD, PREVIEW}:
            (out / old).unlink(missing_ok=True)
        for file in (*(run.folder / each for each in FILES), directions):
            if file.is_file():
                with replacing(out / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        shown = _shown(run, found)
        grid = run.traverse(shown, examples=EXAMPLES, samples=SAMPLES, seed=seed)
        labels = [f"{k}: {run.names[k]}" if k in run.names else str(k) for k in shown]
        draw_directions(grid.images, labels, run.S, run.experiment.title, out / PREVIEW, columns=2)
        write_text(out / CARD, card(run, found, directions.name, name, licence, shown[0]) + "\n")
    return out


def check_licence(licence: str | None) -> None:
    """Raise an HBenchError where a licence has not the form of the Hugging Face Hub's; None is none."""
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise HBenchError(
            f'`licence={licence}`: is no licence as the Hugging Face Hub calls it: give one such as "mit"'
        )


def results_of(run: Run, folders: Sequence[Path]) -> list[tuple[Found, Result]]:
    """Return the telling results of a run's weights in folders; of an artifact those of the first folder with any.

    Raises:
        HBenchError: a damaged result.
    """
    found: list[tuple[Found, Result]] = []
    for artifact in [each for each in ARTIFACTS if each.result in TELLING]:
        for folder in folders:
            places = results_in(folder, artifact.folder)
            known = [Found(artifact, each, Provenance.read(each / PROVENANCE)) for each in places]
            if own := [each for each in known if each.origin.is_of(run.hashes)]:
                found += [(each, artifact.result.load(each.folder)) for each in own]
                break
    return found


def _shown(run: Run, found: list[tuple[Found, Result]]) -> list[int]:
    """Return the directions of the picture: best recognised ones, and first of all those that have a name."""
    ranking = next((result.ranking() for _, result in found if isinstance(result, RCA)), list(range(run.K)))
    return sorted(ranking, key=lambda k: not run.names.get(k))[:SHOWN]


def card(run: Run, found: list[tuple[Found, Result]], directions: str, name: str, licence: str, shown: int) -> str:
    """Return the text of a model card, with metadata as the Hugging Face Hub reads them."""
    from huggingface_hub import EvalResult, ModelCardData

    experiment = run.experiment
    about: dict[str, Any] = {
        "license": licence,
        "library_name": "hbench",
        "pipeline_tag": TASK,
        "tags": ["hbench", "diffusion", "h-space", "interpretable-directions", "image-editing"],
        "model_name": experiment.title,
        "eval_results": [
            EvalResult(
                task_type=TASK,
                dataset_type=experiment.data.dataset,
                dataset_name=experiment.data.label,
                metric_type=kind,
                metric_name=label,
                metric_value=value,
                metric_args={"interval_95": list(bounds or ()), "n": n},
            )
            for _, result in found
            for kind, label, value, bounds, n in _metrics(result)
        ]
        or None,
    }
    assert run.folder is not None
    text = markdown_page(
        "card.md",
        run.folder,
        title=experiment.title,
        data=experiment.data,
        credit=credit_of(experiment.data),
        K=run.K,
        S=f"{run.S:g}",
        name=name,
        shown=shown,
        directions=directions,
        fixed=isinstance(run.shift_block, FixedDirections),
        rows=[row for each, result in found for row in each.artifact.rows(result, Paper())],
        origins=[each.origin for each, _ in found],
        names={k: each for k, each in sorted(run.names.items()) if each},
        licence=licence,
        cautions=list(dict.fromkeys(caution for _, result in found for caution in result.cautions())),
        trained=Provenance.read(run.folder / PROVENANCE),
    )
    return f"---\n{ModelCardData(**about).to_yaml()}\n---\n\n{text}"


def _metrics(result: Result) -> list[tuple[str, str, float, Sequence[float] | None, int]]:
    """Return kind, name, value, 95 % interval and n of the numbers that programs shall read on a card."""
    if isinstance(result, RCA):
        return [("rca", "RCA", result.accuracy, result.interval, result.n)]
    if isinstance(result, Fidelity):
        both = {"raw": result.raw, "shifted": result.shifted}
        return [("fd", f"{result.metric}, {kind}", each.fd, each.interval, each.n) for kind, each in both.items()]
    return []
