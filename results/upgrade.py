"""Bring results of older versions of hbench to today's form: ``python results/upgrade.py FOLDER...``.

Each JSON file that hbench knows by its name is read, which checks it, and written again with its schema number. Nothing
else in it changes. A report is made again by ``hbench report``.
"""

import sys
from dataclasses import replace
from pathlib import Path

from hbench.errors import HBenchError
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.report import REASONS, NotRun
from hbench.store.files import sha256
from hbench.store.folders import EXPERIMENT
from hbench.store.provenance import FILE, Provenance
from hbench.store.records import Record
from hbench.store.results import RESULT_SHA256
from hbench.store.weights import WrittenExperiment

CLASSES: dict[str, type[Record]] = {
    EXPERIMENT: WrittenExperiment,
    FILE: Provenance,
    REASONS: NotRun,
    **{f"{artifact.result.NAME}.json": artifact.result for artifact in ARTIFACTS},
}
"""Class of each file, by its name."""


def upgrade(folder: Path) -> list[Path]:
    """Upgrade every known file below a folder and return those that were written."""
    if not folder.is_dir():
        raise HBenchError(f"{folder}: no such folder: give one with results")
    written = []
    for path in sorted(folder.rglob("*.json")):
        if path.name in CLASSES:
            before, digest = path.read_text(encoding="utf-8"), sha256(path)
            CLASSES[path.name].read(path).write(path)
            if path.read_text(encoding="utf-8") != before:
                _vouch_again(path, digest)
                written.append(path)
    return written


def _vouch_again(path: Path, before: str) -> None:
    """Bring the SHA-256 of a result in the provenance beside it up to date, if it was that of the file before."""
    file = path.parent / FILE
    if file.is_file() and (origin := Provenance.read(file)).details.get(RESULT_SHA256) == before:
        replace(origin, details=origin.details | {RESULT_SHA256: sha256(path)}).write(file)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("Error: give the folders of results")
    for name in sys.argv[1:]:
        try:
            for changed in upgrade(Path(name)):
                print(changed)
        except HBenchError as error:
            sys.exit(f"Error: {error}")
