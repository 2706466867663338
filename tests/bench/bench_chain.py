"""Speed and memory of training, sampling and inversion, side by side: ``make bench``. Ratios count, not seconds.

In each benchmark the contenders take turns within one run, so that a busy moment of the machine hits all of them; a
ratio is the median over rounds, with a bootstrap interval. The record, with its provenance, is in results/bench/.
"""

import os
import platform
import shlex
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hbench.core.chain import backpropagate, run_chain
from hbench.core.diffusion import alpha_bar_schedule, direction_to_x_t, predict_x_0
from hbench.core.directions import draw_shifts, own_direction
from hbench.core.sampler import Sampler, visited
from hbench.evaluation import sweep_cells as sweep
from hbench.experiments import load_experiment
from hbench.models.discriminator import frozen, judge
from hbench.runtime.device import autocast, pick_device
from hbench.store.model import load_model
from hbench.store.provenance import provenance
from hbench.training.cost import predict
from hbench.training.freeze import freeze
from hbench.training.probe import measure
from hbench.training.step import initial, losses, raw_pairs, train_discriminator, train_step
from hbench.training.strategy import resolve

DEVICE = pick_device("auto")
ROUNDS, WARM_UP = 7, 1


@pytest.fixture(autouse=True)
def all_cores(one_thread):
    """Benchmarks use the whole machine, unlike the tests."""
    torch.set_num_threads(os.cpu_count() or 1)


def interleaved(benchmark, contenders, ratios, clock=time.perf_counter, **details):
    """Times the contenders in turns and keeps medians, and ratios of pairs of them, in the benchmark's record.

    The clock is the wall's, or the process's CPU time, which counts no waiting beside other work."""
    seconds = {name: [] for name in contenders}

    def one_round():
        for name, call in contenders.items():
            started = clock()
            call()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=WARM_UP, iterations=1)
    table = {name: np.array(values[WARM_UP:]) for name, values in seconds.items()}
    found = {}
    for name, (slow, fast) in ratios.items():
        each = table[slow] / table[fast]
        low, high = bootstrap((each,), np.median, method="percentile", rng=0).confidence_interval
        found[name] = {"ratio": float(np.median(each)), "interval": [float(low), float(high)]}
    origin = replace(provenance(None, DEVICE, 0), command=shlex.join(["pytest", *sys.argv[1:]])).to_json()
    medians = {name: float(np.median(values)) for name, values in table.items()}
    benchmark.extra_info.update(n=ROUNDS, medians=medians, ratios=found, provenance=origin, **details)
    width = max(map(len, [*medians, *found]))
    print(f"\n{details}")
    for name, value in medians.items():
        print(f"  {name:{width}}  {1e3 * value:9.1f} ms")
    for name, value in found.items():
        print(f"  {name:{width}}  {value['ratio']:9.2f}  [{value['interval'][0]:.2f}, {value['interval'][1]:.2f}]")
    return medians


def parts(*overrides):
    """An experiment on the shipped model, without a pool, and the model on the device."""
    experiment = load_experiment("mnist16", ["discovery.pool=0", "discovery.strategy=node", *overrides])
    return experiment, load_model("mnist16", experiment, device=DEVICE)


def variant(experiment, **discovery):
    return experiment.model_copy(update={"discovery": experiment.discovery.model_copy(update=discovery)})


def whole_step(experiment, model, **discovery):
    """A function that takes a training step with these settings, of networks of its own, as hbench train does."""
    wanted = variant(experiment, **discovery)
    sampler = Sampler.of(wanted, freeze(wanted, model, DEVICE), DEVICE)
    running = resolve(wanted, sampler, 0)
    return partial(train_step, running, sampler, initial(running, sampler, 0), raw_pairs(running, sampler, 0), 0, 0)


