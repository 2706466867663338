"""Results of measurements, written as JSON, CSV and provenance, and read back strictly."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hbench.errors import HBenchError
from hbench.store.files import sha256, write_text
from hbench.store.folders import claimed_folder
from hbench.store.provenance import FILE as PROVENANCE
from hbench.store.provenance import Provenance
from hbench.store.records import Aside, Record

if TYPE_CHECKING:
    from pandas import DataFrame


RESULT_SHA256 = "result_sha256"
"""Detail of a provenance with the SHA-256 of the result's JSON file."""


@dataclass(frozen=True, kw_only=True)
class Result(Record, ABC):
    """The result of one measurement: a frozen, typed record with its provenance.

    A folder holds ``NAME.json``, the table as ``NAME.csv``, and ``provenance.json``, which is written last and has the
    SHA-256 of ``NAME.json``: with it, a result is complete.
    """

    NAME: ClassVar[str]
    """Name of its files."""
    NAMES_BEFORE: ClassVar[tuple[str, ...]] = ()
    """Names that its files had in older versions, which are read too."""

    provenance: Aside = field(default=None, compare=False, repr=False)
    """Provenance of the result, a :class:`Provenance`."""

    @abstractmethod
    def summary(self) -> str:
        """Return the result in a few lines of text."""

    @abstractmethod
    def table(self) -> "DataFrame":
        """Return the result as a table, a row for each line of the CSV file."""

    def cautions(self) -> list[str]:
        """Return what a reader must know before trusting the numbers, a sentence each, as in "n = 150 is too few".

        The command line prints them, and the page shows them beside the result.
        """
        return []

    @property
    def title(self) -> str:
        """Title of the experiment, in the paper's notation."""
        return (self.provenance and self.provenance.title) or ""

    def detail(self, name: str, default: Any = None) -> Any:
        """Return a detail of the provenance, such as "n"; ``default`` where there is none."""
        return self.provenance.details.get(name, default) if self.provenance else default

    def with_details(self, **details: Any) -> Self:
        """Return the result with more details in its provenance, or as it is if it has none."""
        if self.provenance is None:
            return self
        return replace(self, provenance=replace(self.provenance, details=self.provenance.details | details))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the result into a folder, which is made where it is missing, and return the folder.

        Args:
            folder: output folder.
            overwrite: replace files that are already there.

        Raises:
            HBenchError: the folder holds something already, another process writes there, or the disk is full.
        """
        folder = Path(folder)
        with claimed_folder(folder, overwrite=overwrite):
            self.write_into(folder)
        return folder

    def write_into(self, folder: Path) -> None:
        """Write the result into a folder that the caller has claimed."""
        file = folder / f"{self.NAME}.json"
        self.write(file)
        write_text(folder / f"{self.NAME}.csv", self.table().to_csv(index=False))
        if self.provenance:
            # a result that still grows may be killed between both files
            vouched = {RESULT_SHA256: sha256(file)} if self.detail("complete", True) else {}
            self.with_details(**vouched).provenance.write(folder / PROVENANCE)

    @classmethod
    def load(cls, folder: str | Path, remedy: str = "make it again") -> Self:
        """Read the result in a folder, with its provenance; ``remedy`` is the advice about a damaged one.

        Raises:
            HBenchError: missing, damaged, not as any version of hbench writes it, or not the result of the provenance
                beside it.
        """
        folder = Path(folder)
        files = [folder / f"{name}.json" for name in (cls.NAME, *cls.NAMES_BEFORE)]
        file = next((each for each in files if each.is_file()), files[0])
        if not file.is_file():
            raise HBenchError(f"{folder}: no {file.name} there: give the folder of a finished result")
        origin = Provenance.read(folder / PROVENANCE, remedy) if (folder / PROVENANCE).is_file() else None
        result = cls.read(file, remedy)
        if origin and origin.details.get(RESULT_SHA256) not in (None, sha256(file)):
            raise HBenchError(f"{file}: is not the file that {PROVENANCE} beside it was written with: {remedy}")
        return replace(result, provenance=origin)

    @classmethod
    def _kind(cls) -> str:
        return f"{cls.NAME} result"

    def _repr_html_(self) -> str:
        html: str = self.table().to_html(index=False)
        return html

    def __str__(self) -> str:
        return self.summary()
