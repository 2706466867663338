"""Stand-in for CUDA graphs on the CPU: a replay runs the recorded work again, and sees that nothing has moved."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hbench.runtime.capture import Graphs


class Recorder:
    """Counts recordings and replays; ``capture`` is what a CUDA graph's capture would be."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def graphs(self, device=None):
        return Graphs(self.capture)

    def capture(self, work):
        self.recorded += 1
        with _Reads() as first:
            outputs = work()

        def replay():
            self.replayed += 1
            with _Reads() as again:
                fresh = work()
            assert again.addresses == first.addresses, "reads a tensor that is not an input and has moved"
            with torch.no_grad():
                for output, value in zip(outputs, fresh, strict=True):
                    if output is not None:
                        output.copy_(value)

        return replay, outputs


class _Reads(TorchDispatchMode):
    """The addresses of all tensors that some work reads and has not made itself."""

    def __init__(self):
        super().__init__()
        self.addresses = set()
        self._made = {}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        for value in tree_leaves((arguments, options)):
            if isinstance(value, Tensor) and _address(value) not in self._made:
                self.addresses.add(_address(value))
        found = function(*arguments, **(options or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor) and _address(value) not in self.addresses:
                self._made[_address(value)] = value  # kept, or another would get its address
        return found


def _address(value):
    return value.untyped_storage().data_ptr()
