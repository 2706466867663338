"""Nodes in CPU memory, with a device that is made up: it computes on the CPU, and counts what lies on it."""

import weakref
from itertools import accumulate

import pytest
import torch
from samplers import sampler_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from hbench.core.chain import backpropagate
from hbench.core.directions import own_direction
from hbench.models import build_model, build_shift_block
from hbench.training.step import run_pairs

DEVICE = torch.device("meta")
"""A device that PyTorch has everywhere, and has no memory of its own."""


class OnDevice(Tensor):
    """A tensor that says that it is on the device, and has its values on the CPU."""

    @staticmethod
    def __new__(cls, values, mark):
        layout = values.shape, values.stride(), values.storage_offset()
        tensor = Tensor._make_wrapper_subclass(cls, *layout, dtype=values.dtype, device=DEVICE)
        tensor.values_on_cpu, tensor.mark = values, mark
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        raise AssertionError(f"{function.name()}, and no device")


class Mark:
    """Mark of a storage, alive as long as one of its tensors."""


class Device(TorchDispatchMode):
    """The device while it is entered; it refuses tensors of both memories in one operation, as CUDA does."""

    def __init__(self, shape):
        super().__init__()
        self.nbytes = torch.empty(shape).nbytes
        self.marks = weakref.WeakValueDictionary()  # by the storage's address
        self.changes = [0]  # of the number of tensors of this size, in their order

    @property
    def peak(self):
        """The largest number of tensors of this size that the device held at one time."""
        return max(accumulate(self.changes))

    def put(self, values):
        storage = values.untyped_storage()
        mark = self.marks.get(storage.data_ptr())
        if mark is None:
            mark = self.marks[storage.data_ptr()] = Mark()
            if storage.nbytes() == self.nbytes:
                self.changes.append(1)
                weakref.finalize(mark, self.changes.append, -1)
        return OnDevice(values, mark)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        given = [each for each in tree_leaves((arguments, options)) if isinstance(each, Tensor)]
        here = {id(each.values_on_cpu): each for each in given if isinstance(each, OnDevice)}
        assert not here or all(isinstance(each, OnDevice) or not each.ndim for each in given), function.name()
        onto = here
        if options.get("device") is not None:
            onto, options = options["device"] == DEVICE, options | {"device": "cpu"}
        arguments, options = tree_map_only(OnDevice, lambda each: each.values_on_cpu, (arguments, options))
        found = function(*arguments, **options)
        if not onto:
            return found
        return tree_map_only(Tensor, lambda each: here[id(each)] if id(each) in here else self.put(each), found)


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.9))

    def forward(self, x):
        return x * self.rate


def of_decay(M, place, keep=0):
    """The gradients of M multiplications, x_0 and the device."""
    x_T = torch.arange(40.0).reshape(5, 8)
    with Device(x_T.shape) as device:
        step = Decay().to(DEVICE)
        _, x_0 = backpropagate([step] * M, x_T.to(DEVICE), torch.sum, keep=keep, nodes=place)
    return step.rate.grad.values_on_cpu, x_0.values_on_cpu, device


def test_the_device_refuses_tensors_of_the_cpu():
    x = torch.ones(3)
    with Device(x.shape) as device:
        there = x.to(DEVICE)
        assert there.device == DEVICE
        assert not isinstance(there.to("cpu"), OnDevice)
        with pytest.raises(AssertionError, match="aten::add"):
            there + x
        assert (there.view(3, 1) + there).shape == (3, 3)
        del there
        x.to(DEVICE)
    assert device.peak == 1


@pytest.mark.parametrize("keep", [0, 1])
def test_the_device_holds_as_many_nodes_for_every_M(keep):
    few, many = (of_decay(M, "cpu", keep)[2].peak for M in (5, 40))
    assert few == many <= 7  # x_T, x_0, a node and the next one, the gradients of both, and a product
    assert of_decay(40, "device", keep)[2].peak >= 40 - keep
    for M in (5, 40):
        for got, wanted in zip(of_decay(M, "cpu", keep)[:2], of_decay(M, "device", keep)[:2], strict=True):
            assert torch.equal(got, wanted)


def of_pairs(tiny, M, place, keep=0):
    """The gradients of the shift block and x_0, in passes for raw and shifted samples, and the device."""
    settings = tiny.discovery.model_copy(update={"M": M, "keep": keep, "nodes": place, "precision": "float32"})
    torch.manual_seed(0)
    model = build_model(tiny).eval().requires_grad_(False)
    block = build_shift_block(tiny, model)
    for parameter in (*model.parameters(), *block.parameters()):
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    x_T, k, s = torch.randn(2, 1, 16, 16), torch.tensor([0, 2]), torch.tensor([1.0, -2.0])
    with Device(x_T.shape) as device:
        sampler = sampler_of(model.to(DEVICE), M, t_shift=400)
        delta_h = own_direction(block.to(DEVICE), k.to(DEVICE), s.to(DEVICE))
        x_T = x_T.to(DEVICE)
        _, nodes = run_pairs(settings, sampler, delta_h, x_T)
        assert [isinstance(node, OnDevice) for node in nodes[1:]] == [place == "device"] * (M - keep)
        _, x_0 = backpropagate(
            sampler.steps(delta_h), x_T, lambda x: x.square().mean(), "node", keep, place, known_nodes=nodes
        )
    return [*(each.grad.values_on_cpu for each in block.parameters()), x_0.values_on_cpu], device


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 1])
def test_passes_for_raw_and_shifted_samples_leave_no_node_on_the_device(tiny, keep):
    few, many, ample = (of_pairs(tiny, *how, keep) for how in ((3, "cpu"), (6, "cpu"), (6, "device")))
    assert few[1].peak == many[1].peak
    assert ample[1].peak > many[1].peak
    for got, wanted in zip(many[0], ample[0], strict=True):
        assert torch.equal(got, wanted)
    assert all(each.any() for each in many[0])
