"""``python -m hbench``."""

from hbench.cli import main

main(prog_name="hbench")
