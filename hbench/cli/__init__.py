"""Commands, one file each: a command checks its options, calls one library function, and prints."""

from hbench.cli.main import main

__all__ = ["main"]
