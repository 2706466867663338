"""The choice of a device, and a Mac's GPU: there is none here, so the device "meta" stands in for it."""

import sys

import pytest
import torch
from torch import nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hbench.core.domain import look
from hbench.core.sampler import Sampler
from hbench.errors import HBenchError, is_out_of_memory
from hbench.evaluation.mean_directions import directions_of, grouped_means
from hbench.evaluation.rca import rca
from hbench.evaluation.vram_sweep import vram_sweep
from hbench.experiments import override
from hbench.models import build_discriminator, build_model, build_reconstructor, build_shift_block
from hbench.runtime import device as module
from hbench.runtime.device import autocast, cast_frozen, float64_device, pick_device
from hbench.runtime.memory import free_mib
from hbench.store.provenance import provenance
from hbench.store.run import Run
from hbench.training import pretrain
from hbench.training.freeze import freeze
from hbench.training.probe import memory_of
from hbench.training.step import initial, raw_pairs, train_step
from hbench.training.strategy import resolve

MPS, META, GIB = torch.device("mps"), torch.device("meta"), 2**30


@pytest.fixture(autouse=True)
def said_once():
    module._say_once.cache_clear()


@pytest.fixture
def mac(monkeypatch):
    """A Mac with a GPU, of which nothing can compute."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


class NoFloat64(TorchDispatchMode):
    """Refuse tensors of float64 or bfloat16 on the device that stands in for a Mac's GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.device.type == "meta":
                assert each.dtype not in (torch.float64, torch.bfloat16), f"{func} makes {each.dtype}"
        return result


@pytest.fixture
def on_meta(monkeypatch):
    """Let "meta" have the limits of "mps"; values that are read from it are zeros, and checks of them true."""
    monkeypatch.setattr(module, "WITHOUT_BFLOAT16", {"meta"})
    monkeypatch.setattr(module, "WITHOUT_FLOAT64", {"meta"})
    adam = torch.optim.Adam
    assert "mps" in _get_fused_kernels_supported_devices()
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, fused: adam(parameters, lr=lr, foreach=False))
    to, tolist, cpu = torch.Tensor.to, torch.Tensor.tolist, torch.Tensor.cpu

    def zeros(tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.device.type == "meta" else tensor

    def read(tensor, *args, **kwargs):
        leaves = [*args, *kwargs.values()]
        here = any(isinstance(each, torch.device | str) and torch.device(each).type == "cpu" for each in leaves)
        return to(zeros(tensor) if here else tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", read)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor, **_: cpu(zeros(tensor)))
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: item(zeros(tensor)))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: tensor.is_meta or bool(item(tensor)))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: tolist(zeros(tensor)))


def test_auto_takes_the_gpu_of_a_mac_and_says_so(mac, caplog):
    assert pick_device("auto") == pick_device("auto") == pick_device("mps") == MPS
    assert caplog.messages == ["computes on the GPU of this Mac (mps), in float32"]


def test_auto_prefers_cuda_and_says_where_a_mac_has_no_gpu(mac, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    assert caplog.messages == ["computes on the CPU: PyTorch finds no GPU of this Mac that it can use"]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto").type == "cuda"
    caplog.clear()
    assert pick_device("cpu") == torch.device("cpu")
    assert not caplog.messages


def test_a_mac_that_is_none_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for built, reason in ((False, "built without it"), (True, "too old a macOS")):
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda built=built: built)
        with pytest.raises(HBenchError, match=reason):
            pick_device("mps")
    with pytest.raises(HBenchError, match="no such device"):
        pick_device("mps:1")


def test_processes_do_not_share_the_gpu_of_a_mac(mac, monkeypatch):
    monkeypatch.setattr(module, "world_size", lambda: 2)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(HBenchError, match="cannot share a Mac's GPU"):
        pick_device("mps")


def test_all_is_float32_on_the_gpu_of_a_mac(on_meta):
    assert not torch.is_autocast_enabled("cpu")
    with autocast(META, "bfloat16"):
        assert not torch.is_autocast_enabled("cpu")
    network = nn.Conv2d(1, 1, 1, device="meta")
    cast_frozen(network, "bfloat16")
    assert network.weight.dtype == torch.float32
    assert float64_device(META) == torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "pool"), [("chain", 0), ("per-step", 4)])
def test_a_step_of_discovery_needs_no_float64(tiny, on_meta, gradient, pool):
    settings = [f"discovery.gradient={gradient}", f"discovery.pool={pool}", "discovery.precision=bfloat16"]
    wanted = override(tiny, settings)
    sampler = Sampler.of(wanted, freeze(wanted, build_model(wanted), META), META)
    trained = initial(wanted, sampler, 0)
    with NoFloat64():
        row = train_step(wanted, sampler, trained, raw_pairs(wanted, sampler, 0), 0, 0)
    assert "D_shifted" in row


def test_a_step_of_pretraining_needs_no_float64(tiny, on_meta):
    trained = pretrain.initial(tiny, 0, META)
    images, alpha_bar_t = torch.zeros(4, *tiny.data.image_shape, device=META), torch.rand(4, 1, 1, 1, device=META)
    settings = tiny.pretrain.model_copy(update={"precision": "bfloat16"})
    with NoFloat64():
        t = torch.arange(4, device=META)
        pretrain.prediction_mse(trained.model, settings, images, images, t, alpha_bar_t).backward()
        trained.optimizer.step()
        trained.average.update_parameters(trained.model)


@pytest.mark.slow
def test_measurements_need_no_float64(tiny, on_meta):
    model = build_model(tiny)
    parts = build_shift_block(tiny, model), build_reconstructor(tiny), build_discriminator(tiny)
    run = Run(tiny, META, *(part.to(META).eval().requires_grad_(False) for part in (model, *parts)))
    with NoFloat64():
        assert rca(run, pairs=4).n == 4
        assert run.traverse(examples=1, samples=2).images.shape[:3] == (3, 1, 2)
        assert look(run.generate(run.noise(2))).outside == 0
        means = grouped_means(run, 4, 0, None)
        assert run.generate(run.noise(2), {1: 2.0}).shape == (2, *tiny.data.image_shape)
    assert means.sums.dtype == torch.float64
    assert means.directions.mean.device.type == directions_of(run, means.sums[0]).device.type == "meta"


def test_memory_of_a_mac(mac, monkeypatch):
    held = iter([2 * GIB, 2 * GIB, 5 * GIB])
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: next(held))
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 2 * GIB + 2**20)
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    assert free_mib(MPS) == 1
    taken = []
    assert memory_of(lambda: taken.append(1), MPS, 0) == (2048, 3072)
    assert taken == [1]
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))


def test_what_a_mac_cannot_do_is_refused(tiny, mac):
    with pytest.raises(HBenchError, match=r"memory of a Mac's GPU \(mps\) cannot be measured exactly"):
        vram_sweep(tiny, steps=[2], device="mps")
    model = build_model(tiny)
    sampler = Sampler.of(tiny, model, MPS)
    with pytest.raises(HBenchError, match='"offload" moves graphs from CUDA'):
        resolve(override(tiny, ["discovery.strategy=offload"]), sampler, 0)
    assert provenance(tiny, MPS, 0).device.endswith("its GPU (mps)")


def test_networks_are_not_compiled_on_the_gpu_of_a_mac(tiny, monkeypatch):
    monkeypatch.setattr(nn.Module, "to", lambda network, *_: network)
    with pytest.raises(HBenchError, match="compile = true is for CUDA and the CPU"):
        freeze(override(tiny, ["discovery.compile=true"]), build_model(tiny), MPS)
