"""The command line that is running, for the provenance of results."""

from contextvars import ContextVar

COMMAND: ContextVar[str | None] = ContextVar("COMMAND", default=None)
"""Command that the command line has set; None for calls from Python, which have no command to record."""
