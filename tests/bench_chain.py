"""Speed and memory of the strategies side by side: ``make bench``. Ratios count, not seconds.

The table and its provenance are kept in results/bench/.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hbench.chain import backpropagate
from hbench.config import load_experiment
from hbench.device import autocast
from hbench.diffusion import alpha_bar_schedule, generation_steps, timesteps
from hbench.load import load_model
from hbench.models import build_shift_block
from hbench.models.shift import draw_shifts
from hbench.train import initial, judge, train_discriminator, train_shift

BATCH = 16


def parts(M, batch=BATCH):
    torch.manual_seed(0)
    experiment = load_experiment("mnist16", [f"discovery.M={M}", f"discovery.batch_size={batch}"])
    model = load_model(Path("mnist16"), experiment).requires_grad_(False)
    shift_block = build_shift_block(experiment, model)
    torch.nn.init.normal_(shift_block.out_weight, std=0.01)
    return experiment, model, shift_block


def chain(M):
    experiment, model, shift_block = parts(M)
    k, s = draw_shifts(BATCH, experiment.discovery.K, 5.0, 0.5)
    x_T = torch.randn(BATCH, 1, 16, 16)
    steps = generation_steps(
        model,
        alpha_bar_schedule(),
        timesteps(M),
        lambda h, emb, t: s[:, None, None, None] * shift_block(h, emb, k),
        experiment.discovery.t_shift,
    )
    return steps, x_T


@pytest.mark.benchmark(group="strategies, M = 10", min_rounds=5, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize("strategy", ["vanilla", "node", "torch-checkpoint"])
def test_strategy(benchmark, strategy):
    steps, x_T = chain(10)

    def step():
        with autocast(x_T.device, "bfloat16"):
            backpropagate(steps, x_T, lambda x: x.square().mean(), strategy)

    benchmark.extra_info.update(M=10, batch_size=BATCH, precision="bfloat16")
    benchmark(step)


def test_node_and_whole_step_against_what_the_mathematics_needs(benchmark):
    """Interleaved rounds of: node, torch-checkpoint, the whole training step, and its bare network passes."""
    M = 10
    experiment, model, shift_block = parts(M)
    steps, x_T = chain(M)
    trained = initial(experiment, model, seed=0)
    trained.shift_block.load_state_dict(shift_block.state_dict())
    for optimizer in (trained.optimizer, trained.optimizer_D):
        optimizer.param_groups[0]["lr"] = 0.0
    discriminator = trained.discriminator
    k, s = draw_shifts(BATCH, experiment.discovery.K, 5.0, 0.5)
    x_0 = torch.randn(BATCH, 1, 16, 16).clamp(-1, 1)
    shifted = [t >= experiment.discovery.t_shift for t in timesteps(M)]

    def strategy(name):
        with autocast(x_T.device, "bfloat16"):
            backpropagate(steps, x_T, lambda x: x.square().mean(), name)

    def whole_step():
        _, x_0_shifted = train_shift(experiment, model, trained, x_T, x_0, k, s)
        train_discriminator(experiment.discovery, trained, x_0, x_0_shifted)

    def passes(x, twice, pull):
        """One generation step's UNet passes; with ``pull``, also the backward ones that reach x, or else the shift."""
        h, skips, emb = model.encode(x, torch.full((BATCH,), 500))
        eps = model.decode(h, skips, emb)
        if pull and not x.requires_grad:
            h.requires_grad_()  # the first node needs no gradient, but the shift, before the second decoder pass, does
        out = torch.cat([eps, model.decode(h, skips, emb)]) if twice else eps
        if pull:
            out.backward(torch.ones_like(out))

    def bare():
        """The network passes of one training step, and nothing else."""
        with autocast(x_T.device, "bfloat16"):
            with torch.no_grad():
                for twice in shifted:
                    passes(x_T, twice, pull=False)
            for i, twice in enumerate(shifted):
                passes(x_T.clone().requires_grad_(i > 0), twice, pull=True)
            discriminator.requires_grad_(False)
            x = x_0.clone().requires_grad_()
            judge(discriminator, x).sum().backward()
            discriminator.requires_grad_(True)
            judge(discriminator, torch.cat([x_0, x_0])).sum().backward()

    rounds = {
        "node": lambda: strategy("node"),
        "torch-checkpoint": lambda: strategy("torch-checkpoint"),
        "vanilla": lambda: strategy("vanilla"),
        "whole step": whole_step,
        "bare passes": bare,
    }
    seconds = {name: [] for name in rounds}

    def one_round():
        for name, run in rounds.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)

    benchmark.pedantic(one_round, rounds=15, warmup_rounds=2, iterations=1)
    medians = {name: float(torch.tensor(values[2:]).median()) for name, values in seconds.items()}
    ratios = {
        "torch-checkpoint / node": medians["torch-checkpoint"] / medians["node"],
        "node / vanilla": medians["node"] / medians["vanilla"],
        "whole step / bare passes": medians["whole step"] / medians["bare passes"],
    }
    benchmark.extra_info.update(M=M, batch_size=BATCH, precision="bfloat16", medians=medians, **ratios)
    print({name: round(value, 3) for name, value in ratios.items()})


PEAK = """
import json, resource, sys, torch
sys.path.insert(0, {folder!r})
from bench_chain import chain
from hbench.chain import backpropagate
torch.set_num_threads(2)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
steps, x_T = chain({M})
with torch.no_grad():
    steps[0](x_T)
base = peak()
for _ in range(2):
    backpropagate(steps, x_T, lambda x: x.square().mean(), {strategy!r})
print(json.dumps([base, peak()]))
"""


@pytest.mark.parametrize(("strategy", "M"), [("node", 10), ("node", 40), ("torch-checkpoint", 10), ("vanilla", 20)])
def test_peak_memory(benchmark, strategy, M):
    """Peak resident memory over the loaded model's, float32, each in a fresh process."""
    code = PEAK.format(folder=str(Path(__file__).parent), M=M, strategy=strategy)

    def measure():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        base, top = json.loads(done.stdout.splitlines()[-1])
        benchmark.extra_info.update(M=M, batch_size=BATCH, precision="float32", base_mib=base, peak_mib=top)
        print(f"{strategy} M={M}: peak {top:.0f} MiB, {top - base:.0f} MiB over the model")

    benchmark.pedantic(measure, rounds=1, iterations=1)