def field_step(experiment, model):
    """The training step as the field writes it: two complete UNet calls for each asymmetric step, float32, eager,
    torch.utils.checkpoint for each step."""
    wanted = variant(experiment, precision="float32")
    settings = wanted.discovery
    model = freeze(wanted, model, DEVICE)
    sampler = Sampler.of(wanted, model, DEVICE)
    trained = initial(wanted, sampler, 0)
    alpha_bar = alpha_bar_schedule()

    def generation_step(k, s, t, t_prev):
        delta_h = own_direction(trained.shift_block, k, s)

        def step(x):
            times = torch.full((len(x),), t, device=x.device)
            eps = model(x, times)
            if t < settings.t_shift:
                x_0 = predict_x_0(x, eps, float(alpha_bar[t]))
            else:  # as a hook on the middle block has it: the second call computes everything again
                h, skips, emb = model.encode(x, times)
                x_0 = predict_x_0(x, model.decode(h + delta_h(h, emb, t), skips, emb), float(alpha_bar[t]))
            a_prev = float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
            return a_prev**0.5 * x_0 + direction_to_x_t(eps, a_prev)

        return step

    def take():
        torch.manual_seed(0)
        x_T = torch.randn(settings.batch_size, 1, 16, 16).to(DEVICE)
        k, s = (v.to(DEVICE) for v in draw_shifts(len(x_T), settings.K, settings.S, settings.min_magnitude))
        with torch.no_grad():
            x_0 = run_chain(sampler.steps(), x_T)
        chain = [generation_step(k, s, step.t, step.t_prev) for step in sampler.transitions]
        trained.reconstructor.train()
        trained.optimizer.zero_grad()

        def objective(x):
            return losses(settings, trained, x_0, x, k, s)["loss"]

        with frozen(trained.discriminator):
            _, x_0_shifted = backpropagate(chain, x_T, objective, "torch-checkpoint")
        trained.optimizer.step()
        train_discriminator(settings, trained, x_0, x_0_shifted)

    return take


def bare_passes(experiment, model):
    """The network passes that a step of "node" requires, and nothing else: no loss, no optimiser, no shift block."""
    settings = experiment.discovery
    model = freeze(experiment, model, DEVICE)
    discriminator = initial(experiment, Sampler.of(experiment, model, DEVICE), 0).discriminator
    B = settings.batch_size
    x = torch.randn(B, 1, 16, 16, device=DEVICE)
    shifted = [t >= settings.t_shift for t in visited(experiment)]

    def passes(count, decoded, pull):
        """The encoder on ``count`` batches, the decoder on ``decoded``; backward to x, for the first node to h_t."""
        times = torch.full((count * B,), 500, device=DEVICE)
        leaf = torch.cat([x] * count).requires_grad_(pull == "x")
        h, skips, emb = model.encode(leaf, times)
        if pull == "h":
            h.requires_grad_()
        rest = slice(None, (decoded - count) * B)
        if decoded > count:
            h, *skips, emb = (torch.cat([each, each[rest]]) for each in (h, *skips, emb))
        out = model.decode(h, skips, emb)
        if pull:
            out.backward(torch.ones_like(out))

    def take():
        with autocast(DEVICE, settings.precision):
            with torch.no_grad():  # raw and shifted samples at once; x_T is common to both
                for i, twice in enumerate(shifted):
                    passes(1 if i == 0 else 2, (1 if i == 0 else 2) + twice, None)
            for i, twice in enumerate(shifted):
                passes(1, 1 + twice, "x" if i else "h")
            with frozen(discriminator):
                judge(discriminator, x.clone().requires_grad_()).sum().backward()
            judge(discriminator, torch.cat([x, x])).sum().backward()

    return take


@pytest.mark.parametrize(("M", "precision"), [(10, "bfloat16"), (20, "bfloat16"), (10, "float32")])
def test_training_step(benchmark, M, precision):
    """A whole training step by each strategy, as the field writes it, and its bare network passes."""
    benchmark.group = f"training step, M = {M}, {precision}"
    experiment, model = parts(f"discovery.M={M}", f"discovery.precision={precision}")
    contenders = {
        "node": whole_step(experiment, model, strategy="node"),
        "vanilla": whole_step(experiment, model, strategy="vanilla"),
        "torch-checkpoint": whole_step(experiment, model, strategy="torch-checkpoint"),
        "auto, ample budget": whole_step(experiment, model, strategy="auto"),
        "as the field writes it": field_step(experiment, model),
        "bare passes": bare_passes(experiment, model),
    }
    ratios = {
        "torch-checkpoint / node": ("torch-checkpoint", "node"),
        "node / vanilla": ("node", "vanilla"),
        "auto, ample budget / vanilla": ("auto, ample budget", "vanilla"),
        "as the field writes it / node": ("as the field writes it", "node"),
        "as the field writes it / auto": ("as the field writes it", "auto, ample budget"),
        "node / bare passes": ("node", "bare passes"),
    }
    medians = interleaved(
        benchmark, contenders, ratios, M=M, batch_size=experiment.discovery.batch_size, precision=precision
    )
    if precision == "bfloat16":
        flops, peak = FlopCounterMode(display=False), matmul_flops_per_second()
        with flops:
            contenders["node"]()
        share = flops.get_total_flops() / medians["node"] / peak
        benchmark.extra_info.update(
            node_gflop=flops.get_total_flops() / 1e9, matmul_gflop_per_second=peak / 1e9, share_of_matmul_peak=share
        )
        print(f"  node: {flops.get_total_flops() / 1e9:.0f} GFLOP, {share:.2f} of the peak, {peak / 1e9:.0f} GFLOP/s")


