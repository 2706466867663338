"""The exception for what a user can fix, checks of arguments and errors, and counts in words."""

import os
from collections.abc import Iterable
from typing import Any

MOST = 10**7
"""Largest number of anything that can be meant; more would fill the memory before an error could be told."""
MOST_COLUMNS = 1001
"""Largest number of magnitudes along a direction."""
MOST_ASSESSORS = 10_000
"""Largest number of assessors of a study."""
MOST_SEED = 2**63 - 1
"""Largest seed."""


class HBenchError(Exception):
    """Bad input or a bad environment; the message is one line that names what to do.

    The command line prints the message and exits with code 1. A caller's bug raises ``ValueError``
    instead and keeps its traceback.
    """


def check_at_least(least: int, /, *, most: int = MOST, **values: int) -> None:
    """Raise an error that names the first of the values that is outside ``least`` .. ``most``, or no whole number.

    Raises:
        ValueError: a value out of range.
        TypeError: not a whole number.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {shown(value)}")
        if value > most:
            raise ValueError(f"{name} must be at most {most}, got {shown(value)}")


def check_seed(seed: int) -> None:
    """Raise a ValueError where a seed is outside 0 .. 2^63 - 1, and a TypeError where it is no whole number."""
    check_at_least(0, most=MOST_SEED, seed=seed)


def check_type(kind: type, source: str, /, **values: object) -> None:
    """Raise a TypeError that names the first of the values that is no ``kind``, and the ``source`` of one, in words."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be of type {kind.__name__}, {source}, got {type(value).__name__}")


def as_list(values: Any) -> list[Any]:
    """Return several values as a list; a text or a path is one value, not its letters."""
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | os.PathLike):
        return list(values)
    return [values]


def shown(value: Any) -> str:
    """Return a value for a message; Python refuses to write whole numbers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {int(value.bit_length() * 0.30103) + 1} digits"
    return repr(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or PyTorch says that memory ran out, on the CPU or on a GPU."""
    text = str(error)  # another process hands on the words alone, without PyTorch's class
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "CUDA error: out of memory" in text
        or "CUDA out of memory" in text
        or "MPS backend out of memory" in text
        or "STATUS_ALLOC_FAILED" in text  # cuBLAS's and cuDNN's
    )


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun, as in "1 image" and "2,000 images".

    Args:
        n: the count.
        noun: singular of what is counted.
        plural: its plural, where that is not the noun with an "s".
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
