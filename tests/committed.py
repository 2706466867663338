"""Committed results that tests read."""

from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
V01 = RESULTS / "mnist16-v0.1"
"""The run that hbench shipped at version 0.1, with its results: facts that stay, whatever hbench ships."""
