"""Freeze what a checkout computes, and compare two such freezes bit by bit: for changes that must move no number.

    python tests/frozen.py make CHECKOUT FOLDER     # runs 40 commands of that checkout on one CPU thread, 4 minutes
    python tests/frozen.py compare BEFORE AFTER

Compared are the tensors of every safetensors file, the values of every JSON file but its schema number, every CSV file,
the pixels of every PNG, and the text of every sheet; not compared are provenance, times and memory. Ablations hold the
seconds and the commit of their trainings, edits and reports the paths of their files: these differ by nature.
"""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from command_line import tiny_options
from PIL import Image
from safetensors.numpy import load_file

SET = tiny_options()


def make(checkout: Path, out: Path) -> None:
    out.mkdir(parents=True)
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def hbench(*args, check=True):
        done = subprocess.run(
            [sys.executable, "-m", "hbench", *map(str, args)], cwd=out, env=env, text=True, capture_output=True
        )
        if check and done.returncode:
            raise SystemExit(f"hbench {args}: {done.stdout}\n{done.stderr}")
        print("ok", " ".join(map(str, args))[:100], flush=True)
        return done

    q = ["--quiet"]
    hbench("pretrain", "digits16", *SET, "--out", "pretrain", *q)
    hbench("train", "digits16", *SET, "--model", "pretrain", "--out", "train", *q)
    hbench("train", "digits16", *SET, "--model", "pretrain", "--out", "resumed", "--max-minutes", "0.0000001", *q)
    hbench("train", "digits16", *SET, "--model", "pretrain", "--out", "resumed", "--resume", *q)
    hbench("train", "digits16", *SET, "--model", "pretrain", "--out", "fresh", "--set", "discovery.pool=0", *q)
    hbench(
        "train", "digits16", *SET, "--model", "pretrain", "--out", "vanilla", "--set", "discovery.strategy=vanilla", *q
    )
    hbench(
        "train", "digits16", *SET, "--model", "pretrain", "--out", "perstep", "--set", "discovery.gradient=per-step", *q
    )
    hbench(
        "train",
        "digits16",
        *SET,
        "--model",
        "pretrain",
        "--out",
        "resnet",
        "--set",
        "discovery.reconstructor=resnet18",
        "--set",
        "discovery.precision=float32",
        *q,
    )
    hbench("pretrain", "digits16", *SET, "--out", "pre-resumed", "--max-minutes", "0.0000001", *q)
    hbench("pretrain", "digits16", *SET, "--out", "pre-resumed", "--resume", *q)
    hbench("rca", "train", "--pairs", "40", "--out", "rca", *q)
    hbench("traverse", "train", "--rca", "rca/rca.json", "--examples", "2", "--out", "traverse", *q)
    hbench("lenet", "digits16", "--epochs", "1", "--out", "lenet", *q)
    (weights,) = (out / "lenet").glob("*.safetensors")  # the name depends on the version
    weights = weights.relative_to(out)
    hbench(
        "fid",
        "train",
        "--samples",
        "140",
        "--weights",
        weights,
        "--out",
        "fid",
        "--cache",
        "cache",
        *q,
    )
    hbench(
        "fid",
        "train",
        "--samples",
        "140",
        "--steps",
        "5",
        "--weights",
        weights,
        "--out",
        "fid5",
        "--cache",
        "cache",
        *q,
    )
    hbench("properties", "train", "--samples", "20", "--pairs", "20", "--examples", "1", "--out", "properties", *q)
    hbench(
        "rca",
        "train",
        "--pairs",
        "40",
        "--direction-source",
        "mean",
        "--directions",
        "properties/directions.safetensors",
        "--out",
        "rca-mean",
        *q,
    )
    raw = sorted((out / "cache").glob("samples/*/raw/00000[0-2].png"))[:2]
    raw = [path.relative_to(out) for path in raw]
    hbench("edit", "train", *raw, "--shift", "0=2", "--shift", "1=-1", "--inversion-steps", "5", "--out", "edit", *q)
    hbench("edit", "train", *raw, "--grid", "0,1", "--samples", "3", "--inversion-steps", "5", "--out", "edit-grid", *q)
    hbench(
        "edit",
        "train",
        *raw,
        "--sweep",
        "2",
        "--inversion-steps",
        "4",
        "--direction-source",
        "global",
        "--directions",
        "properties/directions.safetensors",
        "--out",
        "edit-sweep",
        *q,
    )
    hbench(
        "ablations",
        "digits16",
        *SET,
        "--model",
        "pretrain",
        "--seeds",
        "0,1",
        "--pairs",
        "130",
        "--lenet",
        weights,
        "--out",
        "ablations",
        *q,
    )
    hbench(
        "ablations",
        "digits16",
        *SET,
        "--model",
        "pretrain",
        "--seeds",
        "0",
        "--pairs",
        "130",
        "--over",
        "discovery.S=2",
        "--out",
        "settings",
        *q,
    )
    hbench("train-curves", "train", "vanilla", "--out", "train-curves", *q)
    hbench("sample", "train", "--count", "9", "--steps", "5", "--out", "sample", *q)
    hbench(
        "mos",
        "export",
        "train",
        "--assessors",
        "2",
        "--examples",
        "2",
        "--samples",
        "3",
        "--controls",
        "1",
        "--label-studio",
        "--out",
        "mos",
        *q,
    )
    marks = []
    for path in sorted((out / "mos").glob("sheet_*/marks_*.csv")):
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        for row in rows:
            digit = int(hashlib.sha256(f"{row['assessor']}{row['item']}".encode()).hexdigest(), 16) % 2
            row["mark"], row["name"] = str(digit), "bold" if digit else ""
        with (out / path.name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        marks.append(path.name)
    hbench("mos", "score", *marks, "--key", "mos/key.json", "--out", "score", *q)
    hbench(
        "report",
        checkout / "results" / "mnist16-v0.1",
        "--out",
        "report",
        "--summary",
        "report/summary.md",
        "--not-run",
        "mnist32",
        "no GPU",
    )
    hbench("rca", "mnist16", "--pairs", "2000", "--out", "shipped-rca", *q)
    hbench("traverse", "mnist16", "--examples", "2", "--rca", "shipped-rca/rca.json", "--out", "shipped-traverse", *q)
    for name in ("", "train", "vram-sweep", "fid", "mos", "rca", "traverse", "properties", "edit"):
        hbench(*name.split(), "-h")
    for line in (["mos", "export", "-h"], ["mos", "score", "-h"]):
        hbench(*line)


DROPPED = {"schema", "hbench", "format"}
SKIP = (
    "provenance.json",
    "checkpoint",
    "strategy.json",
    "samples.json",
    "report.html",
    "report.md",
    ".hbench.lock",
    "experiment.json",
    "summary.md",
)


def strip(value):
    if isinstance(value, dict):
        return {k: strip(v) for k, v in value.items() if k not in DROPPED}
    return [strip(v) for v in value] if isinstance(value, list) else value


def content(path: Path):
    if path.suffix == ".safetensors":
        return {k: (v.dtype.str, v.shape, v.tobytes()) for k, v in load_file(path).items()}
    if path.suffix == ".json":
        return strip(json.loads(path.read_text()))
    if path.suffix == ".png":
        image = Image.open(path)
        return image.size, image.mode, image.tobytes()
    return path.read_bytes()


def compare(before: Path, after: Path) -> None:
    equal, differing, missing = 0, [], []
    for path in sorted(before.rglob("*")):
        if not path.is_file() or any(path.name.startswith(s) for s in SKIP) or "cache/samples" in str(path):
            continue
        other = after / path.relative_to(before)
        if not other.is_file():
            missing.append(str(path.relative_to(before)))
        elif content(path) == content(other):
            equal += 1
        else:
            differing.append(str(path.relative_to(before)))
    a = sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in before.glob("cache/samples/*/*/*.png"))
    b = sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in after.glob("cache/samples/*/*/*.png"))
    print(
        f"{equal} files equal, {len(differing)} differ, {len(missing)} missing; {len(a)} cached samples equal: {a == b}"
    )
    for name in differing:
        print("differs:", name)
    for name in missing:
        print("missing:", name)


if __name__ == "__main__":
    (make if sys.argv[1] == "make" else compare)(Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve())
