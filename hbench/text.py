"""Text files of people and of other programs, in the encodings and with the ends of lines that these write."""

import codecs
from pathlib import Path

MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""Byte order marks and their encodings; Excel and PowerShell write all of them."""


def read_text(path: Path) -> str:
    """Return the text of a file, its lines ended by a line feed.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it has no byte order mark and is not UTF-8.
    """
    return decoded(path.read_bytes())


def decoded(content: bytes) -> str:
    """Return the text that bytes stand for, its lines ended by a line feed; see :func:`read_text`."""
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    text = content.removeprefix(mark).decode(MARKS.get(mark, "utf-8"))
    return text.replace("\r\n", "\n").replace("\r", "\n")
