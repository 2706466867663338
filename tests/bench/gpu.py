"""Tables of what CUDA graphs give: ``tests/bench/gpu.py TABLE``, called by ``tests/bench/gpu.sh``. Ratios count.

| table | what is timed |
|---|---|
| passes | forward, and forward and backward, of the frozen UNet; with --compile of the compiled one |
| steps | whole training steps by strategy and batch size; first step, and peak memory |
| curves | the losses of a short discovery with the model of mnist16 |
| pretraining | steps of pretraining a second, on random images |

All by both values of ``discovery.capture`` or ``pretrain.capture``, of which "auto" replays on CUDA alone. With
``--small`` it takes a tiny network and few repeats.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from hbench.config import Experiment
from hbench.core.sampler import Sampler
from hbench.experiments import load_experiment, override
from hbench.models import build_model
from hbench.runtime.capture import graphs_of
from hbench.runtime.device import autocast, pick_device, wall_seconds
from hbench.runtime.memory import MIB
from hbench.store.files import write_json
from hbench.store.model import load_model
from hbench.store.provenance import provenance
from hbench.training import pretrain
from hbench.training.freeze import freeze
from hbench.training.step import initial, raw_pairs, train_step

SMALL = ["model.channel_mult=[1,2]", "discovery.M=3", "discovery.K=3"]
CAPTURES = ("never", "auto")
Row = dict[str, object]


def experiment_of(asked: argparse.Namespace, *overrides: str) -> Experiment:
    small = SMALL if asked.small else []
    return load_experiment("digits16" if asked.small else "mnist32", ["discovery.pool=0", *small, *overrides])


def random_model(experiment: Experiment) -> torch.nn.Module:
    """Return a network without the zeros that ADM's start with."""
    torch.manual_seed(0)
    model = build_model(experiment)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def timed(work, device: torch.device, repeats: int) -> Row:
    """Return the seconds of the first call, and of the others after two more."""
    first = wall_seconds(work, device)
    for _ in range(2):
        work()
    seconds = [wall_seconds(work, device) for _ in range(repeats)]
    return {"first_seconds": first, "seconds": seconds, "median": statistics.median(seconds)}


