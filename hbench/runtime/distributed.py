"""Communication between the processes of a command, by accelerate: ``torchrun --nproc_per_node N -m hbench ...``.

No module is wrapped. Every process holds all of them, draws a step's random numbers for the whole batch, and works on
its slice of it; before each optimiser step the gradients are averaged in one flat reduction. So the batch size
stays the global one, and the result does not depend on the number of processes, up to the rounding of sums.

Process 0 alone prints and writes. A single process makes no process group: everything here then returns at once.
torch and accelerate are imported inside the functions, so that help is instant.
"""

import atexit
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from hbench.errors import HBenchError, is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""Longest time that processes wait for process 0 to write or measure, before they take it for hung."""
STUCK_SECONDS = 20
"""Seconds for a step and its checkpoint after a SIGTERM; torchrun kills after 30."""
FIRST_WORD_SECONDS = 3
"""Seconds for process 0 to print an error that all processes meet, and for torchrun to end the others."""
RELEASE_SECONDS = 0.2
"""Seconds for gloo's threads to drop their tensors at the end; they need microseconds."""


def launched() -> bool:
    """Return whether torchrun started this process."""
    return bool(os.environ.get("TORCHELASTIC_RUN_ID"))  # an empty variable is an unset one


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Return the number of this process, 0 .. world_size() - 1; process 0, the main process, prints and writes."""
    return int(os.environ["RANK"]) if launched() else 0


def check_processes(wanted: int | None, command: str) -> None:
    """Refuse to run this command with another number of processes than wanted; any is right for None.

    Raises:
        HBenchError: torchrun started fewer or more, or this is a single process.
    """
    if wanted not in (None, found := world_size()):
        raise HBenchError(
            f"`processes={wanted}`, but {found} {'is' if found == 1 else 'are'} running: start them all by "
            f'"torchrun --standalone --nproc_per_node {wanted} -m {command}"'
        )


def check_batch_size(name: str, batch_size: int, together: int = 1) -> None:
    """Raise an HBenchError if the processes cannot share a batch evenly; ``name`` is the setting's.

    Rows of the batch that follow each other stay ``together`` in one process.
    """
    if batch_size % (together * world_size()):
        raise HBenchError(
            f"{name} = {batch_size} cannot be shared evenly by {world_size()} processes: "
            f"make it a multiple of {together * world_size()}"
        )


def start(device: "torch.device") -> None:
    """Join the process group; call it in each process, before any other function that sends something.

    The backend is gloo on the CPU, NCCL on CUDA. A single process does nothing, nor does a second call.

    Raises:
        HBenchError: some process does not come, or the network or the GPUs cannot be used.
    """
    if world_size() == 1:
        return
    import torch.distributed as dist
    from accelerate import PartialState

    if dist.is_initialized():
        return
    _end_when_stuck()
    with _reporting_lost_processes():
        try:
            state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        except NotImplementedError as error:  # accelerate's, for GPUs that need other settings of NCCL
            raise HBenchError(str(error)) from error
    atexit.register(_leave)
    if rank() == 0:
        print(f"{world_size()} processes, {state.backend}, {device.type}", file=sys.stderr)


def backend() -> str | None:
    """Return the backend of the process group, "gloo" or "nccl"; None for a single process."""
    if world_size() == 1:
        return None
    import torch.distributed as dist

    return str(dist.get_backend())


# Training -----------------------------------------------------------------------------------------------------------


def shard(batch: "Tensor") -> "Tensor":
    """Return this process's slice of a whole batch [B, ...]: [B / world_size(), ...]."""
    each = len(batch) // world_size()
    return batch[rank() * each : (rank() + 1) * each]


def average_gradients(parameters: "Iterable[nn.Parameter]") -> None:
    """Replace the gradients by their means over the processes, in one flat all_reduce.

    With losses that are means over equal slices, they become the gradients of the whole batch. Call it between the
    backward passes, of which there may be many, and the optimiser step.
    """
    if world_size() == 1:
        return
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    all_reduce(flat)
    averages = flat.div_(world_size()).split([g.numel() for g in gradients])
    for gradient, average in zip(gradients, averages, strict=True):
        gradient.copy_(average.view_as(gradient))


def all_reduce_mean(values: Mapping[str, float]) -> dict[str, float]:
    """Return the means of numbers over the processes, the same on each; nan or infinite where any process's are."""
    if world_size() == 1:
        return dict(values)
    import torch
    from accelerate import PartialState

    sums = torch.tensor(list(values.values()), dtype=torch.float64, device=PartialState().device)
    all_reduce(sums)
    return dict(zip(values, (sums / world_size()).tolist(), strict=True))


def agreed(reason: str | None) -> str | None:
    """Return one reason to stop on every process: that of the first process that has a reason, or None."""
    if world_size() == 1 or not all_reduce_mean({"stop": reason is not None})["stop"]:
        return reason
    return next(each for each in all_gather([reason]) if each)


def all_reduce(tensor: "Tensor") -> None:
    """Replace a contiguous tensor by its sum over the processes, bit by bit the same on each."""
    import torch.distributed as dist

    with _reporting_lost_processes():
        dist.all_reduce(tensor)


# Work that is shared out --------------------------------------------------------------------------------------------


def turns(tasks: Sequence[T]) -> Sequence[T]:
    """Return the tasks of this process: every world_size()-th, so that a resumed command shares the rest evenly."""
    return tasks[rank() :: world_size()]


def all_gather(results: Sequence[T]) -> list[T]:
    """Return the results of all processes' :func:`turns`, on each of them and in the order of the tasks."""
    if world_size() == 1:
        return list(results)
    from accelerate.utils import gather_object

    with _reporting_lost_processes():
        parts: list[Sequence[T]] = gather_object([results])
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)]


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the other processes enter the block once process 0 has left it."""
    if rank():
        barrier()
    yield
    if rank() == 0:
        barrier()


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() == 1:
        return
    from accelerate import PartialState

    with _reporting_lost_processes():
        PartialState().wait_for_everyone()


# Endings ------------------------------------------------------------------------------------------------------------


@contextmanager
def only_main_process_prints() -> Iterator[None]:
    """Silence the other processes; one that ends with an error tells it, unless process 0 ends with it first."""
    if rank() == 0:
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            yield
    except SystemExit as end:
        if end.code:
            time.sleep(FIRST_WORD_SECONDS)
            print(f"process {rank()}: {said.getvalue().strip()}", file=sys.stderr, flush=True)
        raise


@contextmanager
def _reporting_lost_processes() -> Iterator[None]:
    """Turn the error of a collective that lost a process into an HBenchError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or ["no more is known"])[0]
        raise HBenchError(f"another process of this command has ended: its error says why ({first})") from error


def _leave() -> None:
    """Leave the process group, once its threads are done.

    The threads of gloo drop the tensors of the last collective after it has returned, and need Python's lock for that.
    A thread that waits for this lock while the interpreter ends is unwound, and C++ then aborts the process: sleeping
    hands them the lock.
    """
    import torch.distributed as dist

    time.sleep(RELEASE_SECONDS)
    dist.destroy_process_group()


def _end_when_stuck() -> None:
    """Make this process end when it is asked to stop, even if it waits for others that will never come.

    While it waits, Python cannot run its signal handlers, but it can still write the signal's number to a socket.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with writer:  # keeps it open
            while reader.recv(1)[0] not in (signal.SIGTERM, signal.SIGINT):
                pass  # every signal with a handler of Python comes here, and the others ask for no end
            time.sleep(STUCK_SECONDS)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
