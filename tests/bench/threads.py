"""Speed of commands beside other busy processes: the chosen threads against one thread. Run it on an idle machine.

    python tests/bench/threads.py [--busy 0,1,3] [--rounds 3] [--steps 20] [--ways "chosen,one thread,as before"]

Each row is a command beside so many processes that do nothing but count. The commands take turns with the number of
threads that they choose and with OMP_NUM_THREADS=1; "as before" is the way of PyTorch, all cores, spinning. A training
is timed from its first to its last step, the demo as a whole. The table has medians over the rounds, and ratios to one
thread.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

WAYS = {
    "chosen": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "as before": {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": "300000"},
}
"""Environments of the commands; GOMP_SPINCOUNT has libgomp's default, and keeps hbench from changing it."""
ASKED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@contextmanager
def busy(processes):
    """Keep so many processes busy during the block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        time.sleep(1)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run(words, way, folder):
    """Return seconds of a command and what it said of threads."""
    environment = {name: value for name, value in os.environ.items() if name not in ASKED} | WAYS[way]
    started = time.monotonic()
    command = [sys.executable, "-m", "hbench", *words, "--out", folder, "--device", "cpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - started
    if words[0] == "train":  # without the imports
        seconds = json.loads((Path(folder) / "provenance.json").read_text(encoding="utf-8"))["wall_seconds"]
    said = re.search(r"^\d+ threads? of .*$", done.stderr, re.MULTILINE)
    return seconds, said[0] if said else ""


def train(steps):
    """Return the command of a short training of the experiment that hbench ships, without a pool."""
    settings = {"steps": steps, "pool": 0, "strategy": "node", "checkpoint_every": 10_000}
    sets = [word for key, value in settings.items() for word in ("--set", f"discovery.{key}={value}")]
    return ["train", "mnist16", "--model", "mnist16", *sets]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", default="0,1,3", help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="steps of the training; the demo takes half as many")
    parser.add_argument("--commands", default="train,demo")
    parser.add_argument("--ways", default="chosen,one thread", help='ways; "as before" is slow')
    parser.add_argument("--json", type=Path, help="file for all numbers")
    given = parser.parse_args()
    commands = {"train": train(given.steps), "demo": ["demo", "--training-steps", str(given.steps // 2)]}
    ways, rows = given.ways.split(","), []
    print("command  busy " + "".join(f"{way:>14}" for way in ways) + "   chosen / one thread   said")
    for name in given.commands.split(","):
        for others in map(int, given.busy.split(",")):
            seconds, said = {way: [] for way in ways}, ""
            with busy(others), tempfile.TemporaryDirectory() as scratch:
                for number in range(given.rounds):
                    for way in ways:
                        each, words = run(commands[name], way, f"{scratch}/{way.replace(' ', '-')}-{number}")
                        seconds[way].append(each)
                        said = words if way == "chosen" else said
            medians = {way: median(each) for way, each in seconds.items()}
            ratio = medians["chosen"] / medians["one thread"]
            rows.append({"command": name, "busy": others, "seconds": seconds, "ratio": ratio, "said": said})
            cells = "".join(f"{medians[way]:>12.1f} s" for way in ways)
            print(f"{name:8} {others:4} {cells}   {ratio:19.2f}   {said}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
