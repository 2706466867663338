"""Bring results of older versions of hbench to today's form: ``python results/upgrade.py FOLDER...``.

Each JSON file that hbench knows by its name is read, which checks it, and written again with its schema number. Nothing
else in it changes. A report is made again by ``hbench report``.
"""

import sys
from pathlib import Path

from hbench.errors import HBenchError
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.report import REASONS, NotRun
from hbench.store.folders import EXPERIMENT
from hbench.store.provenance import FILE, Provenance
from hbench.store.records import Record
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
    written = []
    for path in sorted(folder.rglob("*.json")):
        if path.name in CLASSES:
            before = path.read_text(encoding="utf-8")
            CLASSES[path.name].read(path).write(path)
            if path.read_text(encoding="utf-8") != before:
                written.append(path)
    return written


if __name__ == "__main__":
    for name in sys.argv[1:]:
        try:
            for changed in upgrade(Path(name)):
                print(changed)
        except HBenchError as error:
            sys.exit(f"Error: {error}")
