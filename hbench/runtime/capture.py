"""CUDA graphs: a function of tensors is recorded once, and then replayed without launching its kernels one by one.

Small networks leave a GPU idle while Python launches their kernels; a replay launches all of them at once. Whatever
changes from call to call must be an input, which is copied to a fixed address before each replay. Everything else that
the function reads, such as weights, must stay where it is and may only change in place.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Outputs = Sequence[Tensor | None]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], object], Outputs]]
"""Function of some work, without arguments, that returns its replay and the outputs that each replay writes again."""

WARM_UP = 3
"""Runs before a capture, in which libraries load their kernels and take their work space, as PyTorch asks for."""


@dataclass(frozen=True, eq=False)
class _Recording:
    inputs: Sequence[Tensor]
    replay: Callable[[], object]
    outputs: Outputs


class Graphs:
    """Recordings of functions, one for each function and each shape of its inputs; they share their memory.

    What cannot be recorded runs as it is: a line says why, and the recordings are dropped.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture: Capture | None = capture
        self._recordings: dict[Hashable, _Recording] = {}

    @torch.no_grad()
    def run(self, key: Hashable, function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> Outputs:
        """Return ``function(*inputs)``, replayed from the second call on, and in the first one recorded.

        The next call may overwrite the outputs: copy those that shall stay. Cost of the first call: four runs, and
        until then the memory of two.

        Args:
            key: everything that the function depends on beside the inputs; equal keys mean the same work.
            function: function of tensors, which returns tensors, or None in place of some, and never waits for the
                device.
            inputs: its arguments, which need no gradient.
        """
        key = (key, *((value.shape, value.dtype) for value in inputs))
        if key not in self._recordings:
            self._record(key, function, inputs)
        recording = self._recordings.get(key)
        if recording is None:
            return function(*inputs)
        for fixed, value in zip(recording.inputs, inputs, strict=True):
            fixed.copy_(value)
        recording.replay()
        return recording.outputs

    def _record(self, key: Hashable, function: Callable[..., Outputs], inputs: Sequence[Tensor]) -> None:
        """Record a function, or drop all recordings for good where that fails.

        The caller runs the function afterwards, not here: the error holds the memory of what has failed.
        """
        if self._capture is None:
            return
        try:
            fixed = [value.clone() for value in inputs]
            self._recordings[key] = _Recording(fixed, *self._capture(lambda: function(*fixed)))
        except RuntimeError as error:  # PyTorch's, of any step that CUDA cannot record, and of too little memory
            # the end of a capture that has failed only says so; a name for its context would keep all frames alive
            reason = str(error.__context__ or error).strip().split("\n")[0]
            log.warning("computes without CUDA graphs: %s", reason)
            self._capture = None
            self._recordings.clear()


def graphs_of(device: torch.device) -> Graphs | None:
    """Return a place for recordings on a CUDA device; None for other devices, which have no such graphs."""
    if device.type != "cuda":
        return None
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def capture(work: Callable[[], Outputs]) -> tuple[Callable[[], object], Outputs]:
        current = torch.cuda.current_stream(device)
        # older versions of PyTorch leave the stream of a capture that fails as the current one
        with torch.cuda.device(device), torch.cuda.stream(current):
            stream.wait_stream(current)
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP):
                        work()
            finally:  # work that has failed may still read the inputs, whose memory is soon another's
                current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: the threads of NCCL ask CUDA for the state of other work meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = work()
        return graph.replay, outputs

    return Graphs(capture)
