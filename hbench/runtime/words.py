"""Counts in words, the same in messages, tables and pictures."""


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun, as in "1 image" and "2,000 images".

    Args:
        n: the count.
        noun: singular of what is counted.
        plural: its plural, where that is not the noun with an "s".
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
