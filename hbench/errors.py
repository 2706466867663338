"""The exception for what a user can fix, checks of numbers and errors, and counts in words."""


class HBenchError(Exception):
    """Bad input or a bad environment; the message is one line that names what to do.

    The command line prints the message and exits with code 1. A caller's bug raises ``ValueError``
    instead and keeps its traceback.
    """


def check_at_least(least: int, **values: int) -> None:
    """Raise an error that names the first of the values that is below ``least``, or no whole number.

    Raises:
        ValueError: a value below ``least``.
        TypeError: not a whole number.
    """
    for name, value in values.items():
        if not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or PyTorch says that memory ran out, on the CPU or on a GPU."""
    text = str(error)  # another process hands on the words alone, without PyTorch's class
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "CUDA error: out of memory" in text
        or "CUDA out of memory" in text
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
