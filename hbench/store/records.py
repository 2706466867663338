"""Typed JSON files: every JSON file that hbench writes is a :class:`Record` with a schema number, read strictly."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from hbench.errors import HBenchError
from hbench.store.files import jsonable, read_json, write_json

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""A float that may be undefined: nan in Python, null in JSON."""
Interval = Annotated[tuple[Number, Number], AfterValidator(lambda bounds: _in_order(bounds))]
"""Bounds of a 95 % interval."""
Count = Annotated[int, Field(ge=0)]
"""A number of things, or an index."""
Positive = Annotated[int, Field(ge=1)]
"""A number of things, at least one."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A share of all, 0 to 1."""
ShareOrNone = Annotated[Number, AfterValidator(lambda value: _in_range(value, 0, 1))]
"""A share that may be undefined."""
Nonnegative = Annotated[Number, AfterValidator(lambda value: _in_range(value, 0, math.inf))]
"""A number of at least 0 that may be undefined."""
Aside = Annotated[Any, Field(exclude=True), SkipJsonSchema()]
"""A field that travels with a record in memory and is not part of its JSON, such as images."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A typed JSON file. Subclasses are frozen keyword-only dataclasses.

    A reader refuses unknown keys, missing keys, wrong types and values out of range. Increase SCHEMA when a change
    makes older readers fail, and teach :meth:`upgrade` the way from the form before. Records are equal where their
    files would be the same.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    SCHEMA: ClassVar[int] = 1
    """Number of the form that this version writes."""
    WRITTEN_BY: ClassVar[dict[int, str]] = {0: "0.1"}
    """Versions of hbench that wrote each form first, for messages; 0.2 wrote all others."""

    schema: int = field(default=1, compare=False, repr=False)
    """Number of the form of this file."""

    def __init_subclass__(cls) -> None:
        """Keep the comparison below, which the decorator of a subclass would replace by that of its fields."""
        cls.__eq__ = Record.__eq__  # type: ignore[method-assign]
        cls.__hash__ = Record.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        """Return whether the other is a record of the same kind and content; undefined numbers equal each other."""
        return type(self) is type(other) and isinstance(other, Record) and self._content() == other._content()

    def __hash__(self) -> int:
        """Return the hash of the content."""
        return hash(self._content())

    def _content(self) -> str:
        return json.dumps(self.to_json(), sort_keys=True, default=str)

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's form; files of hbench 0.1 carry no number and count as 0."""
        return values

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of the file."""
        schema = _adapter(cls).json_schema()
        schema["properties"]["schema"] |= {"const": cls.SCHEMA}
        schema["required"] = ["schema", *schema.get("required", [])]
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    def to_json(self) -> dict[str, Any]:
        """Return the values as they stand in the file, schema number first."""
        values: dict[str, Any] = jsonable(_adapter(type(self)).dump_python(self, by_alias=True, warnings=False))
        return values | {"schema": self.SCHEMA}

    @classmethod
    def from_json(cls, values: Any, source: str | Path, remedy: str = "make it again") -> Self:
        """Return the record that the values of a JSON file stand for.

        Args:
            values: content of the file.
            source: name of the file, for messages.
            remedy: advice about a damaged file, in words.

        Raises:
            HBenchError: not this kind of file, damaged, or written by a newer version of hbench.
        """
        if not isinstance(values, dict):
            raise HBenchError(f"{source}: holds no {cls._kind()}: {remedy}")
        schema = values.get("schema", 0)
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 0:
            raise HBenchError(f"{source}: schema {schema!r} is no whole number: {remedy}")
        if schema > cls.SCHEMA:
            raise HBenchError(
                f"{source}: was written by a newer hbench (schema {schema}, this one reads up to {cls.SCHEMA}): "
                "update hbench"
            )
        writer = cls.WRITTEN_BY.get(schema, "0.2")
        try:
            if schema != cls.SCHEMA:
                values = {key: value for key, value in values.items() if key not in ("hbench", "format")}
                values = cls.upgrade(values, schema)
            return cls._validated({**values, "schema": cls.SCHEMA})
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            raise HBenchError(
                f"{source}: is no {cls._kind()} as hbench {writer} writes it ({_first_problem(error)}): {remedy}"
            ) from error

    @classmethod
    def _validated(cls, values: dict[str, Any]) -> Self:
        # through JSON text: only there a strict reader takes a list for a tuple
        record: Self = _adapter(cls).validate_json(json.dumps(values, allow_nan=False), strict=True)
        return record

    def write(self, path: Path) -> None:
        """Write the file in one move."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path, remedy: str = "make it again") -> Self:
        """Read the file; see :meth:`from_json` for the files that are refused."""
        return cls.from_json(read_json(path, remedy), path, remedy)

    @classmethod
    def _kind(cls) -> str:
        """Return what the file holds, in words, as in "sample set"."""
        return re.sub("(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()


def square(rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    """Return a table that has as many columns as rows, and raise a ValueError for another."""
    if any(len(row) != len(rows) for row in rows):
        raise ValueError(f"need {len(rows)} values in each of {len(rows)} rows")
    return rows


Confusion = Annotated[list[list[Count]], AfterValidator(square)]
"""Counts: true class by predicted class."""


def _in_range(value: float, low: float, high: float) -> float:
    if not math.isnan(value) and not low <= value <= high:
        raise ValueError(f"need {low:g} to {high:g}")
    return value


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]:g} is above the upper one {bounds[1]:g}")
    return bounds


def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        return f"{key}: {problem['msg'].lower()}" if key else problem["msg"]
    return f"{type(error).__name__}: {error}"