@pytest.mark.filterwarnings("default")  # of the compiler's own
def test_compiled_training_step(benchmark):
    """What torch.compile gains once it is warm; the warm-up rounds pay for the compilation."""
    benchmark.group = "compile, M = 10, bfloat16"
    experiment, model = parts()
    contenders = {
        "node": whole_step(experiment, model, strategy="node"),
        "node, compiled": whole_step(experiment, model, strategy="node", compile=True),
        "auto, compiled": whole_step(experiment, model, strategy="auto", compile=True),
        "as the field writes it": field_step(experiment, model),
    }
    ratios = {
        "node / node, compiled": ("node", "node, compiled"),
        "as the field writes it / node, compiled": ("as the field writes it", "node, compiled"),
        "as the field writes it / auto, compiled": ("as the field writes it", "auto, compiled"),
    }
    interleaved(benchmark, contenders, ratios, M=10, batch_size=experiment.discovery.batch_size, precision="bfloat16")


def matmul_flops_per_second(size=2048):
    """What a bfloat16 matrix product reaches here, the best of some: the practical peak of the device."""
    a, b = torch.randn(2, size, size, device=DEVICE).bfloat16()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def test_auto_with_a_quarter_of_vanillas_memory(benchmark):
    """Auto with a quarter of what vanilla uses: does it stay inside, and is it faster than node?"""
    benchmark.group = "memory budget, M = 20, bfloat16"
    experiment, model = parts("discovery.M=20")

    def memory(strategy, **discovery):
        wanted = variant(experiment, strategy=strategy, **discovery)
        (cell,) = sweep.cells(wanted, [strategy], [20], device=str(DEVICE), repeats=3)
        return sweep.measure_apart(cell).memory_mib

    vanilla = memory("vanilla")
    budget = vanilla / 4 / 1024
    used = {"vanilla": vanilla, "node": memory("node"), "auto": memory("auto", memory_budget=budget)}
    assert used["auto"] <= budget * 1024
    contenders = {
        "node": whole_step(experiment, model, strategy="node"),
        "vanilla": whole_step(experiment, model, strategy="vanilla"),
        "auto, a quarter": whole_step(experiment, model, strategy="auto", memory_budget=budget),
    }
    ratios = {
        "node / auto, a quarter": ("node", "auto, a quarter"),
        "auto, a quarter / vanilla": ("auto, a quarter", "vanilla"),
    }
    interleaved(benchmark, contenders, ratios, M=20, precision="bfloat16", memory_mib=used, budget_mib=budget * 1024)


def test_plan_against_what_is_used(benchmark):
    """The plan's prediction of a step's time, of a probe in this process, against the steps themselves."""
    benchmark.group = "plan"
    experiment, model = parts()
    probe = measure(experiment, Sampler.of(experiment, freeze(experiment, model, DEVICE), DEVICE), 0)
    predicted = {}
    contenders = {}
    for name, keep in (("node", 0), ("keep 5", 5), ("vanilla", 10)):
        contenders[name] = whole_step(experiment, model, strategy="node", keep=keep)
        speed = predict(probe, experiment, 10, keep, "node").images_per_second
        predicted[name] = experiment.discovery.batch_size / speed
    medians = interleaved(benchmark, contenders, {}, M=10, predicted=predicted)
    print({name: round(predicted[name] / medians[name], 3) for name in medians})


