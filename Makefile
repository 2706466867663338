# Everything is installed into .venv, at the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench results gallery clean

demo: .venv/.installed
	$(BIN)/hbench demo --overwrite

# a file to a process, in the order of the folders: the longest are in distributed and faults
test: .venv/.installed-test
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.installed-test .venv/.installed-bench
	$(BIN)/python -m pytest tests/bench/bench_*.py --benchmark-only --benchmark-disable-gc

# the charts, the pages and the table of the committed results, from their JSON; nothing is measured again
COMMITTED := results/faces16 results/mnist16 results/mnist16-v0.1 results/mnist16-v0.1/m20 results/mnist32
results: .venv/.installed
	$(BIN)/hbench report results/faces16 --redraw
	$(BIN)/hbench report results/mnist16 --redraw
	$(BIN)/hbench report results/mnist16-v0.1 results/mnist16-v0.1/m20 results/mnist32 --redraw
	$(BIN)/hbench report $(COMMITTED) --out runs/results --summary results/README.md \
		--not-run anime64 'no data, and 30 to 50 hours of an H100' --not-run celebahq128 'no data, and 115 hours of an H100' \
		--not-run afhq128 'no data, and 115 hours of an H100'

# the page of the shipped directions in motion: a minute or two
gallery: .venv/.installed
	$(BIN)/python docs/gallery.py

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "hbench needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/.installed-%: .venv/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@