def passes(asked: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Time passes of the frozen UNet; the outputs are compared with those of the network as it is."""
    size = 4 if asked.small else 128
    experiment = experiment_of(asked, f"discovery.compile={str(asked.compile).lower()}")
    model = freeze(experiment, random_model(experiment), device)
    x = torch.randn(size, *experiment.data.image_shape, device=device)
    t = torch.full((size,), 500, device=device)

    def forward(x, t):
        with torch.no_grad(), autocast(device, experiment.discovery.precision):
            return [model.decode(*model.encode(x, t))]

    def both_ways(x, t):
        leaf = x.detach().requires_grad_()
        with torch.enable_grad(), autocast(device, experiment.discovery.precision):
            y = model.decode(*model.encode(leaf, t))
        return torch.autograd.grad(y, leaf, torch.ones_like(y))

    expected = {}
    for capture in CAPTURES:
        graphs = graphs_of(device) if capture == "auto" else None
        for name, function in (("forward", forward), ("forward and backward", both_ways)):
            work = partial(function, x, t) if graphs is None else partial(graphs.run, name, function, [x, t])
            row = {"capture": capture, "compiled": asked.compile, "pass": name, "batch": size}
            row |= timed(work, device, 2 if asked.small else 20)
            y = work()[0].float()
            error = (y - expected.setdefault(name, y.clone())).norm() / expected[name].norm()
            yield row | {"ms": 1e3 * row["median"], "error": error.item()}


def steps(asked: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Time whole training steps, those first that matter most."""
    for strategy in ("node", "vanilla", "torch-checkpoint"):
        for size in (4,) if asked.small else (128, 32):
            for capture in CAPTURES:
                row = {"capture": capture, "strategy": strategy, "batch": size}
                settings = [f"batch_size={size}", f"strategy={strategy}", f"capture={capture}"]
                experiment = experiment_of(asked, *(f"discovery.{each}" for each in settings))
                try:
                    yield row | step_row(experiment, device, 2 if asked.small else 3)
                except torch.OutOfMemoryError as error:
                    yield row | {"error": str(error).splitlines()[0]}


def step_row(experiment: Experiment, device: torch.device, repeats: int) -> Row:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    sampler = Sampler.of(experiment, freeze(experiment, random_model(experiment), device), device)
    trained = initial(experiment, sampler, 0)
    row = timed(
        partial(train_step, experiment, sampler, trained, raw_pairs(experiment, sampler, 0), 0, 0), device, repeats
    )
    row["images_per_second"] = experiment.discovery.batch_size / row["median"]
    if device.type == "cuda":
        row["max_memory_allocated_mib"] = torch.cuda.max_memory_allocated() / MIB
        row["max_memory_reserved_mib"] = torch.cuda.max_memory_reserved() / MIB
    return row


def curves(asked: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Train twice from the same start; early losses agree, later ones as far as rounding lets them."""
    settings = ["discovery.pool=0", "discovery.strategy=node", *(["discovery.M=3"] if asked.small else [])]
    for capture in CAPTURES:
        experiment = override(load_experiment("mnist16", settings), [f"discovery.capture={capture}"])
        model = load_model("mnist16", experiment, device=device)
        sampler = Sampler.of(experiment, freeze(experiment, model, device), device)
        trained, draw = initial(experiment, sampler, 0), raw_pairs(experiment, sampler, 0)
        started = time.perf_counter()
        losses = [
            train_step(experiment, sampler, trained, draw, 0, i)["loss"] for i in range(3 if asked.small else 100)
        ]
        end = statistics.mean(losses[-20:])
        yield {
            "capture": capture,
            "median": time.perf_counter() - started,
            "first": losses[0],
            "end": end,
            "losses": losses,
        }


def pretraining(asked: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Time steps of pretraining."""
    repeats = 2 if asked.small else 30
    for capture in CAPTURES:
        small = ["pretrain.batch_size=4"] if asked.small else []
        experiment = experiment_of(asked, f"pretrain.capture={capture}", *small)
        settings, trained = experiment.pretrain, pretrain.initial(experiment, 0, device)
        sampler = pretrain.grid_sampler(experiment, trained, device)
        graphs = pretrain.recordings(settings, trained.model, device)
        images = torch.randint(256, (1000, *experiment.data.image_shape), dtype=torch.uint8)
        step = partial(pretrain.train_step, settings, trained, sampler, images, 0, 0, graphs=graphs)
        row = timed(step, device, repeats)
        yield {"capture": capture, "batch": settings.batch_size, **row, "steps_per_second": 1 / row["median"]}


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    tables = {each.__name__: each for each in (passes, steps, curves, pretraining)}
    parser = argparse.ArgumentParser(description="Tables of what CUDA graphs give.")
    parser.add_argument("table", choices=tables)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="a tiny network and few repeats")
    parser.add_argument("--compile", action="store_true", help="compile the network, for the table of passes")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the JSON file")
    asked = parser.parse_args()
    device = pick_device(asked.device)
    name = f"{asked.table}{'-compiled' if asked.compile else ''}"
    asked.out.mkdir(parents=True, exist_ok=True)
    print(name)
    rows = []
    for row in tables[asked.table](asked, device):
        rows.append(row)
        print("  " + ", ".join(f"{key} {shown(value)}" for key, value in row.items() if not isinstance(value, list)))
        # after each row, for time may end
        write_json(asked.out / f"{name}.json", {"rows": rows, "provenance": provenance(None, device, 0).to_json()})
    for row in rows:
        same = [other for other in rows if all(other.get(key) == row.get(key) for key in ("pass", "strategy", "batch"))]
        if row.get("capture") == "auto" and all("median" in each for each in same):
            what = " ".join(str(row[key]) for key in ("pass", "strategy", "batch") if key in row)
            print(f"  {what}: never / auto {same[0]['median'] / row['median']:.2f}")


if __name__ == "__main__":
    main()