def test_choices(benchmark):
    """What hbench chose, against what it did not: a shifted step with its backward pass, and sampling by batches."""
    benchmark.group = "choices, bfloat16"
    experiment, model = parts()
    cast_once = freeze(experiment, model, DEVICE)
    cast_in_every_call = freeze(variant(experiment, precision="float32"), model, DEVICE)
    channels_last = freeze(experiment, model, DEVICE).to(memory_format=torch.channels_last)
    block = initial(experiment, Sampler.of(experiment, model, DEVICE), 0).shift_block
    settings = experiment.discovery
    x = torch.randn(settings.batch_size, 1, 16, 16, device=DEVICE)
    k, s = (v.to(DEVICE) for v in draw_shifts(len(x), settings.K, settings.S, settings.min_magnitude))
    delta_h = own_direction(block, k, s)

    def step(network):
        sampler = replace(Sampler.of(experiment, network, DEVICE, M=2, precision="bfloat16"), t_shift=0)
        (_, shifted) = sampler.steps(delta_h)
        with sampler.autocast():
            shifted(x.clone().requires_grad_()).sum().backward()

    def two_decoder_passes():
        leaf = x.clone().requires_grad_()
        with autocast(DEVICE, "bfloat16"):
            h, skips, emb = cast_once.encode(leaf, torch.full((len(x),), 499, device=DEVICE))
            eps = cast_once.decode(h, skips, emb)
            (eps + cast_once.decode(h + delta_h(h, emb, 499), skips, emb)).sum().backward()

    def sample(batch):
        with torch.no_grad(), autocast(DEVICE, "bfloat16"):
            for _ in range(128 // batch):
                cast_once(torch.cat([x] * 4)[:batch], torch.full((batch,), 499, device=DEVICE))

    contenders = {
        "step": lambda: step(cast_once),
        "two decoder passes": two_decoder_passes,
        "weights cast in every call": lambda: step(cast_in_every_call),
        "channels_last": lambda: step(channels_last),
        "128 images by 32": lambda: sample(32),
        "128 images by 64": lambda: sample(64),
        "128 images by 128": lambda: sample(128),
    }
    ratios = {f"{name} / step": (name, "step") for name in list(contenders)[1:4]} | {
        "batch 32 / 64": ("128 images by 32", "128 images by 64"),
        "batch 128 / 64": ("128 images by 128", "128 images by 64"),
    }
    interleaved(benchmark, contenders, ratios, batch_size=len(x), precision="bfloat16")


@pytest.fixture
def alone():
    """One thread of the CPU, whose seconds are those of the process."""
    if DEVICE.type != "cpu":
        pytest.skip("it is about the CPU")
    torch.set_num_threads(1)


def test_layers_on_one_thread(benchmark, alone):
    """Where a step's time goes: the layers of a residual block, 64 channels of 16x16, in both layouts of memory."""
    benchmark.group = "layers, bfloat16, one thread, CPU time"
    x, weight, norm = torch.randn(64, 64, 16, 16).bfloat16(), torch.randn(64, 64, 3, 3).bfloat16(), torch.ones(64)
    emb = torch.randn(64, 64, 1, 1).bfloat16()
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    contenders = {}
    for layout, memory_format in layouts.items():
        h, w = (each.to(memory_format=memory_format) for each in (x, weight))
        calls = {
            "convolution": partial(F.conv2d, weight=w, padding=1),
            "group norm": partial(F.group_norm, num_groups=32, weight=norm, bias=norm),
            "SiLU": F.silu,
            "scale and shift": lambda h: h * (1 + emb) + emb,
        }
        for name, call in calls.items():
            leaf = h.detach().requires_grad_()
            pull = partial(torch.autograd.grad, call(leaf), leaf, h, retain_graph=True)
            contenders |= {f"{name}, {layout}": partial(call, h), f"{name} backward, {layout}": pull}
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, [1, 1], [1, 1], [1, 1], 1, list(x.shape))
    contenders["convolution, packed weight"] = partial(
        torch.ops.mkldnn._convolution_pointwise, x, packed, None, [1, 1], [1, 1], [1, 1], 1, "none", [], ""
    )
    ratios = {"convolution: as it is / packed weight": ("convolution, contiguous", "convolution, packed weight")}
    for name in calls:
        for each in (name, f"{name} backward"):
            ratios[f"{each}: channels_last / contiguous"] = (f"{each}, channels_last", f"{each}, contiguous")
    interleaved(benchmark, contenders, ratios, time.process_time, shape=list(x.shape), precision="bfloat16")


