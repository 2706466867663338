"""The standard streams, of which any may be missing: services and consoles without a window start programs so."""

import errno
import os
import sys
from pathlib import Path
from typing import TextIO


def open_missing_streams() -> None:
    """Open the null device in place of each standard stream that is closed, or that nothing can be written to.

    Else the next file that is opened would get the stream's number, and with it whatever C libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if not _takes_text(getattr(sys, name)):
            null = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process
            setattr(sys, name, null)


def _takes_text(stream: TextIO | None) -> bool:
    """Return whether something can be written to a stream."""
    if stream is None or stream.closed:
        return False
    try:
        os.write(stream.fileno(), b"")
    except OSError as error:  # a stream without a number takes text all the same
        return error.errno != errno.EBADF
    return True
