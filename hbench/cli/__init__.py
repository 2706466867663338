"""The command line: one file a command. A command checks its options, calls one library function, and prints."""

from hbench.cli.main import main

__all__ = ["main"]