def test_operators_of_a_step_on_one_thread(benchmark, alone):
    """The share of each of PyTorch's operators in a training step's CPU time, its own work without that of others."""
    benchmark.group = "operators, bfloat16, one thread, CPU time"
    experiment, model = parts()
    step = whole_step(experiment, model)
    benchmark.pedantic(step, rounds=1, warmup_rounds=1, iterations=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    seconds = {event.key: event.self_cpu_time_total / 1e6 for event in profile.key_averages()}
    total = sum(seconds.values())
    shares = {name: value / total for name, value in sorted(seconds.items(), key=lambda each: -each[1])[:12]}
    origin = replace(provenance(None, DEVICE, 0), command=shlex.join(["pytest", *sys.argv[1:]])).to_json()
    benchmark.extra_info.update(n=1, seconds=total, shares=shares, provenance=origin)
    for name, value in shares.items():
        print(f"  {name:60} {value:6.1%}")


@pytest.mark.filterwarnings("default")  # of the compiler's own
def test_small_functions_on_one_thread(benchmark, alone):
    """What is left beside convolutions: norm, scale, shift and SiLU as they are and compiled, and the bookkeeping."""
    benchmark.group = "small functions, bfloat16, one thread, CPU time"
    norm, emb = torch.ones(64), torch.randn(64, 64, 1, 1).bfloat16()

    def end_of_block(h):
        return F.silu(F.group_norm(h, 32, norm, norm) * (1 + emb) + emb)

    def start_of_block(h):
        return F.silu(F.group_norm(h, 32, norm, norm))

    def often(call):
        def calls():  # one is a millisecond; none is kept, or new memory would be most of the time
            for _ in range(20):
                call()

        return calls

    contenders, ratios = {}, {}
    for function in (start_of_block, end_of_block):
        for how, call in {"": function, ", compiled": torch.compile(function, dynamic=False)}.items():
            leaf = torch.randn(64, 64, 16, 16).bfloat16().requires_grad_()
            name = function.__name__.replace("_", " ")
            pull = partial(torch.autograd.grad, call(leaf), leaf, torch.ones_like(leaf), retain_graph=True)
            contenders |= {f"{name}{how}": often(partial(call, leaf)), f"{name} backward{how}": often(pull)}
            for each in (name, f"{name} backward"):
                ratios[f"{each}: as it is / compiled"] = (each, f"{each}, compiled")
    experiment, model = parts()
    sampler = Sampler.of(experiment, freeze(experiment, model, DEVICE), DEVICE, M=2)
    x = torch.randn(64, 1, 16, 16)
    contenders["two steps, no_grad"] = partial(sampler.generate, x)
    contenders["two steps, inference_mode"] = torch.inference_mode()(partial(sampler.generate, x))
    ratios["no_grad / inference_mode"] = ("two steps, no_grad", "two steps, inference_mode")
    interleaved(benchmark, contenders, ratios, time.process_time, shape=[64, 64, 16, 16], precision="bfloat16")


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_sampling_and_inversion_against_diffusers(benchmark, precision):
    """50 steps from x_T, and back, against the loops of diffusers' pipelines with the same UNet and precision."""
    diffusers = pytest.importorskip("diffusers")
    benchmark.group = f"sampling and inversion, {precision}"
    experiment, model = parts(f"discovery.precision={precision}")
    model = freeze(experiment, model, DEVICE)
    betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False}
    forward = diffusers.DDIMScheduler(**betas, timestep_spacing="trailing")
    backward = diffusers.DDIMInverseScheduler(**betas, timestep_spacing="trailing")
    x = torch.randn(64, 1, 16, 16, device=DEVICE)
    sampler = Sampler.of(experiment, model, DEVICE, M=50)

    def pipeline(scheduler):
        scheduler.set_timesteps(50)
        image = x
        with torch.no_grad(), autocast(DEVICE, precision):
            for t in scheduler.timesteps:
                noise = model(image, t.expand(len(image)).to(DEVICE))
                image = scheduler.step(noise, t, image).prev_sample
        return image

    if precision == "float32":
        torch.testing.assert_close(sampler.generate(x), pipeline(forward), rtol=1e-3, atol=1e-3)
    contenders = {
        "sampling": lambda: sampler.generate(x),
        "sampling, diffusers": lambda: pipeline(forward),
        "inversion": lambda: sampler.invert(x),
        "inversion, diffusers": lambda: pipeline(backward),
    }
    ratios = {
        "sampling: diffusers / hbench": ("sampling, diffusers", "sampling"),
        "inversion: diffusers / hbench": ("inversion, diffusers", "inversion"),
    }
    interleaved(benchmark, contenders, ratios, M=50, batch_size=64, precision=precision, machine=platform.machine())
