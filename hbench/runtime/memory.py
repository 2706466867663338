"""Memory: the bytes that a training step uses, exactly or as the system sees them, and the free ones of a device."""

import ctypes
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from threading import Event, Thread

import psutil
import torch
from torch import Tensor

from hbench.errors import HBenchError

MIB = 2**20
PROC, CGROUP = Path("/proc/self"), Path("/sys/fs/cgroup")
"""Folders in which Linux tells of this process and of its control groups; other systems have neither."""


class UnknownMemoryError(HBenchError):
    """Failure of NVML to say how much memory is used."""


def free_mib(device: torch.device) -> float:
    """Return the MiB that this process could still take on a device, the reserve of PyTorch's allocator included.

    The CPU's is the available memory of the system, or the rest of the limit of the container or the job (cgroup v2) if
    that is less. A Mac's GPU shares it, and takes so much at most as its driver recommends.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / MIB
    if device.type == "mps":
        return min(free_mib(torch.device("cpu")), torch.mps.recommended_max_memory() / MIB - mps_memory())
    available: float = psutil.virtual_memory().available / MIB
    for group in _groups():
        with suppress(OSError, ValueError):  # no limit
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            used = int((group / "memory.current").read_text(encoding="ascii"))
            statistics = (group / "memory.stat").read_text(encoding="ascii").split()
            cache = int(statistics[statistics.index("inactive_file") + 1])  # given back when memory is asked for
            available = min(available, (limit - used + cache) / MIB)
    return available


def mps_memory() -> float:
    """Return the MiB that this process holds on the GPU of a Mac, the reserve of PyTorch's allocator included."""
    return torch.mps.driver_allocated_memory() / MIB


def _groups() -> list[Path]:
    """Return the folders of this process's control group and of those around it."""
    with suppress(OSError):
        for line in (PROC / "cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::/"):
                inner = CGROUP / line.removeprefix("0::/")
                return [group for group in (inner, *inner.parents) if group.is_relative_to(CGROUP)]
    return [CGROUP]


@contextmanager
def watch_resident() -> Iterator[tuple[float, Callable[[], float], str]]:
    """Yield this process's resident memory now, in MiB; a function for its peak since; and how that peak is known.

    The peak is Linux's high-water mark, reset first: else it would tell of the imports, whose peak hides a small
    experiment. Where there is none, or where it cannot be reset, resident memory is polled every 2 ms.
    """
    with suppress(AttributeError, TypeError):  # other C libraries have none, and Windows no such library
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory would be used again without being seen
    memory = psutil.Process().memory_info
    baseline = memory().rss / MIB
    try:
        (PROC / "clear_refs").write_text("5", encoding="ascii")
        reset = _high_water_mib() < baseline + 16  # the kernel counts pages loosely
    except (OSError, KeyError):
        reset = False
    if reset:
        yield baseline, _high_water_mib, "peak RSS over baseline, from VmHWM"
        return
    highest, over = baseline, Event()

    def poll() -> None:
        nonlocal highest
        while not over.wait(0.002):
            highest = max(highest, memory().rss / MIB)

    Thread(target=poll, daemon=True).start()
    try:
        yield baseline, lambda: highest, "peak RSS over baseline, polled every 2 ms"
    finally:
        over.set()


def _high_water_mib() -> float:
    """Return Linux's high-water mark of this process's resident memory, in MiB."""
    lines = (PROC / "status").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) / 1024


def saved_tensors_peak(work: Callable[[], object], resident: Iterable[Tensor] = ()) -> int:
    """Return the largest number of bytes that autograd holds at one time during ``work``, each storage counted once.

    The count covers tensors saved for the backward pass, except those that are ``resident`` anyway, such as weights. It
    is exact: no allocator or library blurs it. With torch.utils.checkpoint it sees the inputs of a block, not the
    tensors that are recomputed inside.
    """
    not_counted = {tensor.untyped_storage().data_ptr() for tensor in resident}
    held: weakref.WeakValueDictionary[int, _Held] = weakref.WeakValueDictionary()  # by the storage's address
    changes = [0]  # of the bytes held, in their order

    def save(tensor: Tensor) -> tuple[Tensor, _Held | None]:
        tensor = tensor.detach()  # an output would hold its own graph: one without a backward pass would never be freed
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in not_counted:
            return tensor, None
        mark = held.get(address)
        if mark is None:
            mark = held[address] = _Held()
            changes.append(size)
            weakref.finalize(mark, changes.append, -size)
        return tensor, mark

    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved[0]):
        work()
    return max(accumulate(changes))


class _Held:
    """Mark of a storage that autograd holds, alive as long as one of the tensors saved from it."""


def gpu_processes(device: torch.device) -> dict[int, int | None]:
    """Return the bytes that NVML says each process holds on the GPU, by PID; None where the driver does not say.

    Raises:
        HBenchError: NVML does not work here.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid  # NVML's indices ignore CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        return {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError as error:
        raise UnknownMemoryError(
            f"NVML does not answer ({error}): install NVIDIA's driver with NVML, or use `device=cpu`"
        ) from error


def gpu_memory(device: torch.device, idle: int) -> tuple[float, str]:
    """Return the MiB that this process holds on the GPU, its CUDA context included, and how they are known.

    NVML tells them by PID. Where it does not list this process (PIDs in a container are not the host's) or does not
    know (Windows), they are the bytes of the whole device over the ``idle`` ones, those before this process came.
    """
    used = gpu_processes(device).get(os.getpid())
    if used is not None:
        return used / MIB, "NVML, this process"
    return (torch.cuda.device_memory_used(device) - idle) / MIB, "NVML, the device over its idle state"
